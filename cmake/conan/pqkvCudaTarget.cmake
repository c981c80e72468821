# SPDX-License-Identifier: Apache-2.0
# pqkv::cuda in a package of Conan's, as CMake's installation defines it.
if(NOT TARGET pqkv::cuda)
  add_library(pqkv::cuda INTERFACE IMPORTED)
  set_target_properties(pqkv::cuda PROPERTIES INTERFACE_LINK_LIBRARIES "pqkv::pqkv;CUDA::cudart")
endif()
