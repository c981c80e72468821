# SPDX-License-Identifier: Apache-2.0
# Runs the real portfile with stand-ins for the few functions of vcpkg that it calls, as vcpkg would: into packages/, features given.
# The stand-ins do what vcpkg's documentation says of each; what vcpkg checks after a build is checked at the end.
#
#   cmake -DPORT=ports/pqkv -DWORK=FOLDER -DFEATURES=core;cuda -P install_port.cmake
cmake_minimum_required(VERSION 3.25)
file(READ "${PORT}/vcpkg.json" manifest)
string(JSON VERSION GET "${manifest}" version)
string(JSON PORT_NAME GET "${manifest}" name)
set(CURRENT_PACKAGES_DIR "${WORK}/packages")
set(CURRENT_PORT_DIR "${PORT}")
file(REMOVE_RECURSE "${WORK}")

# Sets OPTION to ON or OFF for each pair "feature OPTION"; a feature that vcpkg.json does not have is an error.
function(vcpkg_check_features)
  cmake_parse_arguments(PARSE_ARGV 0 arg "" "OUT_FEATURE_OPTIONS" "FEATURES")
  set(options "")
  while(arg_FEATURES)
    list(POP_FRONT arg_FEATURES feature option)
    string(JSON ignored GET "${manifest}" features "${feature}")
    if(feature IN_LIST FEATURES)
      list(APPEND options "-D${option}=ON")
    else()
      list(APPEND options "-D${option}=OFF")
    endif()
  endwhile()
  set(${arg_OUT_FEATURE_OPTIONS} "${options}" PARENT_SCOPE)
endfunction()

function(vcpkg_cmake_configure)
  cmake_parse_arguments(PARSE_ARGV 0 arg "" "SOURCE_PATH" "OPTIONS")
  execute_process(COMMAND ${CMAKE_COMMAND} -S ${arg_SOURCE_PATH} -B ${WORK}/build -DCMAKE_BUILD_TYPE=Release -DBUILD_SHARED_LIBS=OFF
                          -DCMAKE_INSTALL_PREFIX=${CURRENT_PACKAGES_DIR} ${arg_OPTIONS}
                  COMMAND_ERROR_IS_FATAL ANY OUTPUT_QUIET)
endfunction()

function(vcpkg_cmake_install)
  execute_process(COMMAND ${CMAKE_COMMAND} --build ${WORK}/build --target install COMMAND_ERROR_IS_FATAL ANY OUTPUT_QUIET)
endfunction()

# Moves the package's files to share/NAME and mends the way from there to the prefix.
function(vcpkg_cmake_config_fixup)
  cmake_parse_arguments(PARSE_ARGV 0 arg "" "CONFIG_PATH" "")
  if(NOT IS_DIRECTORY "${CURRENT_PACKAGES_DIR}/${arg_CONFIG_PATH}")
    message(FATAL_ERROR "CONFIG_PATH ${arg_CONFIG_PATH} is not installed")
  endif()
  file(COPY "${CURRENT_PACKAGES_DIR}/${arg_CONFIG_PATH}/" DESTINATION "${CURRENT_PACKAGES_DIR}/share/${PORT_NAME}")
  set(up [[get_filename_component(_IMPORT_PREFIX "${_IMPORT_PREFIX}" PATH)]])
  file(GLOB_RECURSE files "${CURRENT_PACKAGES_DIR}/share/${PORT_NAME}/*.cmake")
  foreach(file IN LISTS files)
    file(READ "${file}" text)
    string(REGEX REPLACE "(get_filename_component\\(_IMPORT_PREFIX \"[^\"]*\" PATH\\)\n)+"
           "get_filename_component(_IMPORT_PREFIX \"\${CMAKE_CURRENT_LIST_FILE}\" PATH)\n${up}\n${up}\n" text "${text}")
    string(REGEX REPLACE "\"\\\${CMAKE_CURRENT_LIST_DIR}/(\\.\\./)+\" ABSOLUTE" "\"\${CMAKE_CURRENT_LIST_DIR}/../../\" ABSOLUTE" text "${text}")
    file(WRITE "${file}" "${text}")
  endforeach()
  file(REMOVE_RECURSE "${CURRENT_PACKAGES_DIR}/${arg_CONFIG_PATH}")
  file(GLOB left "${CURRENT_PACKAGES_DIR}/share/cmake/*")
  if(NOT left)
    file(REMOVE_RECURSE "${CURRENT_PACKAGES_DIR}/share/cmake")
  endif()
endfunction()

# The prefix of a .pc file is two folders above it.
function(vcpkg_fixup_pkgconfig)
  file(GLOB files "${CURRENT_PACKAGES_DIR}/share/pkgconfig/*.pc" "${CURRENT_PACKAGES_DIR}/lib/pkgconfig/*.pc")
  if(NOT files)
    message(FATAL_ERROR "no .pc file is installed")
  endif()
  foreach(file IN LISTS files)
    file(READ "${file}" text)
    string(REGEX REPLACE "(^|\n)prefix=[^\n]*" "\\1prefix=\${pcfiledir}/../.." text "${text}")
    file(WRITE "${file}" "${text}")
  endforeach()
endfunction()

function(vcpkg_install_copyright)
  cmake_parse_arguments(PARSE_ARGV 0 arg "" "" "FILE_LIST")
  configure_file("${arg_FILE_LIST}" "${CURRENT_PACKAGES_DIR}/share/${PORT_NAME}/copyright" COPYONLY)
endfunction()

include("${PORT}/portfile.cmake")

# What vcpkg looks for after a build.
foreach(wanted include share/${PORT_NAME}/copyright share/${PORT_NAME}/usage share/${PORT_NAME}/pqkvConfig.cmake)
  if(NOT EXISTS "${CURRENT_PACKAGES_DIR}/${wanted}")
    message(FATAL_ERROR "the port installs no ${wanted}")
  endif()
endforeach()
foreach(unwanted debug lib/cmake share/cmake share/licenses)
  if(EXISTS "${CURRENT_PACKAGES_DIR}/${unwanted}")
    message(FATAL_ERROR "the port installs ${unwanted}, which vcpkg refuses")
  endif()
endforeach()
file(GLOB_RECURSE installed "${CURRENT_PACKAGES_DIR}/share/*")
foreach(file IN LISTS installed)
  file(READ "${file}" text)
  foreach(path "${CURRENT_PACKAGES_DIR}" "${WORK}/build" "${SOURCE_PATH}/include" "${SOURCE_PATH}/cmake" "${SOURCE_PATH}/ports")
    string(FIND "${text}" "${path}" at)
    if(NOT at EQUAL -1)
      message(FATAL_ERROR "${file} names ${path}")
    endif()
  endforeach()
endforeach()
