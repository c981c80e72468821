// SPDX-License-Identifier: Apache-2.0
// Which tokens a CTA of attention() takes: a list has parts, and a CTA is one part for up to eight query heads.
#pragma once

#include "../../attention.hpp"
#include "../../core/canonical.hpp"
#include "attention_merge.cuh"

namespace pqkv::inline PQKV_MODE::detail {

/// Query heads per list, lists per KV head, the softmax's scale, and how many tokens a list's parts but the last have at least.
struct attention_shape {
  unsigned g, lists_per_head;
  canonical::softmax_scale scale;
  std::uint32_t least_part;
};
inline constexpr std::uint32_t least_part = 512;  // of a call with the parts of long lists: a multiple of every granule; not measured

/// Into how many parts a call cuts each list. Lists with room for at most a few thousand tokens are cut into fewer parts, so that no CTA
/// begins without work. In other calls every list is cut into as many parts as a long one, and the last parts of a short list are empty.
inline std::size_t attention_splits(const token_set<space::device>& tokens, std::size_t query_heads) {
  const std::size_t most = attention_device_splits(query_heads), room = tokens.indices.data != nullptr ? tokens.indices.extent(1) : 0;
  return room != 0 && room < most * least_part ? attention_device_short_splits(query_heads) : most;
}

/// The work of one CTA: part blockIdx.x of the tokens of list blockIdx.y, for group blockIdx.z of up to Queries query heads.
template <unsigned Queries>
struct attention_share {
  unsigned first_query, queries;
  std::size_t kv_head;
  std::uint32_t begin, end;

  /// @param granule  the size of every part but the last is a multiple of it
  __device__ attention_share(attention_shape shape, const token_set<space::device>& of, unsigned granule)
      : tokens_(of), list_(blockIdx.y), span_(of.spans(list_)) {
    first_query = list_ * shape.g + blockIdx.z * Queries;
    const unsigned left = shape.g - blockIdx.z * Queries;
    queries = left < Queries ? left : Queries;
    kv_head = shape.lists_per_head == 1 ? list_ : list_ / shape.lists_per_head;
    listed_ = of.indices.data != nullptr ? of.counts(list_) : 0;
    const std::uint32_t window = span_.window_end > span_.window_begin ? span_.window_end - span_.window_begin : 0,
                        all = span_.leading + listed_ + window,
                        even = ((all + gridDim.x - 1) / gridDim.x + granule - 1) / granule * granule,
                        share = even < shape.least_part ? shape.least_part : even;
    begin = blockIdx.x * share < all ? blockIdx.x * share : all;
    end = all - begin < share ? all : begin + share;
  }
  /// Writes that this part has no tokens. By all threads.
  __device__ void write_nothing(const attention_partials& parts) const {
    const std::size_t part = std::size_t{blockIdx.x} * parts.hq + first_query;
    if (threadIdx.x < queries) parts.tops[part + threadIdx.x] = parts.totals[part + threadIdx.x] = 0;
    for (unsigned i = threadIdx.x; i < queries * parts.pitch; i += blockDim.x) parts.row(part)[i] = 0;
  }
  /// The i-th token of the list.
  __device__ std::size_t token_at(std::uint32_t i) const {
    if (i < span_.leading) return i;
    i -= span_.leading;
    if (i < listed_) return static_cast<std::size_t>(tokens_.indices(list_, i));
    return span_.window_begin + (i - listed_);
  }

 private:
  const token_set<space::device>& tokens_;
  unsigned list_;
  token_span span_;
  std::uint32_t listed_;
};

}  // namespace pqkv::detail
