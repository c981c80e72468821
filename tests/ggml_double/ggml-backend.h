// SPDX-License-Identifier: Apache-2.0
// See ggml.h beside it.
#pragma once

#include "ggml.h"

using ggml_backend_buffer_t = ggml_backend_buffer*;

inline bool ggml_backend_buffer_is_host(ggml_backend_buffer_t buffer) { return buffer->is_host; }
