// SPDX-License-Identifier: Apache-2.0
// The cache on a device against the host's pqcache: the same prompts and tokens, the same lists to the token, attention within
// rounding; prompts in chunks, inactive slots, forks, resets, late training; and one decode step in a CUDA graph, replayed while the
// sequences grow. Ends with 77 where there is no GPU.
//
//   device_pqcache                all of it
//   device_pqcache --seconds S    shorter lives while the time lasts, for compute-sanitizer
#include "on_device.cuh"

#include <pqkv/device_pqcache.cuh>

#include <cmath>
#include <string>

#include "cases/inputs.hpp"

namespace {
using namespace pqkv_cases;
using pqkv::group_reduction;
using pqkv::search_path;

using stored = pqkv::bfloat16;
using host_cache = pqkv::pqcache<stored>;
using device_cache = pqkv::device_pqcache<stored>;

/// A host array that goes up again whenever it changed.
template <class T>
struct mirrored {
  std::vector<T> host;
  pqkv::device_buffer<T> there;
  explicit mirrored(std::size_t size, T value = {}) : host(size, value), there(size, nullptr) { upload(); }
  void upload() { there.upload(host.data(), nullptr); }
  void download() {
    there.download(host.data(), nullptr);
    pqkv::sync(pqkv::exec::cuda{});
  }
};

/// Both caches and what is fed to them.
class life {
 public:
  life(const host_cache::params& p, std::uint64_t seed, cudaStream_t stream = nullptr)
      : p_(p),
        gpu_{stream, {}},
        host_(p),
        device_(gpu_, device_params(p)),
        random_(seed),
        key_(p.batch * p.kv_heads * p.head_dim),
        value_(key_.host.size()),
        query_(p.batch * p.query_heads * p.head_dim),
        out_(query_.host.size(), 77.0f),
        lse_(p.batch * p.query_heads, 77.0f),
        active_(p.batch, 1) {}

  static device_cache::params device_params(const host_cache::params& p) {
    device_cache::params same{};
    static_cast<pqkv::cache_shape&>(same) = p;
    same.budget = p.budget;
    same.selector = p.selector;
    return same;
  }

  /// @param distinct  rows that differ; few leave a slot without a codebook
  void prefill(std::size_t slot, std::size_t n, std::size_t chunks, std::size_t distinct) {
    const std::size_t h = p_.kv_heads, d = p_.head_dim;
    std::vector<float> keys(h * n * d), values(keys.size());
    for (std::size_t row = 0; row < h * n; ++row)
      for (std::size_t i = 0; i < d; ++i) {
        keys[row * d + i] = row % n < distinct ? shaped(row / n, i) : keys[(row / n * n + row % n % distinct) * d + i];
        values[row * d + i] = random_.gaussian();
      }
    for (std::size_t first = 0, c = 0; first < n; ++c) {
      const std::size_t count = c + 1 >= chunks ? n - first : n / chunks;
      const auto part = [&](std::vector<float>& rows) { return pqkv::make_view(rows.data(), h, n, d).slice(1, first, count); };
      const auto which = first + count == n ? pqkv::chunk::last : pqkv::chunk::more;
      host_.prefill(pqkv::exec::host<>{}, slot, part(keys), part(values), which);
      const on_device<float, 3> key(part(keys)), value(part(values));
      cudaDeviceSynchronize();  // uploads are on the default stream
      device_.prefill(gpu_, slot, key.view(), value.view(), which);
      pqkv::sync(gpu_);
      first += count;
    }
  }

  void draw_token() {
    for (std::size_t i = 0; i < key_.host.size(); ++i) {
      key_.host[i] = shaped(i / p_.head_dim % p_.kv_heads, i % p_.head_dim);
      value_.host[i] = random_.gaussian();
    }
    if (random_.below(40) == 0) key_.host[random_.below(static_cast<std::uint32_t>(key_.host.size()))] = INFINITY;
    for (float& x : query_.host) x = 3 * random_.gaussian();
    key_.upload(), value_.upload(), query_.upload();
  }
  void draw_active() {
    for (std::uint8_t& one : active_.host) one = random_.below(4) != 0 ? 1 : 0;
    active_.upload();
  }
  void append_host() { host_.append(pqkv::exec::host<>{}, keys(key_.host.data()), keys(value_.host.data()), mask()); }
  void append_device() { device_.append(gpu_, keys<device>(key_.there.data()), keys<device>(value_.there.data()), mask_there()); }
  void attend_device() {
    device_.attend(gpu_, queries<device>(query_.there.data()),
                   pqkv::make_view<device>(out_.there.data(), p_.batch, p_.query_heads, p_.head_dim),
                   pqkv::make_view<device>(lse_.there.data(), p_.batch, p_.query_heads), mask_there());
  }
  void maintain() {
    host_.maintain(pqkv::exec::host<>{});
    device_.maintain(gpu_);
  }
  void fork(std::size_t from, std::size_t to) {
    host_.fork(pqkv::exec::host<>{}, from, to);
    device_.fork(gpu_, from, to);
  }
  void reset(std::size_t slot) {
    host_.reset(slot);
    device_.reset(gpu_, slot);
  }

  /// Attention and lists of both.
  void compare(verdict& all, const char* what, std::size_t step) {
    attend_device();
    cudaDeviceSynchronize();
    compare_attention(all, what, step);
    const std::size_t lists = host_.lists();
    std::size_t k_max = 1;
    for (std::size_t slot = 0; slot < p_.batch; ++slot) k_max = std::max(k_max, host_.retrieve_capacity(slot));
    std::vector<std::int32_t> indices(p_.batch * lists * k_max, -7);
    std::vector<std::uint32_t> counts(p_.batch * lists, 77);
    const on_device<std::int32_t, 3> indices_there(pqkv::make_view(indices.data(), p_.batch, lists, k_max));
    const on_device<std::uint32_t, 2> counts_there(pqkv::make_view(counts.data(), p_.batch, lists));
    cudaDeviceSynchronize();
    device_.retrieve(gpu_, queries<device>(query_.there.data()), indices_there.view(), counts_there.view(), mask_there());
    cudaDeviceSynchronize();
    host_.retrieve(pqkv::exec::host<>{}, queries(query_.host.data()), pqkv::make_view(indices.data(), p_.batch, lists, k_max),
                   pqkv::make_view(counts.data(), p_.batch, lists), mask());
    all.check(same(counts, counts_there.bytes()) && same(indices, indices_there.bytes()), "%s: lists, step %zu", what, step);
    for (std::size_t row = 0; row < counts.size(); ++row) listed += counts[row] != 77 && counts[row] > 0 ? 1 : 0;
    const auto slots = device_.inspect(gpu_);
    for (std::size_t head = 0; head < slots.size(); ++head) {
      const std::size_t slot = head / p_.kv_heads;
      all.check(
          slots[head].extent.n == host_.size(slot) && slots[head].extent.window_begin == host_.middle(slot).end && slots[head].refused == 0,
          "%s: head %zu stands at %zu, step %zu", what, head, slots[head].extent.n, step);
    }
  }
  void compare_attention(verdict& all, const char* what, std::size_t step) {
    std::vector<float> out(out_.host.size(), 77.0f), lse(lse_.host.size(), 77.0f);
    host_.attend(pqkv::exec::host<>{}, queries(query_.host.data()), pqkv::make_view(out.data(), p_.batch, p_.query_heads, p_.head_dim),
                 pqkv::make_view(lse.data(), p_.batch, p_.query_heads), mask());
    out_.download(), lse_.download();
    double worst = 0;
    for (std::size_t i = 0; i < out.size(); ++i) {
      if (active_.host[i / (p_.query_heads * p_.head_dim)] == 0) continue;
      const bool both_broken = !std::isfinite(out[i]) && !std::isfinite(out_.host[i]);
      worst = std::max(worst, both_broken ? 0.0 : std::fabs(static_cast<double>(out[i]) - static_cast<double>(out_.host[i])));
      if (std::isfinite(out[i]) != std::isfinite(out_.host[i])) worst = INFINITY;
    }
    all.check(worst < 2e-4, "%s: attention differs by %g, step %zu", what, worst, step);
  }

  device_cache& on_gpu() { return device_; }
  const std::vector<float>& results() const { return out_.host; }
  void fetch_results() { out_.download(); }
  std::size_t listed = 0;  // lists compared that were not empty

 private:
  /// A few directions a head with noise, and an offset.
  float shaped(std::size_t head, std::size_t i) {
    const float wave = std::sin(static_cast<float>((head + 1) * (i + 3) * (1 + random_.below(6))));
    return 2 * wave + 0.5f * random_.gaussian() + static_cast<float>(i % 5);
  }
  template <class Space = pqkv::space::host>
  pqkv::view<const float, 3, Space> keys(const float* data) const {
    return pqkv::make_view<Space>(data, p_.batch, p_.kv_heads, p_.head_dim);
  }
  template <class Space = pqkv::space::host>
  pqkv::view<const float, 3, Space> queries(const float* data) const {
    return pqkv::make_view<Space>(data, p_.batch, p_.query_heads, p_.head_dim);
  }
  pqkv::active_slots mask() const { return pqkv::make_view(active_.host.data(), active_.host.size()); }
  pqkv::view<const std::uint8_t, 1, device> mask_there() const {
    return pqkv::make_view<device>(static_cast<const std::uint8_t*>(active_.there.data()), active_.host.size());
  }

  host_cache::params p_;
  pqkv::exec::cuda gpu_;
  host_cache host_;
  device_cache device_;
  random_source random_;
  mirrored<float> key_, value_, query_, out_, lse_;
  mirrored<std::uint8_t> active_;
};

host_cache::params base(std::size_t batch, std::size_t h, std::size_t g, std::size_t d, std::size_t capacity) {
  host_cache::params p{};
  p.batch = batch;
  p.kv_heads = h;
  p.query_heads = h * g;
  p.head_dim = d;
  p.capacity = capacity;
  p.budget.sinks = 8;
  p.budget.min_tokens = 40;
  p.selector.train.iterations = 4;
  p.selector.tail_tokens = 48;
  return p;
}

void lives(workload& work, verdict& all) {
  std::size_t listed = 0;
  for (int which = 0; which < 10; ++which) {
    if (!work.another()) continue;
    host_cache::params p = base(1 + which % 3, 2, which % 2 == 0 ? 4 : 2, which % 4 == 3 ? 64 : 128, 6000);
    if (which == 1) p.selector.path = search_path::scan;
    if (which == 2) p.selector.bits = 4;
    if (which == 3) p.selector.subspaces = 4, p.selector.bits = 8;
    if (which == 4) p.selector.reduction = group_reduction::none;
    if (which == 5) p.selector.reduction = group_reduction::logit_max;
    if (which == 6) p.budget.growth = pqkv::budget_growth::frozen_at_prompt;
    if (which == 7) p.budget.tokens = 300, p.selector.bits = 4;
    if (which == 8) p.selector.metric = pqkv::key_metric::inner_product;
    if (which == 9) p.budget.window = 1, p.budget.sinks = 0, p.selector.path = search_path::joint;
    life run(p, static_cast<std::uint64_t>(which) + 1);
    const std::size_t prompt = work.small() ? 400 : 2000, steps = work.small() ? 24 : 120;
    for (std::size_t slot = 0; slot < p.batch; ++slot) run.prefill(slot, which == 4 ? 200 : prompt + prompt / 2 * slot, 1 + slot, 1u << 20);
    run.draw_token();
    run.compare(all, "after the prompt", 0);
    for (std::size_t step = 1; step <= steps; ++step) {
      run.draw_token();
      if (p.batch > 1) run.draw_active();
      run.append_host(), run.append_device();
      if (step % (steps / 4) == 0) run.maintain();
      if (step == steps / 2 && p.batch > 1) run.fork(0, 1);
      if (step == steps * 2 / 3 && p.batch > 2) run.reset(2);
      if (step < 4 || step % 12 == 0) run.compare(all, "a life", static_cast<std::size_t>(which) * 1000 + step);
    }
    listed += run.listed;
  }
  all.check(listed > (work.small() ? 0 : 200), "only %zu lists were not empty", listed);
}

/// A slot whose prompt has too few different rows is dense until maintain() trains it.
void late_training(const workload& work, verdict& all) {
  host_cache::params p = base(2, 2, 2, 64, 3000);
  p.selector.bits = 4;
  life run(p, 77);
  run.prefill(0, work.small() ? 200 : 1000, 1, 5);
  for (std::size_t step = 0; step < (work.small() ? 60u : 200u); ++step) {
    run.draw_token();
    run.append_host(), run.append_device();
    if (step % 20 == 19) run.maintain();
    if (step % 10 == 9) run.compare(all, "late training", step);
  }
  const auto slots = run.on_gpu().inspect(pqkv::exec::cuda{});
  all.check(slots[0].trained == 1 && slots[2].trained == 1, "a slot was not trained in the end");
}

/// One step captured once, replayed while both sequences grow; an eager twin gives the same bits.
void replay(workload& work, verdict& all) {
  host_cache::params p = base(2, 4, 4, 128, 12000);
  cudaStream_t stream = nullptr;
  pqkv::detail::check_cuda(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "test", "cudaStreamCreateWithFlags");
  life captured(p, 5, stream), eager(p, 5);
  for (life* one : {&captured, &eager}) {
    one->prefill(0, work.small() ? 700 : 7000, 1, 1u << 20);
    one->prefill(1, work.small() ? 500 : 5000, 2, 1u << 20);
    one->draw_token();
  }
  cudaDeviceSynchronize();
  cudaGraph_t recorded = nullptr;
  cudaGraphExec_t step = nullptr;
  pqkv::detail::check_cuda(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "test", "cudaStreamBeginCapture");
  captured.append_device();
  captured.attend_device();
  pqkv::detail::check_cuda(cudaStreamEndCapture(stream, &recorded), "test", "cudaStreamEndCapture");
  pqkv::detail::check_cuda(cudaGraphInstantiate(&step, recorded, 0), "test", "cudaGraphInstantiate");
  const std::size_t period = work.small() ? 10 : 100, upkeep = work.small() ? 32 : 256;  // of comparisons with the host, of maintain()
  for (std::size_t n = 0; n < 20 * period; ++n) {
    if (!work.another()) continue;
    for (life* one : {&captured, &eager}) one->draw_token();
    cudaDeviceSynchronize();
    pqkv::detail::check_cuda(cudaGraphLaunch(step, stream), "test", "cudaGraphLaunch");
    captured.append_host();
    eager.append_device(), eager.append_host();
    eager.attend_device();
    cudaDeviceSynchronize();
    if (n % upkeep == upkeep - 1) captured.maintain(), eager.maintain();
    captured.fetch_results(), eager.fetch_results();
    all.check(same(captured.results(), eager.results()), "replay %zu differs from the eager step", n);
    if (n % period == period - 1) captured.compare_attention(all, "replay", n);
    if (n % (5 * period) == 5 * period - 1) captured.compare(all, "replay", n);
  }
  cudaGraphExecDestroy(step);
  cudaGraphDestroy(recorded);
  cudaStreamDestroy(stream);
}

/// Tokens beyond the capacity are counted and change nothing.
void full(verdict& all) {
  host_cache::params p = base(1, 2, 2, 64, 2000);
  life run(p, 9);
  run.prefill(0, 1999, 1, 1u << 20);
  run.draw_token();
  for (int i = 0; i < 3; ++i) run.append_device();
  run.append_host();
  const auto slots = run.on_gpu().inspect(pqkv::exec::cuda{});
  all.check(slots[0].extent.n == 2000 && slots[0].refused == 2, "n %zu, refused %u", slots[0].extent.n, slots[0].refused);
  run.attend_device();
  run.compare_attention(all, "a full cache", 0);
}
}  // namespace

/// What a device does not do is refused by name.
void refusals(verdict& all) {
  const host_cache::params base_params = base(1, 2, 2, 64, 2000);
  device_cache::params p = life::device_params(base_params);
  all.check(device_cache::can_construct(p).ok(), "the control is refused");
  p.selector.residual.subspaces = 4;
  all.check(!device_cache::can_construct(p).ok() && device_cache::can_construct(p).parameter == std::string("selector.residual.subspaces"),
            "a second stage is not refused");
  p = life::device_params(base_params);
  p.selector.overlap.emplace();
  p.selector.overlap->b1 = 1;
  all.check(!device_cache::can_construct(p).ok() && device_cache::can_construct(p).parameter == std::string("selector.overlap"),
            "the overlap rule is not refused");
}

int main(int argc, char** argv) {
  if (!has_device()) return 77;
  workload work(argc, argv, 1);
  verdict random_lives("lives"), late("late training"), graphs("graph replays"), filled("full"), refused("refusals");
  work.part(0.5);
  lives(work, random_lives);
  late_training(work, late);
  work.part(1);
  replay(work, graphs);
  full(filled);
  refusals(refused);
  work.print();
  const bool whole = !work.small();
  bool passed = random_lives.passed(whole ? 400 : 1);
  passed &= late.passed(whole ? 40 : 1);
  passed &= graphs.passed(whole ? 2020 : 1);
  passed &= filled.passed(2);
  passed &= refused.passed(3);
  return passed ? 0 : 1;
}
