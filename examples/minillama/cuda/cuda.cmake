# SPDX-License-Identifier: Apache-2.0
# `--device cuda` of minillama_core. Two files are for nvcc, compiled by custom commands: CMake 3.25 knows no C++20 of an nvcc of version
# 13, and a language must be enabled above every folder that links to it, the project's root too, which needs no toolkit. The rest is
# plain C++ over the runtime and cuBLAS.
#
# Sets MINILLAMA_HAS_CUDA, for the tests too.
set(MINILLAMA_CUDA AUTO CACHE STRING "minillama --device cuda: ON, OFF, or AUTO where nvcc and cuBLAS are found")
set_property(CACHE MINILLAMA_CUDA PROPERTY STRINGS AUTO ON OFF)
set(MINILLAMA_NVCC_ARCHITECTURE "-gencode;arch=compute_90,code=sm_90;-gencode;arch=compute_80,code=compute_80" CACHE STRING
    "nvcc's options for the devices to compile for; default: code for 9.0, and PTX from 8.0 on")
mark_as_advanced(MINILLAMA_NVCC_ARCHITECTURE)

set(MINILLAMA_HAS_CUDA OFF CACHE INTERNAL "minillama has --device cuda")
set(wanted ${MINILLAMA_CUDA})
if(MINILLAMA_CUDA STREQUAL "AUTO" AND PQKV_SANITIZE)  # they see nothing new in code that runs on a GPU, and nvcc is slow
  set(wanted OFF)
endif()
if(wanted)
  find_program(PQKV_NVCC nvcc PATHS /usr/local/cuda/bin DOC "nvcc, for compiling the CUDA files")
  find_package(CUDAToolkit QUIET)  # CUDAToolkit_ROOT names one elsewhere
  if(PQKV_NVCC AND TARGET CUDA::cublas AND CUDAToolkit_VERSION VERSION_GREATER_EQUAL 12)  # which knows C++20
    set(MINILLAMA_HAS_CUDA ON CACHE INTERNAL "minillama has --device cuda")
  else()
    set(message "minillama: no nvcc with cuBLAS of CUDA 12 or later found, built without --device cuda")
    if(MINILLAMA_CUDA STREQUAL "AUTO" AND NOT PQKV_REQUIRE_CUDA)
      message(STATUS "${message}")
    else()
      message(FATAL_ERROR "${message}, but MINILLAMA_CUDA or PQKV_REQUIRE_CUDA is ON")
    endif()
  endif()
endif()

# Together these are what a test replaces by the same over an emulated GPU, and so may be one file, which reads their headers once.
set(device_sources decoder model prefill products)
list(TRANSFORM device_sources REPLACE "(.+)" "${CMAKE_CURRENT_SOURCE_DIR}/cuda/\\1.cpp")
if(PQKV_GROUP_TESTS)
  list(TRANSFORM device_sources REPLACE "(.+)" "#include \"\\1\"\n" OUTPUT_VARIABLE includes)
  string(JOIN "" includes ${includes})
  set(device_sources ${CMAKE_CURRENT_BINARY_DIR}/cuda/device.cpp)
  file(CONFIGURE OUTPUT ${device_sources} CONTENT "${includes}" @ONLY)
endif()
set(MINILLAMA_DEVICE_SOURCES ${device_sources} CACHE INTERNAL "Files of --device cuda that need no nvcc")

if(NOT MINILLAMA_HAS_CUDA)
  target_sources(minillama_core PRIVATE cuda/absent.cpp)
  return()
endif()

set(minillama_nvcc_flags -std=c++20 -O3 -Xcompiler=-Wall,-Wextra ${MINILLAMA_NVCC_ARCHITECTURE})
if(PQKV_QUICK_TESTS AND NOT EXISTS /dev/nvidia0)  # as in tests/cuda: what cannot run here must compile, for one device and quickly
  set(minillama_nvcc_flags -std=c++20 -Xcompiler=-Wall,-Wextra -arch=sm_90)
  execute_process(COMMAND ${PQKV_NVCC} --help OUTPUT_VARIABLE nvcc_help)
  if(nvcc_help MATCHES "--Ofast-compile")  # of CUDA 12.9 and later
    list(APPEND minillama_nvcc_flags --Ofast-compile=max)
  endif()
endif()
if(COMMAND pqkv_own_target AND PQKV_WERROR)
  list(APPEND minillama_nvcc_flags -Xcompiler=-Werror -Werror all-warnings)
endif()
if(MINILLAMA_NATIVE)  # as the files that call these: the library's names say what a file was built for
  list(APPEND minillama_nvcc_flags -Xcompiler=-march=native)
endif()
foreach(name kernels layer_caches)
  set(object ${CMAKE_CURRENT_BINARY_DIR}/cuda/${name}.o)
  set(source ${CMAKE_CURRENT_SOURCE_DIR}/cuda/${name}.cu)
  add_custom_command(
    OUTPUT ${object}
    COMMAND ${PQKV_NVCC} ${minillama_nvcc_flags} "-I$<JOIN:$<TARGET_PROPERTY:pqkv::pqkv,INTERFACE_INCLUDE_DIRECTORIES>,;-I>"
            -MD -MF ${object}.d -c ${source} -o ${object}
    DEPENDS ${source}
    DEPFILE ${object}.d
    COMMENT "nvcc cuda/${name}.cu"
    COMMAND_EXPAND_LISTS VERBATIM)
  target_sources(minillama_core PRIVATE ${object})
endforeach()
file(MAKE_DIRECTORY ${CMAKE_CURRENT_BINARY_DIR}/cuda)
target_sources(minillama_core PRIVATE cuda/engine.cpp ${MINILLAMA_DEVICE_SOURCES})
target_link_libraries(minillama_core PRIVATE CUDA::cublas CUDA::cudart)
