# SPDX-License-Identifier: Apache-2.0
# tests/unit/mpi_test.cpp and the example of two processes, run by mpirun on one machine. Where MPI is not installed, one test says so.
set(MPI_CXX_SKIP_MPICXX ON)
find_package(MPI COMPONENTS CXX QUIET)
if(NOT TARGET MPI::MPI_CXX OR NOT MPIEXEC_EXECUTABLE)
  set(message "MPI: not found, include/pqkv/adapt/mpi.hpp is not tested (Debian: libopenmpi-dev and openmpi-bin)")
  message(STATUS "${message}")
  add_test(NAME mpi.lives COMMAND ${CMAKE_COMMAND} -E echo "${message}")
  set_tests_properties(mpi.lives PROPERTIES LABELS mpi SKIP_REGULAR_EXPRESSION "MPI: not found")
  return()
endif()

add_executable(pqkv_mpi_tests unit/mpi_test.cpp)
target_link_libraries(pqkv_mpi_tests PRIVATE pqkv_test_base pqkv::compiled MPI::MPI_CXX Threads::Threads)
pqkv_own_target(pqkv_mpi_tests)
target_compile_options(pqkv_mpi_tests PRIVATE ${quick_flags})

# Open MPI refuses root and more ranks than cores unless it is told, and should give its core away while it waits. OMPI_MCA_rmaps is of
# version 4, PRTE_MCA_rmaps of version 5.
set(mpi_environment OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 OMPI_MCA_rmaps_base_oversubscribe=1
    PRTE_MCA_rmaps_default_mapping_policy=:oversubscribe OMPI_MCA_mpi_yield_when_idle=1 OMPI_MCA_btl_base_warn_component_unused=0)
# mpirun ends with 0 only if every process does: no regular expression here, with which ctest would not look at that. A process fails, too,
# where it does not meet as many ranks as it is told.
foreach(ranks 1 2 3 4 8)
  add_test(NAME mpi.lives_${ranks} COMMAND ${MPIEXEC_EXECUTABLE} ${MPIEXEC_NUMPROC_FLAG} ${ranks} $<TARGET_FILE:pqkv_mpi_tests> ${ranks})
  set_tests_properties(mpi.lives_${ranks} PROPERTIES LABELS mpi ENVIRONMENT "${mpi_environment}" PROCESSORS 2 TIMEOUT 300)
endforeach()
if(PQKV_BUILD_EXAMPLES)
  add_executable(example_two_processes ${PROJECT_SOURCE_DIR}/examples/two_processes/main.cpp)
  target_link_libraries(example_two_processes PRIVATE pqkv::compiled MPI::MPI_CXX)
  pqkv_own_target(example_two_processes)
  target_compile_options(example_two_processes PRIVATE ${quick_flags})
  add_test(NAME examples.two_processes COMMAND ${MPIEXEC_EXECUTABLE} ${MPIEXEC_NUMPROC_FLAG} 2 $<TARGET_FILE:example_two_processes>)
  set_tests_properties(examples.two_processes PROPERTIES LABELS mpi ENVIRONMENT "${mpi_environment}" PROCESSORS 2 TIMEOUT 300)
endif()
