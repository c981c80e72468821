// SPDX-License-Identifier: Apache-2.0
// Stands in for ggml in the tests: the few names of it that include/pqkv/adapt/ggml.hpp uses, with the same meaning, in our own words.
// examples/llama_cpp is built against the real one.
#pragma once

#include <cstddef>
#include <cstdint>

inline constexpr int GGML_MAX_DIMS = 4;
inline constexpr int GGML_MAX_NAME = 64;

enum ggml_type { GGML_TYPE_F32 = 0, GGML_TYPE_F16 = 1, GGML_TYPE_Q8_0 = 8, GGML_TYPE_BF16 = 30 };

struct ggml_backend_buffer {
  bool is_host;
};

/// Axes from the innermost: ne elements, nb bytes from one to the next.
struct ggml_tensor {
  ggml_type type = GGML_TYPE_F32;
  ggml_backend_buffer* buffer = nullptr;
  std::int64_t ne[GGML_MAX_DIMS]{1, 1, 1, 1};
  std::size_t nb[GGML_MAX_DIMS]{};
  void* data = nullptr;
  char name[GGML_MAX_NAME]{};
};

inline const char* ggml_type_name(ggml_type type) {
  return type == GGML_TYPE_F32 ? "f32" : type == GGML_TYPE_F16 ? "f16" : type == GGML_TYPE_BF16 ? "bf16" : "q8_0";
}
