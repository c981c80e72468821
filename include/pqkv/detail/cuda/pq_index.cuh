// SPDX-License-Identifier: Apache-2.0
// The index of product quantization on the device: encodes the keys of tokens that leave windows, with one CTA for each key; replaces
// centroids; and copies keys out of stores that are not strided.
#pragma once

#include <algorithm>

#include "../../core/canonical.hpp"
#include "../../core/row.hpp"
#include "../../search/pq_index.hpp"
#include "axes.cuh"
#include "block/cluster.cuh"
#include "block/copy.cuh"
#include "block/nearest.cuh"
#include "block/reduce.cuh"
#include "block/shared.cuh"
#include "cell_index.cuh"
#include "kernel.cuh"

namespace pqkv::inline PQKV_MODE {
namespace detail {

/// The subspaces that one CTA encodes, where several CTAs share a key.
struct subspace_share {
  unsigned first, last;

  /// All subspaces. @param m  how many there are
  PQKV_HD static constexpr subspace_share all(unsigned m) { return {0, m}; }
  /// Those of one of `shares` CTAs: each has at most most(m, shares).
  PQKV_HD static constexpr subspace_share of(unsigned m, unsigned shares, unsigned which) {
    const unsigned each = most(m, shares), first = each * which < m ? each * which : m;
    return {first, first + each < m ? first + each : m};
  }
  PQKV_HD static constexpr unsigned most(unsigned m, unsigned shares) { return (m + shares - 1) / shares; }
  PQKV_HD constexpr unsigned size() const { return last - first; }
};

/// A CTA encodes keys one after the other, in all subspaces or in some; each thread computes the distance to a centroid of one of the
/// subspaces. The codes are those of encode().
class key_encoder {
 public:
  struct scratch {
    float y[max_head_dim + max_subspaces];  // [m, width] the key minus the mean
    unsigned long long best[max_subspaces];
    std::uint8_t usable[max_subspaces];
  };
  /// Bytes of shared memory for a head's centroids in so many subspaces; 0 if a CTA reads them from device memory.
  /// @param room  how many bytes a CTA may have
  static std::size_t shared_bytes(const codebook_view<space::device>& book, unsigned subspaces, std::size_t room) {
    const std::size_t bytes = block::shared_memory::bytes<float>(subspaces * book.centroids.stride(1));
    return bytes <= std::min<std::size_t>(room, tuning::encode_shared_bytes) ? bytes : 0;
  }
  /// Begins to copy a head's centroids into dynamic shared memory.
  __device__ static const float* copy_centroids(const codebook_view<space::device>& book, std::size_t head, const subspace_share& own) {
    const unsigned count = own.size() * static_cast<unsigned>(book.centroids.stride(1));
    float* room = block::shared_memory().take<float>(count);
    const float* from = &book.centroids(head, own.first, 0, 0);
#pragma unroll 1
    for (unsigned i = 4 * threadIdx.x; i < count; i += 4 * blockDim.x) block::copy_async(block::shared_address(room + i), from + i, 16);
    block::end_copies();
    return room;
  }

  /// What is needed of a head for one coordinate of its keys.
  struct coordinate {
    pair_axes<space::device>::axis axis;
    float mean;
    __device__ coordinate(const codebook_view<space::device>& book, const pair_axes<space::device>& axes, std::size_t head, std::size_t i)
        : axis(axes.at(head, i)), mean(book.mean(head, i)) {}
    /// A thread's first one, to be read early. Threads that have none read another.
    __device__ static coordinate first(const codebook_view<space::device>& book, const pair_axes<space::device>& axes, std::size_t head) {
      return {book, axes, head, threadIdx.x < book.head_dim() ? threadIdx.x : 0};
    }
  };

  /// @param share   which subspaces are encoded
  /// @param copied  what copy_centroids() returned: then only keys of that head can be encoded; null: centroids are read from device memory
  __device__ key_encoder(scratch& own, const codebook_view<space::device>& book, const pair_axes<space::device>& axes,
                         const subspace_share& share, const float* copied = nullptr)
      : scratch_(own),
        book_(book),
        axes_(axes),
        own_(share),
        m_(static_cast<unsigned>(book.subspaces())),
        ds_(static_cast<unsigned>(book.sub_dim())),
        width_(static_cast<unsigned>(book.row_dim())),
        c_(static_cast<unsigned>(book.size())),
        copied_(copied) {}

  /// All threads, in whole warps, write the codes of token t. Thread 0 returns the token's cell, if all subspaces are encoded and cells fit
  /// in 32 bits. A barrier must stand between two calls.
  /// @param first  coordinate::first()
  template <class T>
  __device__ std::uint32_t encode(std::size_t head, const coordinate& first, kv_row<T> key, const mutable_codes_view<space::device>& codes,
                                  std::size_t t) {
    const bool key_is_finite = stage(head, first, key);
    if (book_.metric() == key_metric::inner_product) lift(head);
    find(head);
    if (threadIdx.x < own_.size()) codes(head, own_.first + threadIdx.x, t) = code(own_.first + threadIdx.x, key_is_finite);
    std::uint32_t cell = 0;
    for (unsigned j = 0; threadIdx.x == 0 && own_.size() == m_ && j < m_; ++j) cell = cell * c_ + code(j, key_is_finite);
    return cell;
  }

 private:
  /// Computes the key minus the mean. Returns whether it is finite. Ends with a barrier.
  template <class T>
  __device__ bool stage(std::size_t head, const coordinate& first, kv_row<T> key) {
    bool finite = true;
    const auto take = [&](unsigned i, const coordinate& at) {
      const float x = at.axis.of_key(key[at.axis.source]);
      finite &= is_finite(x);
      const unsigned j = i / ds_;
      scratch_.y[j * width_ + (i - j * ds_)] = canonical::sub(x, at.mean);
    };
    if (threadIdx.x < m_ * ds_) take(threadIdx.x, first);
#pragma unroll 1
    for (unsigned i = threadIdx.x + blockDim.x; i < m_ * ds_; i += blockDim.x) take(i, {book_, axes_, head, i});
    if (threadIdx.x < m_) scratch_.best[threadIdx.x] = ~0ull, scratch_.usable[threadIdx.x] = 1;
    block::wait_copies<0>();
    return __syncthreads_and(finite ? 1 : 0) != 0;
  }
  /// Computes the added coordinate of every subspace (see canonical::sphere_coordinate). Ends with a barrier.
  __device__ void lift(std::size_t head) {
    if (threadIdx.x >= own_.first && threadIdx.x < own_.last) {
      float* row = scratch_.y + threadIdx.x * width_;
      const float norm = canonical::dot(row, row, 1, ds_);
      row[ds_] = canonical::sphere_coordinate(book_.squared_radius(head, threadIdx.x), norm);
      scratch_.usable[threadIdx.x] = is_finite(norm) ? 1 : 0;
    }
    __syncthreads();
  }
  /// Finds the nearest centroid of every subspace. Ends with a barrier.
  __device__ void find(std::size_t head) {
    const unsigned lanes = c_ < 32 ? c_ : 32, all = own_.size() * c_;  // lanes of a warp that share a subspace
    for (unsigned base = 0; base < all; base += blockDim.x) {
      const unsigned at = base + threadIdx.x, j = own_.first + at / c_, x = at % c_;
      std::uint64_t best = at < all ? block::nearest_key(distance(head, j, x), x) : ~0ull;
      for (unsigned step = lanes / 2; step > 0; step /= 2) {
        const std::uint64_t other = __shfl_xor_sync(block::all_lanes, best, static_cast<int>(step));
        best = other < best ? other : best;
      }
      if (at < all && x % lanes == 0) atomicMin(&scratch_.best[j], static_cast<unsigned long long>(best));
    }
    __syncthreads();
  }
  __device__ float distance(std::size_t head, unsigned j, unsigned x) const {
    const float* y = scratch_.y + j * width_;
    float sum = 0;
    const auto add = [&](std::size_t i, float of_centroid) {
      const float e = canonical::sub(y[i], of_centroid);
      sum = canonical::fma(e, e, sum);
    };
    if (copied_ != nullptr)
      block::for_strided<8>(copied_ + (j - own_.first) * width_ * c_ + x, c_, width_, add);
    else
      block::for_strided<16>(&book_.centroids(head, j, 0, x), c_, width_, add);
    return sum;
  }
  __device__ std::uint8_t code(unsigned j, bool key_is_finite) const {
    return key_is_finite && scratch_.usable[j] != 0 ? static_cast<std::uint8_t>(scratch_.best[j] & 0xffu) : std::uint8_t{0};
  }

  scratch& scratch_;
  const codebook_view<space::device>& book_;
  const pair_axes<space::device>& axes_;
  subspace_share own_;
  unsigned m_, ds_, width_, c_;
  const float* copied_;  // [own subspaces, width, c]
};

/// grid.x: KV heads; grid.y: rows of a step; grid.z: CTAs that take a row's leaving tokens in turn.
/// @param leaving  leaving(row): the tokens of one sequence that are to be encoded
template <class Rows, class Leaving>
__global__ void __launch_bounds__(max_centroids) encode_leaving_kernel(pq_index_view<space::device> index, Rows rows, Leaving leaving) {
  __shared__ key_encoder::scratch scratch;
  const leaving_tokens tokens = leaving(blockIdx.y);
  const std::size_t head = std::size_t{tokens.slot} * index.kv_heads + blockIdx.x;
  const codebook_view<space::device> book = index.book;
  key_encoder encoder(scratch, book, index.pairs, subspace_share::all(static_cast<unsigned>(book.subspaces())));
  if (tokens.size() == 0) return;
  const auto first = key_encoder::coordinate::first(book, index.pairs, head);
  for (std::uint32_t t = tokens.first + blockIdx.z; t < tokens.last; t += gridDim.z) {
    encoder.encode(head, first, rows.key(head, t), index.codes, t);
    __syncthreads();
  }
}

/// @param tokens  an estimate of how many tokens leave in all; it decides how many CTAs share the work
template <class Rows, class Leaving>
void encode_leaving(const launcher& launch, const pq_index_view<space::device>& index, const Rows& rows, const Leaving& leaving,
                    std::size_t count, std::size_t tokens) {
  if (count == 0) return;
  const std::size_t a_row = tokens / count + 1, there = 4 * tuning::multiprocessors / (index.kv_heads * count) + 1;
  launch("encode_leaving_kernel", encode_leaving_kernel<Rows, Leaving>,
         {dim3(static_cast<unsigned>(index.kv_heads), static_cast<unsigned>(count), static_cast<unsigned>(a_row < there ? a_row : there)),
          max_centroids},
         index, rows, leaving);
}

/// Whether encoded tokens at the end of a sequence begin to be ranked, or are ranked no more.
enum class ranking { begins, ends };

/// Adds tokens to the ranked tokens of every head of their sequence, or removes them. Called by all threads of a CTA of whole warps; ends
/// with a barrier.
template <ranking Change>
__device__ void change_ranking(const pq_index_view<space::device>& index, const leaving_tokens& tokens) {
  if (index.index.empty() || tokens.size() == 0) return;
  const std::size_t h = index.kv_heads, first_head = tokens.slot * h;
  for (std::size_t head = first_head + threadIdx.x / 32; head < first_head + h; head += blockDim.x / 32) {
    for (std::uint32_t t = tokens.first + threadIdx.x % 32; t < tokens.last; t += 32)
      atomicAdd(&index.index.counts(head, index.cell(head, t)), Change == ranking::begins ? 1u : ~0u);
    if (threadIdx.x % 32 != 0) continue;
    if constexpr (Change == ranking::begins)
      grow_range(index.index, head, tokens.first, tokens.last);
    else
      cut_range(index.index, head, tokens.first);
  }
  __syncthreads();
}

/// One warp for each row.
template <class Rows, class T>
__global__ void __launch_bounds__(256) gather_keys_kernel(Rows rows, std::size_t first_head, stratified_sample sample, std::size_t first,
                                                          pair_axes<space::device> axes, view<T, 3, space::device> out) {
  const std::size_t row = (std::size_t{blockIdx.x} * blockDim.x + threadIdx.x) / 32, n = out.extent(1);
  if (row >= out.extent(0) * n) return;
  const std::size_t head = row / n, i = row - head * n;
  const auto key = rows.key(first_head + head, first + sample(i));
  for (std::size_t e = threadIdx.x % 32; e < out.extent(2); e += 32) out(head, i, e) = static_cast<T>(axes.of_key(key, head, e));
}

/// grid.x: subspaces; grid.y: heads. A thread takes a centroid, finds its place in the order in which op::replace_centroids replaces
/// centroids and, if it is to be replaced, reads the key that takes its place.
/// @param replaced  null, or [heads * subspaces, max_centroids] zeros; written: 1 for each centroid that was replaced
template <class Rows>
__global__ void __launch_bounds__(max_centroids)
    replace_centroids_kernel(Rows rows, std::size_t first_head, pq_index_view<space::device> index, replaced_centroids call,
                             std::uint8_t* replaced) {
  __shared__ std::uint32_t count[max_centroids];
  const std::size_t j = blockIdx.x, head = blockIdx.y, ds = index.book.sub_dim();
  const unsigned x = threadIdx.x, c = static_cast<unsigned>(index.book.size());
  count[x] = 0;
  __syncthreads();
  for (std::size_t t = call.first + x; t < call.last; t += blockDim.x) atomicAdd(&count[index.codes(head, j, t)], 1u);
  __syncthreads();
  if (x >= c) return;
  std::uint32_t rank = 0;
  for (unsigned other = 0; other < c; ++other) rank += count[other] < count[x] || (count[other] == count[x] && other < x) ? 1 : 0;
  if (rank >= call.fresh.count) return;
  const auto key = rows.key(first_head + head, call.begin + call.fresh(rank));
  float y[max_head_dim + 1];
  bool finite = true;
  for (std::size_t e = 0; e < ds; ++e) {
    y[e] = canonical::sub(index.pairs.of_key(key, head, j * ds + e), index.book.mean(head, j * ds + e));
    finite &= is_finite(y[e]);
  }
  if (index.book.metric() == key_metric::inner_product) {
    const float norm = canonical::dot(y, y, 1, ds);
    y[ds] = canonical::sphere_coordinate(index.book.squared_radius(head, j), norm);
    finite &= is_finite(norm);
  }
  for (std::size_t e = 0; finite && e < index.book.row_dim(); ++e) index.book.centroids(head, j, e, x) = y[e];
  if (finite && replaced != nullptr) replaced[(head * gridDim.x + j) * max_centroids + x] = 1;
}

/// One CTA for each row.
template <class T>
PQKV_HIDDEN __global__ void __launch_bounds__(128)
    order_axes_kernel(view<const T, 2, space::device> rows, axis_map axes, view<T, 2, space::device> out) {
  block::release_dependents();
  block::wait_for_last_kernel();
  for (std::size_t i = threadIdx.x; i < rows.extent(1); i += blockDim.x) out(blockIdx.x, i) = rows(blockIdx.x, axes(i));
}

/// One CTA for each query.
template <unsigned Threads>
PQKV_HIDDEN __global__ void __launch_bounds__(Threads)
    order_queries_kernel(view<const float, 2, space::device> queries, pair_axes<space::device> axes, head_map<space::device> map,
                         unsigned group, view<float, 2, space::device> out) {
  block::release_dependents();
  block::wait_for_last_kernel();
  const std::size_t r = blockIdx.x, head = map.head(r / group);
  for (std::size_t i = threadIdx.x; i < queries.extent(1); i += blockDim.x) out(r, i) = axes.of_query(&queries(r, 0), head, i);
}

/// The leaving tokens of each row, given by a view.
struct listed_leaving {
  view<const leaving_tokens, 1, space::device> all;
  __device__ leaving_tokens operator()(std::size_t row) const { return all(row); }
};

}  // namespace detail

template <>
struct kernel<op::order_axes, backend::cuda> {
  template <class P>
  static void run(const P& policy, view<const float, 2, space::device> rows, const axis_map& axes, view<float, 2, space::device> out) {
    const detail::launcher launch(policy, "order_axes");
    const auto kernel = detail::order_axes_kernel<float>;
    launch("order_axes_kernel", kernel,
           {.grid = dim3(static_cast<unsigned>(rows.extent(0))), .threads = 128, .early = launch.is_built_for_hopper(kernel)}, rows, axes,
           out);
  }
  /// @param heads  of the index
  template <class P>
  static void run(const P& policy, view<const float, 2, space::device> queries, const pair_axes<space::device>& axes,
                  const head_map<space::device>& map, std::size_t heads, view<float, 2, space::device> out) {
    const detail::launcher launch(policy, "order_axes");
    const auto kernel = detail::order_queries_kernel<128>;
    launch("order_queries_kernel", kernel,
           {.grid = dim3(static_cast<unsigned>(queries.extent(0))), .threads = 128, .early = launch.is_built_for_hopper(kernel)}, queries,
           axes, map, static_cast<unsigned>(queries.extent(0) / map.heads(heads)), out);
  }
};

template <>
struct kernel<op::gather_keys, backend::cuda> {
  template <class P, class Rows, class T>
  static void run(const P& policy, const Rows& rows, std::size_t head, const stratified_sample& sample, std::size_t first,
                  const pair_axes<space::device>& axes, view<T, 3, space::device> out) {
    detail::launcher(policy, "gather_keys")("gather_keys_kernel", detail::gather_keys_kernel<Rows, T>,
                                            {dim3(detail::ceil_div(out.extent(0) * out.extent(1), 8)), 256}, rows, head, sample, first,
                                            axes, out);
  }
};

template <>
struct kernel<op::replace_centroids, backend::cuda> {
  template <class P, class Rows>
  static void run(const P& policy, const Rows& rows, std::size_t head, const pq_index_view<space::device>& index,
                  const replaced_centroids& call) {
    detail::launcher(policy, "replace_centroids")(
        "replace_centroids_kernel", detail::replace_centroids_kernel<Rows>,
        {dim3(static_cast<unsigned>(index.book.subspaces()), static_cast<unsigned>(index.kv_heads)), max_centroids}, rows, head, index,
        call, static_cast<std::uint8_t*>(nullptr));
  }
};

template <>
struct kernel<op::encode_leaving, backend::cuda> {
  template <class P, class Rows>
  static void run(const P& policy, const pq_index_view<space::device>& index, const Rows& rows,
                  view<const leaving_tokens, 1, space::device> leaving) {
    detail::encode_leaving(detail::launcher(policy, "encode_leaving"), index, rows, detail::listed_leaving{leaving}, leaving.extent(0),
                           leaving.extent(0));
  }
};

}  // namespace pqkv
