# SPDX-License-Identifier: Apache-2.0
# Warnings and sanitizers for the project's own executables; never attached to pqkv::pqkv, so no consumer sees them.
option(PQKV_WERROR "Treat warnings in the project's own targets as errors" ON)
set(PQKV_SANITIZE "" CACHE STRING "Sanitizers for the project's own tests, as in 'address,undefined' or 'thread'; empty for none")

# Gives a target of this project the project's warnings, the library's internal checks in debug builds, and the sanitizers
# when there are tests to run under them. tests/run.sh takes from its sanitized build what is a third of its compile time: warnings, which
# the other builds give, and checks of every pointer that is followed, which find no more there than the address sanitizer. Alignment is
# checked where rows of any address come in, in the operations (below); classes with virtual functions are doctest's alone.
function(pqkv_own_target target)
  if(NOT PQKV_QUICK_TESTS OR NOT PQKV_SANITIZE)
    target_compile_options(${target} PRIVATE -Wall -Wextra -Wpedantic -Wconversion -Wshadow $<$<BOOL:${PQKV_WERROR}>:-Werror>)
  endif()
  if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU" AND CMAKE_CXX_COMPILER_VERSION VERSION_LESS 13)
    target_compile_options(${target} PRIVATE -Wno-restrict)  # g++ 12 sees overlaps in std::string's operator+ that are not there
  elseif(CMAKE_CXX_COMPILER_ID STREQUAL "GNU" AND CMAKE_CXX_COMPILER_VERSION VERSION_LESS 14)
    target_compile_options(${target} PRIVATE -Wno-dangling-reference)  # g++ 13 takes any function of a temporary for one that returns it
  endif()
  target_compile_definitions(${target} PRIVATE $<$<CONFIG:Debug>:PQKV_CHECKED>)
  if(PQKV_SANITIZE AND PQKV_BUILD_TESTS)
    set(flags -fsanitize=${PQKV_SANITIZE} -fno-sanitize-recover=all -fno-omit-frame-pointer)
    target_compile_options(${target} PRIVATE ${flags})
    if(PQKV_QUICK_TESTS AND PQKV_SANITIZE MATCHES "undefined")
      target_compile_options(${target} PRIVATE -fno-sanitize=null,alignment,object-size,pointer-overflow,vptr)
    endif()
    if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")  # its manual warns of false ones under sanitizers: here, optionals that were tested
      target_compile_options(${target} PRIVATE -Wno-maybe-uninitialized)
    endif()
    if(PQKV_SANITIZE MATCHES "thread" AND CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
      target_compile_options(${target} PRIVATE -Wno-tsan)  # Eigen's pool has fences, which this sanitizer does not follow
    endif()
    target_link_options(${target} PRIVATE ${flags})
  endif()
endfunction()

# Optimises a target's code under the address sanitizer: the tests compute with it. In clang the sanitizer's checks are calls then, and
# undefined behaviour of pointers that leave their object is left to the address sanitizer: inlined, these checks take minutes to compile.
function(pqkv_optimise_sanitized target)
  if(PQKV_SANITIZE MATCHES "address" AND PQKV_BUILD_TESTS)
    target_compile_options(${target} PRIVATE -O1 -fsanitize=alignment)
    if(CMAKE_CXX_COMPILER_ID STREQUAL "Clang")
      target_compile_options(${target} PRIVATE -fno-sanitize=pointer-overflow,object-size
                                               "SHELL:-mllvm -asan-instrumentation-with-call-threshold=0")
    endif()
  endif()
endfunction()

# Puts the objects of pqkv::compiled in front of a program's own. A file that calls an operation for other types than the library has compiles
# the kernels below it again, and a linker keeps the first body of a name: behind files without optimisation it is theirs that would run.
function(pqkv_link_operations_first target)
  target_sources(${target} PRIVATE $<TARGET_OBJECTS:pqkv_compiled>)
endfunction()
