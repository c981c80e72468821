// SPDX-License-Identifier: Apache-2.0
// What the CUDA backend does before it asks the device for anything; runs on every machine that has nvcc. Scratch that is too small is
// refused by name before a launch, what kernels carve from it fits in what the ..._device_scratch_bytes() say, splits and grids stay in
// their bounds, and a CUDA error has its text.
#include "on_device.cuh"

#include <string>

#include "cases/search_cases.hpp"

namespace {
using namespace pqkv_cases;

/// Memory that is never touched: an address on a cache line.
template <class T>
T* nowhere() {
  return reinterpret_cast<T*>(std::size_t{1} << 40);
}
template <class T, class... Extent>
auto nothing(Extent... extents) {
  return pqkv::make_view<device>(nowhere<T>(), static_cast<std::size_t>(extents)...);
}

/// What a call throws that has `bytes` of scratch, one less than it needs.
template <class Call>
std::string refusal(std::size_t bytes, Call call) {
  try {
    call(pqkv::exec::cuda{nullptr, pqkv::arena(nowhere<std::byte>(), bytes - 1)});
  } catch (const pqkv::capacity_error& error) {
    return error.what();
  } catch (const std::exception& error) {
    return std::string("another exception: ") + error.what();
  }
  return "accepted";
}

void scratch(verdict& all) {
  const std::size_t h = 2, hq = 8, m = 2, c = 64, n = 300000, d = 128, cells = c * c, sample = 64 * 256;
  const pqkv::distance_table_view<device> table{nothing<const float>(hq, m, c), nothing<const float>(hq)};
  const pqkv::codes_view<device> codes = nothing<const std::uint8_t>(h, m, n);
  const pqkv::mutable_cell_index_view<device> index{nothing<std::uint32_t>(h, cells),
                                                    nothing<std::uint32_t>(h, cells + 1),
                                                    nothing<std::int32_t>(h, n),
                                                    nothing<std::uint32_t>(h),
                                                    nothing<std::uint32_t>(h),
                                                    nothing<std::uint32_t>(h),
                                                    nothing<const std::uint8_t>(m, cells)};
  const auto test = [&](const char* function, std::size_t bytes, auto call) {
    const std::string text = refusal(bytes, call),
                      begin = std::string("pqkv::") + function + ": policy.scratch must be at least " + std::to_string(bytes) + " (",
                      end = "got " + std::to_string(bytes - 1);
    all.check(text.find(begin) == 0 && text.size() > end.size() && text.compare(text.size() - end.size(), end.size(), end) == 0, "%s: %s",
              function, text.c_str());
  };
  test("scan", device_bytes<pqkv::op::scan>({.query_heads = hq}), [&](const pqkv::exec::cuda& gpu) {
    pqkv::scan(gpu, table, codes, nothing<float>(h, n), pqkv::group_reduction::probability_sum, d);
  });
  test("retrieve", device_bytes<pqkv::op::retrieve>({.lists = h, .query_heads = hq, .tokens = n, .cells = 0}),
       [&](const pqkv::exec::cuda& gpu) {
         pqkv::retrieve(gpu, table, codes, {}, nothing<const pqkv::middle_range>(h), nothing<std::int32_t>(h, 1000),
                        nothing<std::uint32_t>(h), {.head_dim = d, .path = pqkv::search_path::scan});
       });
  test("merge_tails", device_bytes<pqkv::op::merge_tails>({h, n, cells}),
       [&](const pqkv::exec::cuda& gpu) { pqkv::merge_tails(gpu, codes, index); });
  test("kmeans", device_bytes<pqkv::op::kmeans>({h * m, n, d / m, c, {}}), [&](const pqkv::exec::cuda& gpu) {
    pqkv::kmeans(gpu, nothing<const pqkv::half>(h, m, n, d / m), nothing<const float>(h, m, d / m), nothing<float>(h, m, d / m, c),
                 nothing<std::uint8_t>(h, m));
  });
  test("attention", device_bytes<pqkv::op::attention>({.query_heads = hq, .head_dim = d}), [&](const pqkv::exec::cuda& gpu) {
    pqkv::attention(gpu, nothing<const float>(hq, d),
                    pqkv::strided_kv(nothing<const pqkv::half>(h, n, d), nothing<const pqkv::half>(h, n, d)),
                    pqkv::token_set<device>{nothing<const pqkv::token_span>(h), {}, {}}, nothing<float>(hq, d), nothing<float>(hq));
  });
  all.check(pqkv::training_rows({}, n, c).count == sample, "the sample is not the default's");
}

/// What is carved, against what is asked of the caller.
void carving(verdict& all) {
  for (const std::size_t problems : {1u, 16u, 512u})
    for (const std::size_t n : {0u, 1u, 63u, 1000u, 20001u, 300000u})
      for (const std::size_t width : {1u, 8u, 65u, 256u})
        for (const std::size_t c : {16u, 64u, 256u})
          for (const std::size_t rows_per_centroid : {0u, 7u, 256u}) {
            const pqkv::kmeans_params params{10, 0, rows_per_centroid};
            pqkv::arena count;
            const pqkv::detail::kmeans_memory taken(count, problems, pqkv::training_rows(params, n, c).count, c, width);
            const std::size_t asked = device_bytes<pqkv::op::kmeans>({problems, n, width, c, params});
            all.check(count.used_bytes() <= asked && taken.rows == nullptr, "kmeans: %zu problems n %zu width %zu c %zu: %zu of %zu",
                      problems, n, width, c, count.used_bytes(), asked);
          }
  for (std::size_t hq = 1; hq <= 4096; ++hq) {
    const std::size_t splits = pqkv::detail::attention_device_splits(hq);
    all.check(splits >= 1 && splits <= pqkv::detail::max_splits, "attention: hq %zu: %zu splits", hq, splits);
    for (const std::size_t d : {1u, 8u, 128u, 256u}) {
      pqkv::arena count;
      const pqkv::detail::attention_partials taken(count, splits, hq, d);
      all.check(count.used_bytes() <= device_bytes<pqkv::op::attention>({.query_heads = hq, .head_dim = d}) && taken.d == d,
                "attention: hq %zu d %zu", hq, d);
    }
  }
  for (const std::size_t hq : {1u, 7u, 32u, 1024u})
    for (const std::size_t m : {1u, 2u, 16u, 64u}) {
      const pqkv::distance_table_view<device> table{nothing<const float>(hq, m, 16), nothing<const float>(hq)};
      for (const pqkv::group_reduction reduction : every_reduction) {
        pqkv::detail::block::scoring call(table, nothing<const std::uint8_t>(1, m, 100), reduction, 64);
        pqkv::arena count;
        call.carve(count);
        all.check(count.used_bytes() <= device_bytes<pqkv::op::scan>({.query_heads = hq}), "scan: hq %zu m %zu", hq, m);
        for (const std::size_t n : {1u, 16401u, 131072u, 1000001u}) {
          pqkv::arena whole = count;
          const pqkv::detail::block::scoring long_call(table, nothing<const std::uint8_t>(1, m, n), reduction, 64);
          const pqkv::detail::filter_memory taken(whole, long_call);
          all.check(
              whole.used_bytes() <= device_bytes<pqkv::op::retrieve>({.lists = call.lists, .query_heads = hq, .tokens = n, .cells = 0}) &&
                  taken.filters == nullptr,
              "retrieve: hq %zu n %zu: %zu bytes", hq, n, whole.used_bytes());
        }
        all.check(call.query_heads() == hq && call.lists == pqkv::score_lists(reduction, 1, hq), "scan: hq %zu: %u lists of %u", hq,
                  call.lists, call.g);
      }
    }
}

void numbers(verdict& all) {
  for (const std::size_t a : {0u, 1u, 31u, 32u, 33u, 1000000u})
    for (const std::size_t b : {1u, 2u, 32u, 1024u}) {
      const std::size_t parts = pqkv::detail::ceil_div(a, b);
      all.check(parts * b >= a && (parts == 0 || (parts - 1) * b < a), "ceil_div(%zu, %zu) is %zu", a, b, parts);
    }
  std::string text;
  int code = 0;
  try {
    pqkv::detail::check_cuda(cudaErrorInvalidValue, "scan", "score_kernel");
  } catch (const pqkv::cuda_error& error) {
    text = error.what();
    code = error.error;
  }
  all.check(text == "pqkv::scan: score_kernel: invalid argument (cudaErrorInvalidValue)" && code == cudaErrorInvalidValue, "%s",
            text.c_str());
  pqkv::detail::check_cuda(cudaSuccess, "scan", "score_kernel");
}
}  // namespace

int main() {
  verdict refusals("scratch that is too small"), carved("scratch that is carved"), small("numbers");
  scratch(refusals);
  carving(carved);
  numbers(small);
  bool passed = refusals.passed(6);
  passed &= carved.passed(1000);
  passed &= small.passed(20);
  return passed ? 0 : 1;
}
