// SPDX-License-Identifier: Apache-2.0
// Loops over elements that are copied out of the bytes one by one: compilers make unaligned vector loads of that.
#include "weight_type.hpp"

#include <cstdint>
#include <cstring>
#include <pqkv/core/scalar.hpp>

namespace minillama {
namespace {

template <class Bits>
Bits bits_at(const std::byte* bytes, std::size_t i) {
  Bits bits;
  std::memcpy(&bits, bytes + i * sizeof(Bits), sizeof(Bits));
  return bits;
}

/// The float of a finite half. Its bits are shifted to where a float has them, the sign with them, and the exponent goes from a bias of
/// 15 to one of 127 by a multiplication, which makes a normal float of a denormal half too. This needs no conversion instructions (F16C).
/// A CPU may be slow at denormal factors, but few weights are so small.
float float_of_half(std::uint16_t half) {
  const std::int32_t shifted = static_cast<std::int32_t>(static_cast<std::uint32_t>(half) << 16) >> 3;  // copies of the sign come in
  return pqkv::float_from_bits(static_cast<std::uint32_t>(shifted) & 0x8fffe000u) * 0x1p112f;
}

/// @param exponent  the bits that are all ones in NaN and infinity, and in nothing else
template <class Bits>
std::size_t first_with(Bits exponent, std::span<const std::byte> bytes) {
  const std::size_t count = bytes.size() / sizeof(Bits);
  unsigned any = 0;  // without a way out of the loop, so that it is vectorised
  for (std::size_t i = 0; i < count; ++i) any |= (bits_at<Bits>(bytes.data(), i) & exponent) == exponent ? 1u : 0u;
  if (any == 0) return count;
  std::size_t first = 0;
  while ((bits_at<Bits>(bytes.data(), first) & exponent) != exponent) ++first;
  return first;
}

}  // namespace

void to_floats(weight_type type, std::span<const std::byte> bytes, std::span<float> out) {
  const std::byte* const from = bytes.data();
  switch (type) {
    case weight_type::float32:
      std::memcpy(out.data(), from, out.size_bytes());
      return;
    case weight_type::bfloat16:
      for (std::size_t i = 0; i < out.size(); ++i)
        out[i] = pqkv::float_from_bits(static_cast<std::uint32_t>(bits_at<std::uint16_t>(from, i)) << 16);
      return;
    case weight_type::float16:
      for (std::size_t i = 0; i < out.size(); ++i) out[i] = float_of_half(bits_at<std::uint16_t>(from, i));
      return;
  }
}

std::size_t first_non_finite(weight_type type, std::span<const std::byte> bytes) {
  switch (type) {
    case weight_type::float32:
      return first_with<std::uint32_t>(0x7f800000, bytes);
    case weight_type::bfloat16:
      return first_with<std::uint16_t>(0x7f80, bytes);
    case weight_type::float16:
      break;
  }
  return first_with<std::uint16_t>(0x7c00, bytes);
}

}  // namespace minillama
