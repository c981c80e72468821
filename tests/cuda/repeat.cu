// SPDX-License-Identifier: Apache-2.0
// The same call again gives the same bits: training, codes, scan, retrieve by either path, top_k, attention and the index, with other
// numbers in scratch and outputs each time, on an idle device and beside other work. Nothing here says that they are the right bits;
// the other programs do. Ends with 77 where there is no GPU.
//
//   repeat [turns]        times that each call is made again, 6 unless given
//   repeat --seconds S    small problems while the time lasts, for compute-sanitizer
#include "on_device.cuh"

#include <initializer_list>

#include "cases/search_cases.hpp"

namespace {
using namespace pqkv_cases;
using pqkv::group_reduction;
using pqkv::search_path;

/// What a call writes.
struct written {
  void* data;
  std::size_t bytes;

  template <class T, std::size_t Rank>
  written(const on_device<T, Rank>& memory) : data(memory.view().data), bytes(memory.view().size() * sizeof(T)) {}
};

/// Trainings on a stream of their own: clusters, shared memory and atomics of another call, in the way of the one that is looked at.
class other_work {
 public:
  other_work()
      : keys_(make_rows<pqkv::bfloat16>(content::clustered, 4, 4096, 64, 9)),
        book_(make_book({4, 64, 2, 6}, 1)),
        keys_there_(keys_.view()),
        book_there_(book_.mutable_view()),
        outcome_(8),
        outcome_there_(pqkv::make_view(outcome_.data(), 4, 2)),
        scratch_(device_bytes<pqkv::op::kmeans>({8, 4096, 32, 64, {}})) {
    pqkv::detail::check_cuda(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "test", "cudaStreamCreateWithFlags");
    cudaDeviceSynchronize();
  }
  ~other_work() { cudaStreamDestroy(stream_); }
  other_work(const other_work&) = delete;
  other_work& operator=(const other_work&) = delete;

  void start(int times) const {
    for (int i = 0; i < times; ++i)
      pqkv::train(pqkv::exec::cuda{stream_, scratch_.policy().scratch}, keys_there_.view(), book_there_.view(), outcome_there_.view());
  }

 private:
  rows<pqkv::bfloat16> keys_;
  pqkv::codebook book_;
  on_device<pqkv::bfloat16, 3> keys_there_;
  book_on_device book_there_;
  std::vector<std::uint8_t> outcome_;
  on_device<std::uint8_t, 2> outcome_there_;
  device_scratch scratch_;
  cudaStream_t stream_ = nullptr;
};

struct repeated_calls {
  workload work;
  other_work other{};
  random_source random{41};
  verdict all{"calls made again"};

  /// Makes a call turns() + 1 times, on scratch of so many bytes.
  template <class Call>
  void repeat(const char* what, std::size_t scratch_bytes, std::initializer_list<written> outputs, Call call) {
    const pqkv::device_buffer<std::byte> scratch(scratch_bytes, nullptr);
    std::vector<std::byte> first;
    for (std::size_t turn = 0; turn <= (work.small() ? 2 : work.rounds()); ++turn) {
      if (scratch_bytes != 0) cudaMemset(scratch.data(), static_cast<int>(turn * 0x55 & 0xff), scratch_bytes);
      for (const written& one : outputs)
        if (one.bytes != 0) cudaMemset(one.data, static_cast<int>(0xff - turn), one.bytes);
      cudaDeviceSynchronize();
      if (turn % 2 == 1) other.start(work.small() ? 1 : 4);
      call(pqkv::exec::cuda{nullptr, scratch_bytes != 0 ? pqkv::arena(scratch) : pqkv::arena{}});
      pqkv::detail::check_cuda(cudaDeviceSynchronize(), what, "cudaDeviceSynchronize");
      std::vector<std::byte> bytes;
      for (const written& one : outputs) {
        bytes.resize(bytes.size() + one.bytes);
        cudaMemcpy(bytes.data() + bytes.size() - one.bytes, one.data, one.bytes, cudaMemcpyDefault);
      }
      if (turn == 0)
        first = bytes;
      else
        all.check(!bytes.empty() && same(first, bytes), "%s, turn %zu of %zu bytes", what, turn, bytes.size());
    }
  }
};

template <class T>
void repeat_training(const pqkv::pq_shape& shape, std::size_t n, repeated_calls& calls) {
  if (!calls.work.another()) return;
  const rows<T> keys = make_rows<T>(content::clustered, shape.kv_heads, n, shape.head_dim, calls.random.bits());
  pqkv::codebook book = make_book(shape, 1);
  const on_device keys_there(keys.view());
  const book_on_device there(book.mutable_view());
  const std::size_t problems = shape.kv_heads * shape.subspaces;
  std::vector<std::uint8_t> outcome(problems), codes(problems * n);
  const on_device outcome_there(pqkv::make_view(outcome.data(), shape.kv_heads, shape.subspaces));
  const on_device codes_there(pqkv::make_view(codes.data(), shape.kv_heads, shape.subspaces, n));
  // The codes are of a codebook that this turn trained.
  calls.repeat("train and encode", device_bytes<pqkv::op::kmeans>({problems, n, shape.row_dim(), shape.centroids(), {}}),
               {there.centroids, there.mean, there.squared_radius, outcome_there, codes_there}, [&](const pqkv::exec::cuda& gpu) {
                 pqkv::train(gpu, keys_there.view(), there.view(), outcome_there.view());
                 pqkv::encode(gpu, keys_there.view(), pqkv::codebook_view<device>(there.view()), codes_there.view());
               });
}

void repeat_search(const search_shape& shape, repeated_calls& calls) {
  if (!calls.work.another()) return;
  search_problem problem(shape, table_kind::smooth, code_kind::uniform, calls.random);
  for (std::size_t head = 0; head < shape.h; ++head) problem.set_range(head, 16, shape.n - calls.random.below(100), shape.n / 10);
  const on_device entries(problem.table().entries);
  const on_device bias(problem.table().bias);
  const on_device codes(problem.codes());
  const on_device ranges(problem.ranges());
  const pqkv::distance_table_view<device> table{entries.view(), bias.view()};
  pqkv::cell_index index;
  if (shape.joint()) {
    index = pqkv::cell_index({shape.h, 128, shape.m, shape.bits}, shape.n);
    fill_index(problem, index, 300);
  }
  const index_on_device index_there(index.mutable_view());
  const std::size_t k_max = problem.most_selected(), cells = shape.joint() ? index.view().cells() : 0;
  for (const group_reduction reduction : every_reduction) {
    const std::size_t lists = pqkv::score_lists(reduction, shape.h, shape.hq());
    std::vector<std::int32_t> indices(lists * k_max);
    std::vector<std::uint32_t> counts(lists);
    std::vector<float> scores(lists * shape.n);
    const on_device indices_there(pqkv::make_view(indices.data(), lists, k_max));
    const on_device counts_there(pqkv::make_view(counts.data(), lists));
    const on_device scores_there(pqkv::make_view(scores.data(), lists, shape.n));
    const std::size_t bytes =
        device_bytes<pqkv::op::retrieve>({.lists = shape.hq(), .query_heads = shape.hq(), .tokens = shape.n, .cells = cells});
    calls.repeat("scan", bytes, {scores_there},
                 [&](const pqkv::exec::cuda& gpu) { pqkv::scan(gpu, table, codes.view(), scores_there.view(), reduction, shape.d); });
    for (const search_path path : {search_path::scan, search_path::joint})
      if (path == search_path::scan || shape.joint())
        calls.repeat("retrieve", bytes, {indices_there, counts_there}, [&](const pqkv::exec::cuda& gpu) {
          pqkv::retrieve(gpu, table, codes.view(), index_there.view(), ranges.view(), indices_there.view(), counts_there.view(),
                         {.head_dim = shape.d, .reduction = reduction, .path = path});
        });
  }
  if (!shape.joint()) return;
  pqkv::cell_index grown({shape.h, 128, shape.m, shape.bits}, shape.n);
  const index_on_device grown_there(grown.mutable_view());
  calls.repeat("count_cells and merge_tails", device_bytes<pqkv::op::merge_tails>({shape.h, shape.n, cells}),
               {grown_there.counts, grown_there.offsets, grown_there.ids, grown_there.first, grown_there.merged, grown_there.last},
               [&](const pqkv::exec::cuda& gpu) {
                 for (const written& part : {written(grown_there.counts), written(grown_there.offsets), written(grown_there.ids),
                                             written(grown_there.first), written(grown_there.merged), written(grown_there.last)})
                   cudaMemsetAsync(part.data, 0, part.bytes, nullptr);  // as an owner's memory is before the first token
                 pqkv::count_cells(gpu, codes.view(), 0, shape.n, grown_there.view());
                 pqkv::merge_tails(gpu, codes.view(), grown_there.view());
               });
}

void repeat_top_k(std::size_t lists, std::size_t n, std::size_t k, repeated_calls& calls) {
  if (!calls.work.another()) return;
  std::vector<float> scores(lists * n);
  for (float& x : scores) x = static_cast<float>(calls.random.below(n / 8)) - static_cast<float>(n / 16);  // ties
  std::vector<std::int32_t> indices(lists * k);
  const on_device scores_there(pqkv::as_const(pqkv::make_view(scores.data(), lists, n)));
  const on_device indices_there(pqkv::make_view(indices.data(), lists, k));
  calls.repeat("top_k", 0, {indices_there},
               [&](const pqkv::exec::cuda& gpu) { pqkv::top_k(gpu, scores_there.view(), indices_there.view()); });
}

template <class T>
void repeat_attention(std::size_t h, std::size_t g, std::size_t n, std::size_t d, repeated_calls& calls) {
  if (!calls.work.another()) return;
  const std::size_t hq = h * g;
  const rows<T> keys = make_rows<T>(content::gaussian, h, n, d, calls.random.bits()),
                values = make_rows<T>(content::gaussian, h, n, d, calls.random.bits());
  const on_device keys_there(keys.view()), values_there(values.view());
  std::vector<float> query(hq * d), out(hq * d), lse(hq);
  for (float& x : query) x = calls.random.gaussian();
  std::vector<pqkv::token_span> spans(h, {32, static_cast<std::uint32_t>(n - 64), static_cast<std::uint32_t>(n)});
  std::vector<std::int32_t> indices(h * n, -1);
  std::vector<std::uint32_t> counts(h);
  for (std::size_t list = 0; list < h; ++list)
    for (std::size_t t = 32; t < n - 64; t += 1 + calls.random.below(4)) indices[list * n + counts[list]++] = static_cast<std::int32_t>(t);
  const on_device spans_there(pqkv::as_const(pqkv::make_view(spans.data(), h)));
  const on_device indices_there(pqkv::as_const(pqkv::make_view(indices.data(), h, n)));
  const on_device counts_there(pqkv::as_const(pqkv::make_view(counts.data(), h)));
  const on_device query_there(pqkv::as_const(pqkv::make_view(query.data(), hq, d)));
  const on_device out_there(pqkv::make_view(out.data(), hq, d));
  const on_device lse_there(pqkv::make_view(lse.data(), hq));
  calls.repeat("attention", device_bytes<pqkv::op::attention>({.query_heads = hq, .head_dim = d}), {out_there, lse_there},
               [&](const pqkv::exec::cuda& gpu) {
                 pqkv::attention(gpu, query_there.view(), pqkv::strided_kv(keys_there.view(), values_there.view()),
                                 pqkv::token_set<device>{spans_there.view(), indices_there.view(), counts_there.view()}, out_there.view(),
                                 lse_there.view());
               });
}
}  // namespace

int main(int argc, char** argv) {
  if (!has_device()) return 77;
  repeated_calls calls{workload(argc, argv, 6)};
  const bool small = calls.work.small();
  const std::size_t times = small ? 1 : 16;  // lengths of a whole run, in those of a small one
  calls.work.part(0.3);
  repeat_training<pqkv::bfloat16>({small ? 2u : 8u, 128, 2, 6}, 1000 * times, calls);
  repeat_training<float>({2, 64, 4, 8}, 500 * times, calls);
  repeat_training<pqkv::half>({1, 64, 2, 4, pqkv::key_metric::inner_product}, 500 * times, calls);
  if (!small) repeat_training<pqkv::bfloat16>({140, 64, 2, 4}, 1000, calls);  // a CTA a problem
  calls.work.part(0.6);
  repeat_search({2, 4, 2, 6, 4096 * times, 128}, calls);
  repeat_search({1, 2, 4, 8, 2000 * times, 64}, calls);
  if (!small) repeat_search({8, 4, 2, 6, 131072, 128}, calls);
  if (!small) repeat_search({1, 4, 2, 8, 300000, 128}, calls);
  calls.work.part(0.8);
  repeat_top_k(3, 500 * times, 40 * times, calls);
  repeat_top_k(1, 20000 * times, 700 * times, calls);
  repeat_top_k(64, 5000, 1000, calls);
  repeat_top_k(4, 131073, 9000, calls);  // a few CTAs a row
  calls.work.part(1);
  repeat_attention<pqkv::bfloat16>(2, 4, 300 * times, 128, calls);
  repeat_attention<pqkv::half>(8, 4, 300 * times, 64, calls);
  repeat_attention<float>(1, 8, 300 * times, 256, calls);
  repeat_attention<float>(4, 2, 300, 128, calls);
  calls.work.print();
  return calls.all.passed(small ? 4 : 60) ? 0 : 1;
}
