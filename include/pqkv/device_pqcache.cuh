// SPDX-License-Identifier: Apache-2.0
// The cache of one layer on a device, for files that nvcc compiles: pqkv::device_pqcache<T, Selector>, which is pqcache over rows in device
// memory (pqcache.hpp), and the backend that runs it. append(), attend(), retrieve() and truncate() by lengths only enqueue work and read
// each sequence's length from the device. So one decode step captured in a CUDA graph can be replayed while the sequences grow. All memory
// is taken at construction. Not for caches that outgrow the device: their rows must stay on the host.
#pragma once

#include "cuda.cuh"
#include "pqcache.hpp"
