// SPDX-License-Identifier: Apache-2.0
// Steps that are planned, summed over sinks and window, and ranked in one launch, against the host: the same lists to the token. That takes
// codes of many tokens and no joint-code index. Batches of one sequence to more lists than multiprocessors, windows of one token to more
// tiles than are merged at once, no sinks, drafts, cuts and forks, several reductions and numbers of subspaces; and a captured step,
// replayed while the sequences grow. Ends with 77 where there is no GPU.
//
//   step_sums                all of it
//   step_sums --seconds S    shorter lives while the time lasts, for compute-sanitizer
#include "cache_life.cuh"

namespace {
using namespace pqkv_cases;

template <class HostRows, class DeviceRows>
using rows_life = life<pqkv::pqcache<HostRows>, pqkv::pqcache<DeviceRows, pqkv::selector::basic_pq<device>>>;
using dense_life = rows_life<pqkv::dense_rows<pqkv::bfloat16>, pqkv::dense_rows<pqkv::bfloat16, device>>;
using integer_life = rows_life<pqkv::quantized_rows<>, pqkv::quantized_rows<device>>;

template <class Life>
typename Life::params base(std::size_t batch, std::size_t h, std::size_t g, std::size_t d) {
  typename Life::params p{};
  p.batch = batch;
  p.kv_heads = h;
  p.query_heads = h * g;
  p.head_dim = d;
  p.capacity = 20000;  // more than one CTA ranks alone, whatever the sequences have
  p.budget.sinks = 8;
  p.budget.min_tokens = 40;
  p.selector.over = pqkv::selector::normalisation::attended;
  p.selector.subspaces = 4, p.selector.bits = 8, p.selector.path = pqkv::search_path::scan;
  p.selector.train.iterations = 2;
  return p;
}

template <class Life>
void live(const typename Life::params& p, std::uint64_t seed, std::size_t prompt, std::size_t steps, bool is_small, verdict& all,
          std::size_t& listed) {
  Life run(p, seed, nullptr, seed % 2 * 8);
  if (is_small) prompt = prompt < 600 ? prompt : 600, steps = 3;
  for (std::size_t slot = 0; slot < p.batch; ++slot) run.prefill(slot, prompt + 13 * slot, 1, 1u << 20);
  for (std::size_t step = 1; step <= steps; ++step) {
    run.draw_step(step % 3 == 0 ? step_kind::ragged : step % 3 == 1 ? step_kind::all : step_kind::some);
    run.draw_tokens();
    run.append_host(), run.append_device();
    run.compare(all, "a life", seed * 1000 + step);
    run.draw_lengths();
    if (step % 4 == 0) run.truncate_host(), run.truncate_device();
    if (step % 5 == 0 && p.batch > 1) run.fork(step % p.batch, (step + 1) % p.batch);
    if (step % 6 == 0) run.maintain();
  }
  listed += run.listed;
}

void lives(workload& work, verdict& all) {
  std::size_t listed = 0;
  const auto one = [&]<class Life>(Life*, std::uint64_t seed, std::size_t prompt, std::size_t steps, auto change) {
    if (!work.another()) return;
    auto p = base<Life>(1, 2, 4, 128);
    change(p);
    live<Life>(p, seed, prompt, steps, work.small(), all, listed);
  };
  constexpr dense_life* dense = nullptr;
  constexpr integer_life* integers = nullptr;
  one(dense, 1, 2000, 12, [](auto&) {});
  one(integers, 2, 2000, 12, [](auto& p) { p.batch = 3, p.budget.window = 700, p.budget.sinks = 64, p.budget.retrieve = 300; });
  one(dense, 3, 7000, 6, [](auto& p) { p.budget.window = 6000, p.budget.sinks = 200, p.budget.retrieve = 100; });  // 97 tiles
  one(dense, 4, 1500, 12, [](auto& p) { p.batch = 2, p.budget.window = 1, p.budget.sinks = 0, p.query_heads = 18; });
  one(integers, 5, 1500, 12, [](auto& p) { p.head_dim = 72, p.selector.reduction = pqkv::group_reduction::probability_max; });
  one(dense, 6, 1500, 12, [](auto& p) { p.batch = 7, p.kv_heads = 8, p.query_heads = 16, p.head_dim = 64, p.selector.bits = 4; });
  one(dense, 7, 300, 4, [](auto& p) { p.batch = 18, p.kv_heads = 8, p.query_heads = 16, p.head_dim = 64, p.selector.bits = 4; });
  one(dense, 8, 1500, 12, [](auto& p) { p.selector.subspaces = 8, p.selector.axes = pqkv::axis_order::rotary_halves; });
  one(dense, 9, 1500, 12, [](auto& p) { p.batch = 2, p.selector.subspaces = 16, p.selector.bits = 4, p.query_heads = 16; });
  one(dense, 10, 1500, 12, [](auto& p) { p.selector.subspaces = 2, p.selector.bits = 6, p.head_dim = 256, p.softmax_scale = 0.3f; });
  one(dense, 11, 1000, 8, [](auto& p) { p.budget.window = 40, p.budget.retrieve = 0; });     // nothing is listed
  one(dense, 12, 1000, 8, [](auto& p) { p.budget.window = 40, p.budget.retrieve = 5000; });  // everything is
  one(dense, 13, 1500, 12, [](auto& p) { p.batch = 3, p.step_queries = 5, p.selection = pqkv::draft_selection::first_query; });
  // Room for so many tokens that lists are spread over the device, of which most CTAs have no token.
  one(dense, 14, 1500, 12, [](auto& p) { p.capacity = 400000, p.head_dim = 64; });
  one(dense, 15, 9000, 6, [](auto& p) { p.capacity = 400000, p.head_dim = 64, p.budget.retrieve = 3000; });
  all.check(listed > (work.small() ? 0 : 200), "only %zu lists were not empty", listed);
}

/// A captured step; an eager twin gives the same bits.
/// @param is_spread  lists have so much room that they are spread over the device
void replay(workload& work, cudaStream_t stream, bool is_spread, verdict& all) {
  auto p = base<integer_life>(2, is_spread ? 2 : 4, 4, is_spread ? 64 : 128);
  if (is_spread) p.capacity = 400000;
  p.budget.window = 300, p.budget.sinks = 64, p.budget.retrieve = 200;
  integer_life captured(p, 5, stream), eager(p, 5);
  for (integer_life* one : {&captured, &eager}) {
    for (std::size_t slot = 0; slot < 2; ++slot) one->prefill(slot, 600 + 1200 * slot, 1, 1u << 20);
    one->draw_tokens();
  }
  cudaDeviceSynchronize();
  const captured_step step(stream, [&] { captured.append_device(), captured.attend_device(); });
  for (std::size_t n = 0; n < (work.small() ? 20u : 400u); ++n) {
    if (!work.another()) continue;
    all.check(replays_as_eager(step, captured, eager, 2, n % 64 == 63), "replay %zu differs from the eager step", n);
    if (n % 40 == 39) captured.compare(all, "replay", n);
  }
}
}  // namespace

int main(int argc, char** argv) {
  if (!has_device()) return 77;
  workload work(argc, argv, 1);
  verdict sums("lives"), graphs("graph replays");
  cudaStream_t stream = nullptr;
  pqkv::detail::check_cuda(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "test", "cudaStreamCreateWithFlags");
  work.part(0.8);
  lives(work, sums);
  work.part(1);
  for (const bool is_spread : {false, true}) replay(work, stream, is_spread, graphs);
  work.print();
  cudaStreamDestroy(stream);
  const bool whole = !work.small();
  bool passed = sums.passed(whole ? 200 : 1);
  passed &= graphs.passed(whole ? 400 : 1);
  return passed ? 0 : 1;
}
