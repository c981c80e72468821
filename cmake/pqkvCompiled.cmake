# SPDX-License-Identifier: Apache-2.0
# Defines pqkv::compiled: the usual instantiations of host operations as a library, with which a file that uses them compiles in a third of
# the time. It is built by the project that links it, with that project's flags: names say what a function was compiled for, so a library
# built otherwise would not be linked. Link it where files are compiled as the library is (the same -march, exceptions alike).
#
# Included by this project, and by find_package(pqkv COMPONENTS compiled), with the library's files beside it in compiled/.
if(NOT TARGET pqkv_compiled)
  file(GLOB pqkv_compiled_files CONFIGURE_DEPENDS ${CMAKE_CURRENT_LIST_DIR}/compiled/*.cpp)
  add_library(pqkv_compiled STATIC EXCLUDE_FROM_ALL ${pqkv_compiled_files})
  add_library(pqkv::compiled ALIAS pqkv_compiled)
  target_link_libraries(pqkv_compiled PUBLIC pqkv::pqkv)
  target_compile_definitions(pqkv_compiled PUBLIC PQKV_COMPILED)
endif()
