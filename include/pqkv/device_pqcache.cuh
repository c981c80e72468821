// SPDX-License-Identifier: Apache-2.0
// The cache of one layer on a device, for files that nvcc compiles: pqkv::device_pqcache<T, Selector>, which is pqcache over rows in device
// memory (pqcache.hpp), and the backend that runs it. append(), attend(), retrieve() and truncate() by lengths only enqueue and read where
// each sequence stands from the device, so one decode step captured in a CUDA graph is replayed while the sequences grow. All memory is
// taken at construction. Not for tensors that outgrow the device: there the rows must stay on the host.
#pragma once

#include "cuda.cuh"
#include "pqcache.hpp"
