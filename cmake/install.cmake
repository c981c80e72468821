# SPDX-License-Identifier: Apache-2.0
# Installs the headers, the CMake package that find_package(pqkv) reads, and pkg-config's file.
include(GNUInstallDirs)
include(CMakePackageConfigHelpers)

set(PQKV_PACKAGE_DIR ${CMAKE_INSTALL_DATADIR}/cmake/pqkv)
install(TARGETS pqkv EXPORT pqkvTargets FILE_SET HEADERS DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
install(EXPORT pqkvTargets NAMESPACE pqkv:: DESTINATION ${PQKV_PACKAGE_DIR})
if(PQKV_CUDA)  # a file of its own, which the package reads only when component cuda is asked for
  install(TARGETS pqkv_cuda EXPORT pqkvCudaTargets)
  install(EXPORT pqkvCudaTargets NAMESPACE pqkv:: DESTINATION ${PQKV_PACKAGE_DIR})
endif()
configure_package_config_file(${CMAKE_CURRENT_LIST_DIR}/pqkvConfig.cmake.in ${PROJECT_BINARY_DIR}/pqkvConfig.cmake
                              INSTALL_DESTINATION ${PQKV_PACKAGE_DIR} NO_SET_AND_CHECK_MACRO NO_CHECK_REQUIRED_COMPONENTS_MACRO)
write_basic_package_version_file(${PROJECT_BINARY_DIR}/pqkvConfigVersion.cmake COMPATIBILITY SameMinorVersion ARCH_INDEPENDENT)
install(FILES ${PROJECT_BINARY_DIR}/pqkvConfig.cmake ${PROJECT_BINARY_DIR}/pqkvConfigVersion.cmake
        ${CMAKE_CURRENT_LIST_DIR}/pqkvComponents.cmake ${CMAKE_CURRENT_LIST_DIR}/pqkvCompiled.cmake DESTINATION ${PQKV_PACKAGE_DIR})
install(DIRECTORY ${CMAKE_CURRENT_LIST_DIR}/compiled DESTINATION ${PQKV_PACKAGE_DIR})
# For pkg-config. Its prefix is found from where the file lies, so that an installation can be moved.
file(RELATIVE_PATH PQKV_PC_PREFIX /${CMAKE_INSTALL_DATADIR}/pkgconfig /)
string(REGEX REPLACE "/$" "" PQKV_PC_PREFIX "${PQKV_PC_PREFIX}")
set(PQKV_PC_INCLUDEDIR "\${prefix}/${CMAKE_INSTALL_INCLUDEDIR}")
if(IS_ABSOLUTE "${CMAKE_INSTALL_DATADIR}")
  file(RELATIVE_PATH PQKV_PC_PREFIX "${CMAKE_INSTALL_DATADIR}/pkgconfig" "${CMAKE_INSTALL_PREFIX}")
endif()
if(IS_ABSOLUTE "${CMAKE_INSTALL_INCLUDEDIR}")
  set(PQKV_PC_INCLUDEDIR "${CMAKE_INSTALL_INCLUDEDIR}")
endif()
configure_file(${CMAKE_CURRENT_LIST_DIR}/pqkv.pc.in ${PROJECT_BINARY_DIR}/pqkv.pc @ONLY)
install(FILES ${PROJECT_BINARY_DIR}/pqkv.pc DESTINATION ${CMAKE_INSTALL_DATADIR}/pkgconfig)

install(FILES ${PROJECT_SOURCE_DIR}/LICENSE DESTINATION ${CMAKE_INSTALL_DATADIR}/licenses/pqkv)
