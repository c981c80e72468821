// SPDX-License-Identifier: Apache-2.0
// One life of two caches, the host's and the device's: the same prompts, steps, cuts and forks, and what comes back compared.
#pragma once

#include "on_device.cuh"

#include <pqkv/device_pqcache.cuh>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "cases/inputs.hpp"
#include "cases/slot_bytes.hpp"

namespace pqkv_cases {

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

/// A step that is captured once.
class captured_step {
 public:
  template <class Enqueue>
  captured_step(cudaStream_t stream, Enqueue enqueue) : stream_(stream) {
    cudaGraph_t recorded = nullptr;
    pqkv::detail::check_cuda(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "test", "cudaStreamBeginCapture");
    enqueue();
    pqkv::detail::check_cuda(cudaStreamEndCapture(stream, &recorded), "test", "cudaStreamEndCapture");
    pqkv::detail::check_cuda(cudaGraphInstantiate(&step_, recorded, 0), "test", "cudaGraphInstantiate");
    cudaGraphDestroy(recorded);
  }
  captured_step(const captured_step&) = delete;
  captured_step& operator=(const captured_step&) = delete;
  ~captured_step() { cudaGraphExecDestroy(step_); }
  void launch() const { pqkv::detail::check_cuda(cudaGraphLaunch(step_, stream_), "test", "cudaGraphLaunch"); }

 private:
  cudaStream_t stream_;
  cudaGraphExec_t step_ = nullptr;
};

/// Which slots a step is for.
enum class step_kind {
  all,    // every slot one token, in order: nothing has to be looked up
  some,   // some slots in any order, one token each
  ragged  // some slots in any order, 0 to 16 tokens each
};

inline constexpr std::size_t most_row_tokens = 16;

/// @tparam Host, Device  caches of the same settings
template <class Host, class Device>
class life {
 public:
  using host_type = Host;
  using params = typename Host::params;

  /// @param padding  elements behind each row of a query
  life(const params& p, std::uint64_t seed, cudaStream_t stream = nullptr, std::size_t padding = 0)
      : p_(p),
        gpu_{stream, {}},
        host_(p),
        device_(gpu_, device_params(p)),
        random_(seed),
        query_row_(p.head_dim + padding),
        key_(most_tokens() * p.kv_heads * p.head_dim),
        value_(key_.host.size()),
        query_(most_tokens() * p.query_heads * query_row_),
        out_(most_tokens() * p.query_heads * p.head_dim, 77.0f),
        lse_(most_tokens() * p.query_heads, 77.0f),
        slots_(p.batch),
        counts_(p.batch),
        lengths_(p.batch) {
    draw_step(step_kind::all);
  }

  static typename Device::params device_params(const params& p) {
    typename Device::params same{};
    static_cast<pqkv::cache_shape&>(same) = p;
    same.budget = p.budget;
    if constexpr (requires { same.selector = p.selector; }) same.selector = p.selector;
    if constexpr (requires { same.rows.cache_tokens = p.rows.cache_tokens; }) {
      same.rows.sink_tokens = p.rows.sink_tokens, same.rows.recent_tokens = p.rows.recent_tokens;
      same.rows.cache_tokens = p.rows.cache_tokens, same.rows.block_tokens = p.rows.block_tokens;
      same.rows.admit_blocks = p.rows.admit_blocks, same.rows.scope = p.rows.scope;
    }
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
    observe(slot, 1 + n / 4);
    for (std::size_t first = 0, c = 0; first < n; ++c) {
      const std::size_t count = c + 1 >= chunks ? n - first : n / chunks;
      const auto part = [&](std::vector<float>& rows) { return pqkv::make_view(rows.data(), h, n, d).slice(1, first, count); };
      const auto which = first + count == n ? pqkv::chunk::last : pqkv::chunk::more;
      host_.prefill(cpu, slot, part(keys), part(values), which);
      const on_device<float, 3> key(part(keys)), value(part(values));
      cudaDeviceSynchronize();  // uploads are on the default stream
      device_.prefill(gpu_, slot, key.view(), value.view(), which);
      pqkv::sync(gpu_);
      first += count;
    }
  }

  /// Shows both caches queries of the prompt where their axes are weighted. Coordinates differ in size, one query is not finite.
  void observe(std::size_t slot, std::size_t n) {
    if constexpr (requires { p_.selector.axes; }) {
      if (p_.selector.axes != pqkv::axis_order::weighted_pairs) return;
      std::vector<float> queries(n * p_.query_heads * p_.head_dim);
      for (std::size_t i = 0; i < queries.size(); ++i) queries[i] = random_.gaussian() * static_cast<float>(1 + i % p_.head_dim % 7);
      queries[random_.below(static_cast<std::uint32_t>(queries.size()))] = INFINITY;
      const auto shown = pqkv::make_view(queries.data(), n, p_.query_heads, p_.head_dim);
      host_.observe(cpu, slot, shown);
      const on_device<float, 3> there(shown);
      cudaDeviceSynchronize();
      device_.observe(gpu_, slot, there.view());
      pqkv::sync(gpu_);
    }
  }

  /// What the next step is for; draw_tokens() then fills it.
  void draw_step(step_kind kind, std::size_t least_rows = 1) {
    kind_ = kind;
    rows_ = p_.batch;
    std::iota(slots_.host.begin(), slots_.host.end(), 0u);
    std::fill(counts_.host.begin(), counts_.host.end(), 1u);
    if (kind != step_kind::all) {
      for (std::uint32_t i = 0; i < rows_; ++i)
        std::swap(slots_.host[i], slots_.host[i + random_.below(static_cast<std::uint32_t>(rows_ - i))]);
      rows_ = least_rows + random_.below(static_cast<std::uint32_t>(p_.batch - least_rows + 1));
    }
    if (kind == step_kind::ragged) {
      for (std::size_t row = 0; row < rows_; ++row) counts_.host[row] = random_.below(most_row_tokens + 1);
      counts_.host[0] = std::max(counts_.host[0], 1u);
    }
    slots_.upload(), counts_.upload();
  }
  /// The same rows as before, other counts of them, up to `most` each.
  void draw_counts(std::uint32_t most) {
    for (std::size_t row = 0; row < rows_; ++row) counts_.host[row] = random_.below(most + 1);
    counts_.upload();
  }
  void draw_tokens() {
    for (std::size_t i = 0; i < key_.host.size(); ++i) {
      key_.host[i] = shaped(i / p_.head_dim % p_.kv_heads, i % p_.head_dim);
      value_.host[i] = random_.gaussian();
    }
    if (random_.below(40) == 0) key_.host[random_.below(static_cast<std::uint32_t>(p_.head_dim))] = INFINITY;
    if (random_.below(40) == 0) value_.host[random_.below(static_cast<std::uint32_t>(p_.head_dim))] = INFINITY;
    for (float& x : query_.host) x = 3 * random_.gaussian();
    key_.upload(), value_.upload(), query_.upload();
  }

  void append_host() { host_.append(cpu, rows_of(key_.host.data(), tokens()), rows_of(value_.host.data(), tokens()), here()); }
  /// @param extent  tokens that the arrays have; more than the step's where a captured step has room
  void append_device(std::size_t extent = 0) {
    const std::size_t n = extent != 0 ? extent : tokens();
    device_.append(gpu_, rows_of<device>(key_.there.data(), n), rows_of<device>(value_.there.data(), n), there());
  }
  void attend_device(std::size_t extent = 0) {
    const std::size_t n = extent != 0 ? extent : tokens();
    device_.attend(gpu_, queries<device>(query_.there.data(), n),
                   pqkv::make_view<device>(out_.there.data(), n, p_.query_heads, p_.head_dim),
                   pqkv::make_view<device>(lse_.there.data(), n, p_.query_heads), there());
  }
  void maintain() {
    host_.maintain(cpu);
    device_.maintain(gpu_);
  }
  void fork(std::size_t from, std::size_t to) {
    host_.fork(cpu, from, to);
    device_.fork(gpu_, from, to);
  }
  /// Each cache's slot goes into the other cache, through a file.
  void exchange(verdict& all, std::size_t from, std::size_t to) {
    const std::vector<std::byte> mine = saved(cpu, host_, from), theirs = saved(gpu_, device_, from);
    all.check(mine == theirs, "the file of slot %zu differs", from);
    reset(to);
    load(cpu, host_, to, theirs);
    load(gpu_, device_, to, mine);
  }
  void reset(std::size_t slot) {
    host_.reset(slot);
    device_.reset(gpu_, slot);
  }

  /// A few tokens of each slot, sometimes many, go again.
  void draw_lengths() {
    for (std::size_t slot = 0; slot < p_.batch; ++slot) {
      const auto n = static_cast<std::uint32_t>(host_.size(slot)), most = random_.below(8) == 0 ? n : std::min(n, 24u);
      lengths_.host[slot] = n - random_.below(most + 1);
    }
    lengths_.upload();
  }
  /// The last step's tokens go again, or some of them; as many of each row as are asked for.
  void draw_rejections() {
    for (std::size_t slot = 0; slot < p_.batch; ++slot) lengths_.host[slot] = static_cast<std::uint32_t>(host_.size(slot));
    for (std::size_t row = 0; row < rows_; ++row)
      lengths_.host[slots_.host[row]] += counts_.host[row] - random_.below(counts_.host[row] + 1);
    lengths_.upload();
  }
  /// A slot that would be longer than `most` is cut to less than `most` instead.
  void cap_lengths(std::uint32_t most) {
    for (std::uint32_t& length : lengths_.host)
      if (length > most) length = most / 4 + random_.below(most / 2);
    lengths_.upload();
  }
  void truncate_host() { host_.truncate(cpu, pqkv::as_const(pqkv::make_view(lengths_.host.data(), p_.batch))); }
  void truncate_device() { device_.truncate(gpu_, pqkv::as_const(pqkv::make_view<device>(lengths_.there.data(), p_.batch))); }
  void truncate(std::size_t slot) {
    host_.truncate(cpu, slot, lengths_.host[slot]);
    device_.truncate(gpu_, slot, lengths_.host[slot]);
  }

  /// Attention and lists of both, for the last step's tokens.
  void compare(verdict& all, const char* what, std::size_t step) {
    attend_device();
    cudaDeviceSynchronize();
    compare_attention(all, what, step);
    const std::size_t lists = host_.lists(), n = tokens();
    std::size_t k_max = 1;
    for (std::size_t slot = 0; slot < p_.batch; ++slot) k_max = std::max(k_max, host_.retrieve_capacity(slot));
    std::vector<std::int32_t> indices(n * lists * k_max, -7);
    std::vector<std::uint32_t> counts(n * lists, 77);
    const on_device<std::int32_t, 3> indices_there(pqkv::make_view(indices.data(), n, lists, k_max));
    const on_device<std::uint32_t, 2> counts_there(pqkv::make_view(counts.data(), n, lists));
    cudaDeviceSynchronize();
    device_.retrieve(gpu_, queries<device>(query_.there.data(), n), indices_there.view(), counts_there.view(), there());
    cudaDeviceSynchronize();
    host_.retrieve(cpu, queries(query_.host.data(), n), pqkv::make_view(indices.data(), n, lists, k_max),
                   pqkv::make_view(counts.data(), n, lists), here());
    all.check(same(counts, counts_there.bytes()) && same(indices, indices_there.bytes()), "%s: lists, step %zu", what, step);
    for (const std::uint32_t count : counts) listed += count > 0 ? 1 : 0;
    compare_state(all, what, step);
  }
  /// Where the sequences stand.
  void compare_state(verdict& all, const char* what, std::size_t step) {
    for (std::size_t slot = 0; slot < p_.batch; ++slot) {
      const pqkv::sequence now = device_.at(gpu_, slot), &wanted = host_.at(slot);
      all.check(std::memcmp(&now, &wanted, sizeof now) == 0, "%s: slot %zu has %u tokens of %u, step %zu", what, slot, now.n, wanted.n,
                step);
    }
  }
  /// What was counted; of lives in which both caches answered the same.
  void compare_statistics(verdict& all, const char* what, std::size_t step) {
    for (std::size_t slot = 0; slot < p_.batch; ++slot) {
      const pqkv::slot_statistics now = device_.statistics(gpu_, slot), &wanted = host_.statistics(slot);
      all.check(std::memcmp(&now, &wanted, sizeof now) == 0, "%s: statistics of slot %zu, step %zu", what, slot, step);
    }
  }
  void compare_attention(verdict& all, const char* what, std::size_t step) {
    const std::size_t n = tokens();
    std::vector<float> out(out_.host.size(), 77.0f), lse(lse_.host.size(), 77.0f);
    host_.attend(cpu, queries(query_.host.data(), n), pqkv::make_view(out.data(), n, p_.query_heads, p_.head_dim),
                 pqkv::make_view(lse.data(), n, p_.query_heads), here());
    out_.download(), lse_.download();
    all.check(worst_of(out, out_.host, n * p_.query_heads * p_.head_dim) < 2e-4, "%s: attention differs, step %zu", what, step);
    all.check(worst_of(lse, lse_.host, n * p_.query_heads) < 1e-3, "%s: log-sum-exps differ, step %zu", what, step);
  }

  Device& on_gpu() { return device_; }
  Host& on_host() { return host_; }
  const pqkv::exec::cuda& gpu() const { return gpu_; }
  std::size_t tokens() const {
    return std::accumulate(counts_.host.begin(), counts_.host.begin() + static_cast<std::ptrdiff_t>(rows_), 0u);
  }
  /// Of the first tokens of a step.
  std::vector<float> results(std::size_t count) {
    out_.download();
    return {out_.host.begin(), out_.host.begin() + static_cast<std::ptrdiff_t>(count * p_.query_heads * p_.head_dim)};
  }
  std::size_t listed = 0;  // lists compared that were not empty

 private:
  std::size_t most_tokens() const { return p_.batch * most_row_tokens; }
  /// A few directions a head with noise, and an offset.
  float shaped(std::size_t head, std::size_t i) {
    const float wave = std::sin(static_cast<float>((head + 1) * (i + 3) * (1 + random_.below(6))));
    return 2 * wave + 0.5f * random_.gaussian() + static_cast<float>(i % 5);
  }
  static double worst_of(const std::vector<float>& a, const std::vector<float>& b, std::size_t count) {
    double worst = 0;
    for (std::size_t i = 0; i < count; ++i) {
      const bool both_broken = !std::isfinite(a[i]) && !std::isfinite(b[i]);
      worst = std::max(worst, both_broken ? 0.0 : std::fabs(static_cast<double>(a[i]) - static_cast<double>(b[i])));
      if (std::isfinite(a[i]) != std::isfinite(b[i])) worst = INFINITY;
    }
    return worst;
  }
  template <class Space = pqkv::space::host>
  pqkv::view<const float, 3, Space> rows_of(const float* data, std::size_t n) const {
    return pqkv::make_view<Space>(data, n, p_.kv_heads, p_.head_dim);
  }
  template <class Space = pqkv::space::host>
  pqkv::view<const float, 3, Space> queries(const float* data, std::size_t n) const {
    return {data, {n, p_.query_heads, p_.head_dim}, {p_.query_heads * query_row_, query_row_, 1}};
  }
  template <class Space>
  pqkv::basic_step<Space> step_of(const std::uint32_t* slots, const std::uint32_t* counts) const {
    pqkv::basic_step<Space> step{};
    if (kind_ != step_kind::all) step.slots = pqkv::make_view<Space>(slots, rows_);
    if (kind_ == step_kind::ragged) step.counts = pqkv::make_view<Space>(counts, rows_);
    return step;
  }
  pqkv::cache_step here() const { return step_of<pqkv::space::host>(slots_.host.data(), counts_.host.data()); }
  pqkv::basic_step<device> there() const { return step_of<device>(slots_.there.data(), counts_.there.data()); }

  static constexpr pqkv::exec::host<> cpu{};
  params p_;
  pqkv::exec::cuda gpu_;
  Host host_;
  Device device_;
  random_source random_;
  std::size_t query_row_;
  step_kind kind_ = step_kind::all;
  std::size_t rows_ = 0;
  mirrored<float> key_, value_, query_, out_, lse_;
  mirrored<std::uint32_t> slots_, counts_, lengths_;
};

/// One step of two lives that are alike, replayed in one and eager in the other.
/// @return whether attention's results of so many slots are the same
template <class Life>
bool replays_as_eager(const captured_step& step, Life& captured, Life& eager, std::size_t slots, bool maintains) {
  for (Life* one : {&captured, &eager}) one->draw_tokens();
  cudaDeviceSynchronize();
  step.launch();
  captured.append_host();
  eager.append_device(), eager.append_host();
  eager.attend_device();
  cudaDeviceSynchronize();
  if (maintains) captured.maintain(), eager.maintain();
  return same(captured.results(slots), eager.results(slots));
}

}  // namespace pqkv_cases
