// SPDX-License-Identifier: Apache-2.0
// The number formats that weights are stored in, and their way to float. Bytes may stand at any address: in a mapped file they do.
#pragma once
#include <cstddef>
#include <span>

namespace minillama {

enum class weight_type { float32, bfloat16, float16 };

inline std::size_t element_bytes(weight_type type) { return type == weight_type::float32 ? 4 : 2; }

/// The type that holds the values of both: float where they differ.
inline weight_type wider(weight_type a, weight_type b) { return a == b ? a : weight_type::float32; }

/// Converts elements to float, exactly. Halves go by shifts of their bits, in a loop that compilers vectorise for every CPU.
///
/// @param bytes  elements of the type
/// @param out    as many floats, written
/// @pre    every element is finite: first_non_finite() has been asked
void to_floats(weight_type type, std::span<const std::byte> bytes, std::span<float> out);

/// The index of the first NaN or infinity, or the number of elements. Tested on the bits, because a build with -ffast-math may assume
/// that neither exists.
std::size_t first_non_finite(weight_type type, std::span<const std::byte> bytes);

}  // namespace minillama
