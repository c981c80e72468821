# SPDX-License-Identifier: Apache-2.0
# What `cpack -G DEB` and `cpack -G TGZ` make of an installation: the Debian package libpqkv-dev, and an archive. Both hold headers and
# package files alone, so they are the same on every architecture.
set(CPACK_PACKAGE_NAME pqkv)
set(CPACK_PACKAGE_VENDOR "The authors of pqkv")
set(CPACK_PACKAGE_CONTACT "The authors of pqkv" CACHE STRING "Maintainer of a Debian package: name <address>")
set(CPACK_PACKAGE_FILE_NAME pqkv-${PROJECT_VERSION})
set(CPACK_RESOURCE_FILE_LICENSE ${PROJECT_SOURCE_DIR}/LICENSE)
set(CPACK_GENERATOR TGZ)  # where cpack is not told
set(CPACK_SOURCE_GENERATOR "")  # the source's archive is git's

set(CPACK_DEBIAN_PACKAGE_NAME libpqkv-dev)
set(CPACK_DEBIAN_FILE_NAME DEB-DEFAULT)
set(CPACK_DEBIAN_PACKAGE_ARCHITECTURE all)
set(CPACK_DEBIAN_PACKAGE_SECTION libdevel)
set(CPACK_DEBIAN_PACKAGE_SUGGESTS "cmake, pkgconf | pkg-config")
set(CPACK_DEBIAN_PACKAGE_MULTIARCH foreign)
set(CPACK_DEBIAN_PACKAGE_DESCRIPTION "Attention over the few tokens of a long context that matter: keys are compressed to codes, each
decoding step of a language model ranks all tokens by them and attends to the best. Headers for
inference engines, with a package for CMake (pqkv::pqkv, pqkv::cuda) and a file for pkg-config.")

# Debian has a place of its own for a package's licence.
install(FILES ${PROJECT_SOURCE_DIR}/LICENSE DESTINATION ${CMAKE_INSTALL_DATADIR}/doc/libpqkv-dev RENAME copyright
        COMPONENT debian EXCLUDE_FROM_ALL)
file(CONFIGURE OUTPUT ${PROJECT_BINARY_DIR}/pqkvPackage.cmake @ONLY CONTENT [[
if(CPACK_GENERATOR STREQUAL "DEB")
  list(APPEND CPACK_INSTALL_CMAKE_PROJECTS "@PROJECT_BINARY_DIR@" pqkv debian /)
endif()
]])
set(CPACK_PROJECT_CONFIG_FILE ${PROJECT_BINARY_DIR}/pqkvPackage.cmake)
include(CPack)
