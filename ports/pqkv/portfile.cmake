# SPDX-License-Identifier: Apache-2.0
# A port for vcpkg that installs the source tree it lies in: vcpkg install pqkv --overlay-ports=SOURCE/ports
# vcpkg does not see when that tree changes: after an update, remove the package first, or install with --no-binarycaching.
set(VCPKG_BUILD_TYPE release)  # headers alone

get_filename_component(SOURCE_PATH "${CMAKE_CURRENT_LIST_DIR}/../.." ABSOLUTE)
if(NOT EXISTS "${SOURCE_PATH}/include/pqkv/pqkv.hpp")
  message(FATAL_ERROR "pqkv: this port belongs into the source tree of pqkv, and ${SOURCE_PATH} is not one")
endif()

vcpkg_check_features(OUT_FEATURE_OPTIONS FEATURE_OPTIONS FEATURES cuda PQKV_CUDA)
vcpkg_cmake_configure(
  SOURCE_PATH "${SOURCE_PATH}"
  OPTIONS -DPQKV_BUILD_TESTS=OFF -DPQKV_BUILD_BENCH=OFF -DPQKV_BUILD_EXAMPLES=OFF ${FEATURE_OPTIONS})
vcpkg_cmake_install()
vcpkg_cmake_config_fixup(CONFIG_PATH share/cmake/pqkv)
vcpkg_fixup_pkgconfig()
file(REMOVE_RECURSE "${CURRENT_PACKAGES_DIR}/share/licenses")  # vcpkg has a place of its own for it, share/pqkv/copyright
vcpkg_install_copyright(FILE_LIST "${SOURCE_PATH}/LICENSE")
file(INSTALL "${CMAKE_CURRENT_LIST_DIR}/usage" DESTINATION "${CURRENT_PACKAGES_DIR}/share/pqkv")
