// SPDX-License-Identifier: Apache-2.0
// One cache over several ranks with rows in device memory, for files that nvcc compiles: pqkv::scale::context_parallel and the backend that
// runs it. Bring a communicator of devices: adapt/nccl.cuh or adapt/peer.cuh. Not part of cuda.cuh: sequences that fit one device need none
// of it.
#pragma once

#include "cuda.cuh"
#include "scale/device_context_parallel.hpp"

#include "detail/cuda/share_steps.cuh"
#include "detail/cuda/share_steps_agreement.cuh"
#include "detail/cuda/share_steps_choice.cuh"
#include "detail/cuda/share_steps_in_one.cuh"
#include "detail/cuda/share_steps_merging.cuh"
#include "detail/cuda/share_steps_tokens.cuh"
