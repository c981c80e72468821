# SPDX-License-Identifier: Apache-2.0
# Canonical arithmetic gives the same bits whoever compiles it and for whichever instruction set: property/canonical_digest.cpp
# prints a hash of its results, and every compiler found here must agree on it at each of these flag sets.
set(digest_source ${CMAKE_CURRENT_SOURCE_DIR}/property/canonical_digest.cpp)
if(NOT EXISTS ${digest_source})
  return()
endif()
find_program(PQKV_OTHER_COMPILER NAMES clang++-19 clang++-18 clang++ DOC "A second compiler whose bits are compared")
find_program(PQKV_GCC NAMES g++ DOC "g++, for comparison with a clang build")
set(compilers ${CMAKE_CXX_COMPILER} ${PQKV_GCC} ${PQKV_OTHER_COMPILER})
list(FILTER compilers EXCLUDE REGEX "NOTFOUND")
add_executable(pqkv_canonical_digest ${digest_source})
target_link_libraries(pqkv_canonical_digest PRIVATE pqkv_test_base $<TARGET_NAME_IF_EXISTS:pqkv_test_cases>)
pqkv_own_target(pqkv_canonical_digest)
if(PQKV_QUICK_TESTS)  # the others that are compared are optimised
  target_compile_options(pqkv_canonical_digest PRIVATE -O0)
endif()
add_test(NAME property.canonical_digest
         COMMAND Python3::Interpreter ${CMAKE_CURRENT_SOURCE_DIR}/property/compare_digests.py ${digest_source}
                 --built $<TARGET_FILE:pqkv_canonical_digest> --include ${PROJECT_SOURCE_DIR}/include ${CMAKE_CURRENT_SOURCE_DIR}
                 --compilers ${compilers} --sources ${case_files} --write ${CMAKE_CURRENT_BINARY_DIR}/canonical_digest.txt
                 $<$<BOOL:${PQKV_QUICK_TESTS}>:--few>)
set_tests_properties(property.canonical_digest PROPERTIES LABELS property FIXTURES_SETUP canonical_digest COST 600)

# The same bits, and the operations' tests with the NEON kernels, under an emulator where a cross compiler and an emulator are found.
find_program(PQKV_AARCH64_GCC aarch64-linux-gnu-g++ DOC "Cross compiler for the tests under an emulator")
find_program(PQKV_AARCH64_EMULATOR qemu-aarch64-static DOC "Emulator for the tests of AArch64")
if(PQKV_AARCH64_GCC AND PQKV_AARCH64_EMULATOR)
  add_test(NAME aarch64 COMMAND sh -c "${CMAKE_CURRENT_SOURCE_DIR}/aarch64.sh aarch64 $($<TARGET_FILE:pqkv_canonical_digest>)")
  set_tests_properties(aarch64 PROPERTIES LABELS property TIMEOUT 3600)
else()
  message(STATUS "AArch64: no cross compiler or emulator found, NEON code not tested")
endif()
