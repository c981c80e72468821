# SPDX-License-Identifier: Apache-2.0
# Finds the components that find_package(pqkv) was asked for, or says why not. Read by the package file of CMake's installation and by
# that of Conan, once pqkv::pqkv is there.
#
# Takes pqkv_CUDA_TARGETS, the file that defines pqkv::cuda; it is absent where the component was left out.
set(pqkv_host_FOUND TRUE)
set(pqkv_cuda_FOUND FALSE)
if("cuda" IN_LIST pqkv_FIND_COMPONENTS AND EXISTS "${pqkv_CUDA_TARGETS}")
  find_package(CUDAToolkit QUIET)
  if(CUDAToolkit_FOUND)
    include("${pqkv_CUDA_TARGETS}")
    set(pqkv_cuda_FOUND TRUE)
  endif()
endif()

set(pqkv_compiled_FOUND TRUE)
if("compiled" IN_LIST pqkv_FIND_COMPONENTS)
  include("${CMAKE_CURRENT_LIST_DIR}/pqkvCompiled.cmake")
endif()

foreach(component IN LISTS pqkv_FIND_COMPONENTS)
  if(pqkv_${component}_FOUND OR NOT pqkv_FIND_REQUIRED_${component})
    continue()
  endif()
  set(pqkv_FOUND FALSE)
  if(NOT component STREQUAL "cuda")
    set(pqkv_NOT_FOUND_MESSAGE "pqkv ${pqkv_VERSION}: there is no component '${component}'; there are 'host' (pqkv::pqkv), 'compiled' (pqkv::compiled) and 'cuda' (pqkv::cuda).")
  elseif(EXISTS "${pqkv_CUDA_TARGETS}")
    set(pqkv_NOT_FOUND_MESSAGE "pqkv ${pqkv_VERSION}: component 'cuda' needs the CUDA toolkit, which was not found; CUDAToolkit_ROOT may say where it is.")
  else()
    set(pqkv_NOT_FOUND_MESSAGE "pqkv ${pqkv_VERSION}: component 'cuda' was left out when this package was made (PQKV_CUDA=OFF; with Conan with_cuda=False).")
  endif()
endforeach()
