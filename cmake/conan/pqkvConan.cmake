# SPDX-License-Identifier: Apache-2.0
# Read at the end of the package file that Conan's CMakeDeps writes, which knows include paths alone: makes of it what find_package(pqkv)
# finds in an installation by CMake.

# The headers are C++20, whatever standard the profile names.
target_compile_features(pqkv::pqkv INTERFACE cxx_std_20)

# Ranges of versions as CMake's own SameMinorVersion has them; Conan's version file looks at their lower end alone.
function(pqkv_is_range_compatible result)
  set(file "${CMAKE_CURRENT_BINARY_DIR}/CMakeFiles/pqkvVersion.cmake")
  include(CMakePackageConfigHelpers)
  write_basic_package_version_file("${file}" VERSION ${pqkv_VERSION} COMPATIBILITY SameMinorVersion ARCH_INDEPENDENT)
  foreach(part "" _MAJOR _MINOR _RANGE _RANGE_MAX _MIN_MAJOR _MIN_MINOR _MAX _MAX_MAJOR _MAX_MINOR)
    set(PACKAGE_FIND_VERSION${part} "${pqkv_FIND_VERSION${part}}")
  endforeach()
  include("${file}")
  set(${result} ${PACKAGE_VERSION_COMPATIBLE} PARENT_SCOPE)
endfunction()

set(pqkv_CUDA_TARGETS "${CMAKE_CURRENT_LIST_DIR}/pqkvCudaTarget.cmake")
include("${CMAKE_CURRENT_LIST_DIR}/pqkvComponents.cmake")
if(pqkv_FIND_VERSION_RANGE)
  pqkv_is_range_compatible(pqkv_in_range)
  if(NOT pqkv_in_range)
    set(pqkv_FOUND FALSE)
    set(pqkv_NOT_FOUND_MESSAGE "pqkv ${pqkv_VERSION} is not compatible with the versions ${pqkv_FIND_VERSION_RANGE}.")
  endif()
endif()
