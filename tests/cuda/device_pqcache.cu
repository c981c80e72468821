// SPDX-License-Identifier: Apache-2.0
// The cache on a device against the host's: the same prompts and steps, the same lists to the token, attention within rounding, the same
// statistics. Prompts in chunks, steps of some slots and of 0 to 16 tokens a row, cuts, forks, slots that each saves and the other loads,
// resets, late training, selectors without an index; and steps in a CUDA graph, with cuts by lengths on the device, replayed while the
// sequences grow. Ends with 77 where there is no GPU.
//
//   device_pqcache                all of it
//   device_pqcache --seconds S    shorter lives while the time lasts, for compute-sanitizer
//   device_pqcache --long STEPS   one life of so many replayed steps, e.g. 20000, with all that can happen between them
//   device_pqcache --soak MINUTES ragged lives, each with another seed, a line a minute; what the device and the process hold is watched
#include <chrono>
#include <cstdlib>
#include <string>

#include "cache_life.cuh"
#include "soak/watch.hpp"

namespace {
using namespace pqkv_cases;
using pqkv::group_reduction;
using pqkv::search_path;

using stored = pqkv::bfloat16;
using host_cache = pqkv::pqcache<pqkv::dense_rows<stored>>;
using device_cache = pqkv::device_pqcache<stored>;
using pq_life = life<host_cache, device_cache>;

template <class Cache = host_cache>
typename Cache::params base(std::size_t batch, std::size_t h, std::size_t g, std::size_t d, std::size_t capacity) {
  typename Cache::params p{};
  p.batch = batch;
  p.kv_heads = h;
  p.query_heads = h * g;
  p.head_dim = d;
  p.capacity = capacity;
  p.budget.sinks = 8;
  p.budget.min_tokens = 40;
  if constexpr (requires { p.selector.train; }) {
    p.selector.train.iterations = 4;
    p.selector.tail_tokens = 48;
  }
  return p;
}

host_cache::params settings(int which) {
  host_cache::params p = base(1 + which % 3, 2, which % 2 == 0 ? 4 : 2, which % 4 == 3 ? 64 : 128, 6000);
  p.selector.subspaces = 2, p.selector.bits = 6, p.selector.axes = pqkv::axis_order::rotary_halves;
  if (which % 3 == 1) p.selector.axes = pqkv::axis_order::contiguous;
  if (which == 3 || which == 8 || which == 9) p.selector.axes = pqkv::axis_order::weighted_pairs;
  if (which == 1) p.selector.path = search_path::scan;
  if (which == 2) p.selector.bits = 4;
  if (which == 3) p.selector.subspaces = 4, p.selector.bits = 8;
  if (which == 4) p.selector.reduction = group_reduction::none;
  if (which == 5) p.selector.reduction = group_reduction::logit_max;
  if (which == 6) p.budget.growth = pqkv::budget_growth::frozen_at_prompt;
  if (which == 7) p.budget.tokens = 300, p.selector.bits = 4;
  if (which == 8) p.selector.metric = pqkv::key_metric::inner_product, p.softmax_scale = 0.05f;
  if (which == 9) p.budget.window = 1, p.budget.sinks = 0, p.selector.path = search_path::joint;
  if (which == 10) p.selector.subspaces = 2, p.selector.bits = 8, p.selector.path = search_path::joint;  // scores in scratch
  if (which == 11) p.step_queries = 5;
  if (which % 4 < 2)
    p.selector.refresh_iterations = 1 + static_cast<std::size_t>(which) % 3;
  else
    p.selector.renewal = pqkv::selector::renewal_scope::all_keys;
  if (which == 7 || which == 11) p.selection = pqkv::draft_selection::first_query;
  return p;
}

/// One token a row, as a decode step has it.
void lives(workload& work, verdict& all) {
  std::size_t listed = 0;
  for (int which = 0; which < 10; ++which) {
    if (!work.another()) continue;
    host_cache::params p = settings(which);
    if (which % 2 == 1) p.selector.over = pqkv::selector::normalisation::middle;
    pq_life run(p, static_cast<std::uint64_t>(which) + 1, nullptr, which % 3 == 1 ? 8 : 0);
    const std::size_t prompt = work.small() ? 400 : 2000, steps = work.small() ? 24 : 120;
    for (std::size_t slot = 0; slot < p.batch; ++slot) run.prefill(slot, which == 4 ? 200 : prompt + prompt / 2 * slot, 1 + slot, 1u << 20);
    run.draw_tokens();
    run.compare(all, "after the prompt", 0);
    for (std::size_t step = 1; step <= steps; ++step) {
      run.draw_tokens();
      run.draw_step(p.batch > 1 && step % 4 != 0 ? step_kind::some : step_kind::all);
      run.append_host(), run.append_device();
      if (step % (steps / 4) == 0) run.maintain();
      if (step == steps / 2 && p.batch > 1) run.fork(0, 1);
      if (step == steps * 2 / 3 && p.batch > 2) run.reset(2);
      if (step < 4 || step % 12 == 0) run.compare(all, "a life", static_cast<std::size_t>(which) * 1000 + step);
    }
    run.compare_statistics(all, "a life", static_cast<std::size_t>(which));
    listed += run.listed;
  }
  all.check(listed > (work.small() ? 0 : 200), "only %zu lists were not empty", listed);
}

/// Several tokens a row, cuts and forks between them.
template <class Life>
void ragged_life(const typename Life::params& p, std::uint64_t seed, const char* what, workload& work, verdict& all, std::size_t& listed) {
  Life run(p, seed, nullptr, seed % 2 * 8);
  const std::size_t prompt = work.small() ? 300 : 1500, steps = work.small() ? 12 : 60;
  for (std::size_t slot = 0; slot < p.batch; ++slot) run.prefill(slot, prompt + 37 * slot, 1, 1u << 20);
  for (std::size_t step = 1; step <= steps; ++step) {
    run.draw_step(step % 5 == 0 ? step_kind::some : step_kind::ragged);
    run.draw_tokens();
    run.append_host(), run.append_device();
    run.compare(all, what, seed * 1000 + step);
    run.draw_lengths();
    if (step % 3 == 0) run.truncate_host(), run.truncate_device();
    if (step % 7 == 0) run.truncate(step % p.batch);
    if (step % (steps / 4) == 0) run.maintain();
    if (step % 11 == 0) run.fork(step % p.batch, (step + 1) % p.batch);
    if (step % 9 == 4) run.exchange(all, step % p.batch, (step + 1) % p.batch);
    run.compare_state(all, what, seed * 1000 + step);
  }
  run.compare_statistics(all, what, seed);
  listed += run.listed;
}
void ragged_lives(workload& work, verdict& all) {
  std::size_t listed = 0;
  for (int which = 0; which < 12; ++which) {
    if (!work.another()) continue;
    host_cache::params p = settings(which);
    if (which % 2 == 0) p.selector.over = pqkv::selector::normalisation::middle;
    p.batch = 2 + static_cast<std::size_t>(which) % 3;
    ragged_life<pq_life>(p, static_cast<std::uint64_t>(which) + 100, "a ragged life", work, all, listed);
  }
  all.check(listed > (work.small() ? 0 : 2000), "only %zu lists were not empty", listed);
}

/// Selectors that keep no index.
template <class Selector>
void without_index(std::uint64_t seed, const char* what, workload& work, verdict& all) {
  using on_host = pqkv::pqcache<pqkv::dense_rows<float>, Selector>;
  std::size_t listed = 0;
  ragged_life<life<on_host, pqkv::device_pqcache<float, Selector>>>(base<on_host>(3, 2, 2, 64, 4000), seed, what, work, all, listed);
}

/// Rows of 8-bit integers.
void quantized_lives(workload& work, verdict& all) {
  using on_host = pqkv::pqcache<pqkv::quantized_rows<>>;
  using on_gpu = pqkv::pqcache<pqkv::quantized_rows<device>, pqkv::selector::basic_pq<device>>;
  std::size_t listed = 0;
  for (const std::size_t d : {64u, 72u, 128u}) {
    if (!work.another()) continue;
    on_host::params p = base<on_host>(3, 2, 4, d, 6000);
    if (d == 128) p.selector.subspaces = 4, p.selector.bits = 8;
    if (d == 64) p.selector.axes = pqkv::axis_order::rotary_halves, p.selector.over = pqkv::selector::normalisation::middle;
    ragged_life<life<on_host, on_gpu>>(p, 300 + d, "a life of 8-bit rows", work, all, listed);
  }
}

/// A slot whose prompt has too few different rows is dense until maintain() trains it.
void late_training(const workload& work, verdict& all) {
  host_cache::params p = base(2, 2, 2, 64, 3000);
  p.selector.bits = 4;
  pq_life run(p, 77);
  run.prefill(0, work.small() ? 200 : 1000, 1, 5);
  for (std::size_t step = 0; step < (work.small() ? 60u : 200u); ++step) {
    run.draw_tokens();
    run.append_host(), run.append_device();
    if (step % 20 == 19) run.maintain();
    if (step % 10 == 9) run.compare(all, "late training", step);
  }
  for (std::size_t slot = 0; slot < 2; ++slot)
    all.check(run.on_gpu().at(run.gpu(), slot).learned == 1, "slot %zu was not trained in the end", slot);
}

/// One step captured once, replayed while both sequences grow; an eager twin gives the same bits.
void replay(workload& work, cudaStream_t stream, verdict& all) {
  host_cache::params p = base(2, 4, 4, 128, 12000);
  p.selector.axes = pqkv::axis_order::rotary_halves;
  pq_life captured(p, 5, stream), eager(p, 5);
  for (pq_life* one : {&captured, &eager}) {
    one->prefill(0, work.small() ? 700 : 7000, 1, 1u << 20);
    one->prefill(1, work.small() ? 500 : 5000, 2, 1u << 20);
    one->draw_tokens();
  }
  cudaDeviceSynchronize();
  const captured_step step(stream, [&] { captured.append_device(), captured.attend_device(); });
  const std::size_t period = work.small() ? 10 : 100, upkeep = work.small() ? 32 : 256;  // of comparisons with the host, of maintain()
  for (std::size_t n = 0; n < 20 * period; ++n) {
    if (!work.another()) continue;
    all.check(replays_as_eager(step, captured, eager, 2, n % upkeep == upkeep - 1), "replay %zu differs from the eager step", n);
    if (n % period == period - 1) captured.compare_attention(all, "replay", n);
    if (n % (5 * period) == 5 * period - 1) captured.compare(all, "replay", n);
  }
}

/// A captured step of drafts: append, attend and cut, with counts and lengths that change between replays.
void replay_drafts(workload& work, cudaStream_t stream, verdict& all) {
  constexpr std::uint32_t drafts = 5;
  host_cache::params p = base(3, 2, 4, 128, 9000);
  p.step_queries = p.batch * drafts;
  pq_life captured(p, 6, stream), eager(p, 6);
  for (pq_life* one : {&captured, &eager}) {
    for (std::size_t slot = 0; slot < p.batch; ++slot) one->prefill(slot, (work.small() ? 500 : 4000) + 100 * slot, 1, 1u << 20);
    one->draw_step(step_kind::ragged, 3);
    one->draw_tokens();
  }
  cudaDeviceSynchronize();
  const std::size_t room = p.step_queries;
  const captured_step step(stream, [&] {
    captured.append_device(room), captured.attend_device(room);
    captured.truncate_device();
  });
  for (std::size_t n = 0; n < (work.small() ? 20u : 300u); ++n) {
    if (!work.another()) continue;
    for (pq_life* one : {&captured, &eager}) one->draw_tokens(), one->draw_counts(drafts), one->draw_rejections();
    cudaDeviceSynchronize();
    step.launch();
    cudaDeviceSynchronize();
    const std::size_t tokens = eager.tokens();
    captured.append_host(), eager.append_host();
    if (tokens != 0) {
      eager.append_device(room), eager.attend_device(room);
      cudaDeviceSynchronize();
      all.check(same(captured.results(tokens), eager.results(tokens)), "drafts %zu differ from the eager step", n);
      eager.compare_attention(all, "drafts", n);
    }
    captured.truncate_host(), eager.truncate_host();
    eager.truncate_device();
    cudaDeviceSynchronize();
    captured.compare_state(all, "drafts", n);
    if (n % 64 == 63) captured.maintain(), eager.maintain();
  }
}

/// Steps of 0 to 16 tokens a row and cuts, replayed from one graph; between them upkeep, forks, files, new prompts.
void long_life(std::size_t steps, cudaStream_t stream, verdict& all) {
  host_cache::params p = base(4, 2, 2, 64, 3000);
  p.step_queries = p.batch * most_row_tokens;
  pq_life run(p, 8, stream);
  for (std::size_t slot = 0; slot < p.batch; ++slot) run.prefill(slot, 900 + 200 * slot, 1, 1u << 20);
  run.draw_step(step_kind::ragged, p.batch);
  run.draw_tokens();
  cudaDeviceSynchronize();
  const captured_step step(stream, [&] {
    run.append_device(p.step_queries), run.attend_device(p.step_queries);
    run.truncate_device();
  });
  for (std::size_t n = 1; n <= steps; ++n) {
    run.draw_tokens(), run.draw_counts(most_row_tokens), run.draw_rejections();
    run.cap_lengths(static_cast<std::uint32_t>(p.capacity - most_row_tokens));
    cudaDeviceSynchronize();
    step.launch();
    run.append_host();
    if (n % 100 == 0 && run.tokens() != 0) cudaDeviceSynchronize(), run.compare_attention(all, "a long life", n);
    run.truncate_host();
    cudaDeviceSynchronize();
    run.compare_state(all, "a long life", n);
    const std::size_t slot = n % 7 % p.batch, other = (n % 7 + 1) % p.batch;
    if (n % 50 == 0) run.maintain();
    if (n % 300 == 0) run.fork(slot, other);
    if (n % 400 == 0) run.exchange(all, slot, other);
    if (n % 500 == 0) run.reset(slot), run.prefill(slot, 300 + n % 1000, 2, 1u << 20);
    if (n % 100 == 1 && run.tokens() != 0) run.compare(all, "a long life", n);
  }
  all.check(run.listed > steps / 100, "only %zu lists were not empty", run.listed);
}

/// Rounds of ragged lives with all settings. When the caches of a round are gone, as much device memory must be free as after the first
/// rounds, and the process must hold no more than then (tests/soak/watch.hpp). No other process may use the GPU meanwhile: its memory
/// counts too. main() has all kernels loaded at once, since loading one where it is first needed takes device memory.
bool soak(double minutes) {
  constexpr std::size_t settling = 3, slack = std::size_t{2} << 20;  // rounds; bytes: the driver's own pages
  const auto goes_on = [&](std::size_t round, double elapsed) { return round <= settling || elapsed < minutes; };  // one is compared
  const auto start = std::chrono::steady_clock::now();
  const auto elapsed = [&] { return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count() / 60; };
  verdict all("soak");
  workload whole(1, nullptr, 1);
  pqkv_soak::watch process(settling);
  std::size_t lives = 0, listed = 0, least = 0;
  double said = 0;
  for (std::size_t round = 0; all.holds() && goes_on(round, elapsed()); ++round) {
    for (int which = 0; which < 12 && goes_on(round, elapsed()); ++which, ++lives) {
      host_cache::params p = settings(which);
      if (which % 2 == 0) p.selector.over = pqkv::selector::normalisation::middle;
      p.batch = 2 + lives % 3;
      ragged_life<pq_life>(p, 10000 + lives, "soak", whole, all, listed);
      if (elapsed() < said + 1) continue;
      said = elapsed();
      std::printf("%.0f min: %zu lives, %zu lists, resident %zu KB\n", said, lives + 1, listed,
                  pqkv_soak::process_figures::now().resident_bytes >> 10);
      std::fflush(stdout);
    }
    std::size_t free = 0, total = 0;
    pqkv::detail::check_cuda(cudaDeviceSynchronize(), "test", "cudaDeviceSynchronize");
    pqkv::detail::check_cuda(cudaMemGetInfo(&free, &total), "test", "cudaMemGetInfo");
    if (round < settling) least = round == 0 || free < least ? free : least;
    all.check(free + slack >= least, "round %zu: %zu bytes of device memory are free, expected at least %zu", round, free, least - slack);
    const std::string why = process.after_round();
    all.check(why.empty(), "round %zu: %s", round, why.c_str());
  }
  std::printf("%.1f min: %zu lives, %zu lists\n", elapsed(), lives, listed);
  all.check(listed > lives, "only %zu lists were not empty", listed);
  return all.passed(1);
}

/// What does not fit is counted and changes nothing.
void refused_steps(verdict& all) {
  const host_cache::params p = base(1, 2, 2, 64, 2000);
  pq_life run(p, 9);
  run.prefill(0, 1999, 1, 1u << 20);
  run.draw_tokens();
  for (int i = 0; i < 3; ++i) run.append_device();
  run.append_host();
  const auto refused = [&] { return static_cast<unsigned>(run.on_gpu().statistics(run.gpu(), 0).refused); };
  all.check(run.on_gpu().size(run.gpu(), 0) == 2000 && refused() == 2, "refused %u of 2", refused());
  run.attend_device();
  run.compare_attention(all, "a full cache", 0);

  const std::size_t h = p.kv_heads, d = p.head_dim;
  std::vector<float> rows(5 * h * d, 1.0f);
  std::vector<std::uint32_t> numbers{0, 5, 7, 2001, 1998};  // a slot, a count, a slot that there is not, two lengths
  const on_device rows_there(pqkv::as_const(pqkv::make_view(rows.data(), 5, h, d)));
  const on_device numbers_there(pqkv::as_const(pqkv::make_view(numbers.data(), 5)));
  const auto number = [&](std::size_t i) { return numbers_there.view().slice(0, i, 1); };
  device_cache& cache = run.on_gpu();
  cache.append(run.gpu(), rows_there.view(), rows_there.view(), {number(0), number(1)});
  all.check(refused() == 7, "refused %u of 7", refused());
  cache.append(run.gpu(), rows_there.view().slice(0, 0, 1), rows_there.view().slice(0, 0, 1), {.slots = number(2)});
  cache.append(run.gpu(), rows_there.view(), rows_there.view(), {number(2), number(1)});
  all.check(refused() == 7 && cache.size(run.gpu(), 0) == 2000, "a slot that there is not changed something");
  cache.truncate(run.gpu(), number(3), number(0));
  all.check(refused() == 8 && cache.size(run.gpu(), 0) == 2000, "refused %u of 8", refused());
  cache.truncate(run.gpu(), number(4), number(0));
  run.on_host().truncate(pqkv::exec::host<>{}, 0, 1998);
  run.compare(all, "after a cut", 0);
  cache.append(run.gpu(), rows_there.view(), rows_there.view(), {number(0), number(1)});
  all.check(refused() == 13, "refused %u of 13", refused());
  run.compare(all, "after a refused step", 0);
}

/// What a device does not do is refused by name.
void refusals(verdict& all) {
  const host_cache::params base_params = base(1, 2, 2, 64, 2000);
  device_cache::params p = pq_life::device_params(base_params);
  all.check(device_cache::can_construct(p).ok(), "the control is refused");
  p.selector.residual.subspaces = 4;
  all.check(!device_cache::can_construct(p).ok() && device_cache::can_construct(p).parameter == std::string("selector.residual.subspaces"),
            "a second stage is not refused");
  p = pq_life::device_params(base_params);
  p.selector.overlap.emplace();
  p.selector.overlap->b1 = 1;
  all.check(!device_cache::can_construct(p).ok() && device_cache::can_construct(p).parameter == std::string("selector.overlap"),
            "the overlap rule is not refused");
}
}  // namespace

int main(int argc, char** argv) {
  const bool soaks = argc == 3 && std::string(argv[1]) == "--soak";
  if (soaks) ::setenv("CUDA_MODULE_LOADING", "EAGER", 1);
  if (!has_device()) return 77;
  if (argc == 3 && std::string(argv[1]) == "--long") {
    verdict all("a long life");
    cudaStream_t stream = nullptr;
    pqkv::detail::check_cuda(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "test", "cudaStreamCreateWithFlags");
    long_life(std::stoul(argv[2]), stream, all);
    cudaStreamDestroy(stream);
    return all.passed(1) ? 0 : 1;
  }
  if (soaks) {
    const double minutes = std::atof(argv[2]);
    if (!(minutes > 0)) return std::fprintf(stderr, "device_pqcache: --soak: expected minutes above 0, got %s\n", argv[2]), 2;
    return soak(minutes) ? 0 : 1;
  }
  workload work(argc, argv, 1);
  verdict random_lives("lives"), ragged("ragged lives"), plain("lives without an index"), late("late training"), graphs("graph replays"),
      integers("lives of 8-bit rows"), drafts("graph replays of drafts"), filled("refused steps"), refused("refusals");
  cudaStream_t stream = nullptr;
  pqkv::detail::check_cuda(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "test", "cudaStreamCreateWithFlags");
  work.part(0.3);
  lives(work, random_lives);
  work.part(0.6);
  ragged_lives(work, ragged);
  without_index<pqkv::selector::full>(1, "full", work, plain);
  without_index<pqkv::selector::streaming>(2, "streaming", work, plain);
  quantized_lives(work, integers);
  late_training(work, late);
  work.part(0.8);
  replay(work, stream, graphs);
  work.part(1);
  replay_drafts(work, stream, drafts);
  refused_steps(filled);
  refusals(refused);
  work.print();
  cudaStreamDestroy(stream);
  const bool whole = !work.small();
  bool passed = random_lives.passed(whole ? 400 : 1);
  passed &= ragged.passed(whole ? 2000 : 1);
  passed &= plain.passed(whole ? 300 : 1);
  passed &= integers.passed(whole ? 300 : 1);
  passed &= late.passed(whole ? 40 : 1);
  passed &= graphs.passed(whole ? 2020 : 1);
  passed &= drafts.passed(whole ? 600 : 1);
  passed &= filled.passed(8);
  passed &= refused.passed(2);
  return passed ? 0 : 1;
}
