// SPDX-License-Identifier: Apache-2.0
// Codes: for every token, KV head and subspace the index of the nearest centroid. One byte for each code, in planes: plane j of a head
// holds one code of every token, so that a scan reads it as a stream. A plane's stride is the capacity rounded up to 128.
#pragma once

#include <cstdint>

#include "codebook.hpp"

namespace pqkv::inline PQKV_MODE {
namespace op {
struct encode {};
struct decode {};
}  // namespace op

template <class Space = space::host>
using codes_view = view<const std::uint8_t, 3, Space>;  // [h, m, n], last axis contiguous
/// Codes to be written; as codes_view.
template <class Space = space::host>
using mutable_codes_view = view<std::uint8_t, 3, Space>;

/// The distance between two planes that hold `capacity` tokens each.
PQKV_HD constexpr std::size_t code_plane_stride(std::size_t capacity) { return (capacity + 127) / 128 * 128; }

/// Owner of the codes of `capacity` tokens in host memory. One thread may write at a time, or any number read. Its views end with it.
class codes {
 public:
  codes() = default;
  /// @throws value_error when the shape is out of bounds
  codes(const pq_shape& shape, std::size_t capacity) : shape_(shape), capacity_(capacity) {
    require_ok(can_quantize(shape, "codes"));
    bytes_ = buffer<std::uint8_t>(shape.kv_heads * shape.subspaces * code_plane_stride(capacity));
  }
  static constexpr std::size_t required_bytes(const pq_shape& shape, std::size_t capacity) {
    return shape.kv_heads * shape.subspaces * code_plane_stride(capacity);
  }
  /// Takes codes from the caller's memory of any space, or counts the bytes.
  template <class Space = space::host>
  static constexpr mutable_codes_view<Space> place(arena& memory, const pq_shape& shape, std::size_t capacity) {
    const std::size_t h = shape.kv_heads, m = shape.subspaces, plane = code_plane_stride(capacity);
    return {memory.take<std::uint8_t>(h * m * plane), {h, m, capacity}, {m * plane, plane, 1}};
  }
  std::size_t capacity() const { return capacity_; }
  std::size_t size_bytes() const { return bytes_.size_bytes(); }
  mutable_codes_view<> mutable_view() {
    const std::size_t plane = code_plane_stride(capacity_);
    return {bytes_.data(), {shape_.kv_heads, shape_.subspaces, capacity_}, {shape_.subspaces * plane, plane, 1}};
  }
  codes_view<> view() const { return const_cast<codes*>(this)->mutable_view(); }

 private:
  pq_shape shape_{};
  std::size_t capacity_{};
  buffer<std::uint8_t> bytes_;
};

/// The checks of encode().
template <class Keys, class Book, class Codes>
constexpr status can_encode(const Keys& keys, const Book& book, const Codes& codes) noexcept {
  if (const status s = can_use_codebook(book, "encode"); !s.ok()) return s;
  return detail::checks("encode")
      .extent("keys.extent(0)", keys.extent(0), book.heads(), "h, from codebook")
      .extent("keys.extent(2)", keys.extent(2), book.head_dim(), "d, from codebook")
      .extent("codes.extent(0)", codes.extent(0), book.heads(), "h, from codebook")
      .extent("codes.extent(1)", codes.extent(1), book.subspaces(), "m, from codebook")
      .extent("codes.extent(2)", codes.extent(2), keys.extent(1), "n, from keys")
      .extent("codes.stride(2)", codes.stride(2), 1, "last axis contiguous");
}

/// Encodes keys: codes[h, j, t] = argmin over x of |keys[h, t, j] - mean[h, j] - centroids[h, j, :, x]|^2, ties to the lower index. Under
/// key_metric::inner_product, y = keys[h, t, j] - mean[h, j] gets one more coordinate, sqrt(max(R - |y|^2, 0)).
///
/// @param keys   [h, n, d] float, half or bfloat16, any strides
/// @param book   a trained codebook
/// @param codes  [h, m, n] uint8, written; a key with a non-finite element gets code 0 everywhere, and a subspace whose |y|^2
///               overflows under key_metric::inner_product gets code 0
/// @throws shape_error, value_error
/// @cost   n * c * d distance terms a head; no allocation; asynchronous on device policies
template <exec::policy P, class T, class Space>
requires storage_scalar<T> && reachable_from<Space, P>
void encode(const P& policy, view<T, 3, Space> keys, codebook_view<typename P::space_type> book,
            mutable_codes_view<typename P::space_type> codes) {
  require_ok(can_encode(keys, book, codes));
  detail::run_operation<op::encode>(policy, keys, book, codes);
}

/// The checks of decode().
template <class Codes, class Book, class Keys>
constexpr status can_decode(const Codes& codes, const Book& book, const Keys& keys) noexcept {
  if (const status s = can_use_codebook(book, "decode"); !s.ok()) return s;
  return detail::checks("decode")
      .extent("codes.extent(0)", codes.extent(0), book.heads(), "h, from codebook")
      .extent("codes.extent(1)", codes.extent(1), book.subspaces(), "m, from codebook")
      .extent("codes.stride(2)", codes.stride(2), 1, "last axis contiguous")
      .extent("keys.extent(0)", keys.extent(0), book.heads(), "h, from codebook")
      .extent("keys.extent(1)", keys.extent(1), codes.extent(2), "n, from codes")
      .extent("keys.extent(2)", keys.extent(2), book.head_dim(), "d, from codebook");
}

/// The keys that codes stand for: keys[h, t, j] = mean[h, j] + centroids[h, j, :, codes[h, j, t]].
///
/// @param codes  [h, m, n] uint8, each below c
/// @param book   the codebook that encoded them; the coordinate that key_metric::inner_product adds is left out
/// @param keys   [h, n, d] float, half or bfloat16, any strides, written, rounded once
/// @throws shape_error
/// @cost   writes n * d numbers a head; no allocation; asynchronous on device policies
template <exec::policy P, writable_scalar T, class Space>
requires reachable_from<Space, P>
void decode(const P& policy, codes_view<typename P::space_type> codes, codebook_view<typename P::space_type> book, view<T, 3, Space> keys) {
  require_ok(can_decode(codes, book, keys));
  detail::run_operation<op::decode>(policy, codes, book, keys);
}

}  // namespace pqkv
