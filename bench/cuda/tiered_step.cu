// SPDX-License-Identifier: Apache-2.0
// A whole decode step of one layer with keys and values in pinned host memory, append, attend and admission in one CUDA graph: 8 KV heads,
// 32 query heads, head dimension 128, bfloat16; 2 x 6 bits over the middle; 1024 tokens retrieved, 1024 sinks and window, as in
// pqcache_step.cu. `over_attended` is the default's normalisation.
//
// Parts of the step, by leaving some out: append; append and retrieve (whose time includes the lists' copy); attention alone to as many
// rows on the GPU; the step with all rows on the GPU; `.../without_update`, with the same cache and queries as the whole step before it, in
// which no block enters and nothing is copied; the whole step. bench/tier_parts.py makes parts of them. `dense` attends to all tokens, with
// all rows on the GPU. And the fetch alone: attention to listed rows of which none is in device memory.
//
// Throughput: `throughput/...` are steps of many sequences of 120000 tokens, each with its own queries.
//
// Keys come in runs of 64 tokens around one of n / 1024 directions a head, and a query head asks for one of them, so that a list is about
// the 1024 tokens of a direction. `kept` of the 8 KV heads ask for one of eight directions in every step; the others for any. The cache has
// room for 8192 tokens in blocks of 16 and lets a block in if it is wanted more often than the one that leaves, so it keeps those eight;
// `no_cache` has none. A line of its own says how many of the selected tokens were there. Every step has other queries. Bytes are those
// that attention reads.
//
//   tiered_step [name prefix | --names]    exit code 77 where there is no GPU
#include <pqkv/device_pqcache.cuh>

#include "data.cuh"
#include "timing.cuh"

namespace {
using namespace bench;
using stored = pqkv::bfloat16;
template <class T>
using tiers_of = pqkv::tiered_rows<pqkv::owned_rows<T, pqkv::space::pinned>, device, pqkv::eviction::tiny_lfu>;
using tiers = tiers_of<stored>;
constexpr std::size_t h = 8, g = 4, d = 128, hq = h * g, room = 4096, sinks = 64, window = 960, retrieved = 1024;
constexpr std::size_t run_tokens = 64, kept_directions = 8, drawn_steps = 256;

/// Keys [h, n, d] in runs of tokens around one direction.
struct keys_in_runs {
  pqkv::random_stream directions, choices, noise;
  std::size_t n, count;
  PQKV_HD stored operator()(std::size_t i) const {
    const std::size_t row = i / d, head = row / n, token = row - head * n;
    const std::size_t direction = head * count + choices.below(token / run_tokens, static_cast<std::uint32_t>(count));
    return static_cast<stored>(normal_draw(directions, direction * d + i % d) + 0.5f * normal_draw(noise, i));
  }
};

/// Bytes of which any four are a float of 2^-15 to 2^-1.
struct bytes_of_scales {
  pqkv::random_stream draws;
  PQKV_HD std::byte operator()(std::size_t i) const { return static_cast<std::byte>(0x38 + draws.below(i, 7)); }
};

/// Queries [steps, hq, d] for the directions of `asked` [steps, h].
struct asking_queries {
  pqkv::random_stream directions, noise;
  const std::uint32_t* asked;
  std::size_t count;
  PQKV_HD float operator()(std::size_t i) const {
    const std::size_t step = i / (hq * d), head = i / (g * d) % h, direction = head * count + asked[step * h + head];
    return normal_draw(directions, direction * d + i % d) + 0.1f * normal_draw(noise, i);
  }
};

std::vector<std::uint32_t> asked_directions(std::size_t kept, std::size_t count) {
  const pqkv::random_stream draws = next_stream();
  std::vector<std::uint32_t> asked(drawn_steps * h);
  for (std::size_t i = 0; i < asked.size(); ++i) {
    const bool is_kept = (i / h + i % h * 3) % h < kept;  // another head in every step
    asked[i] =
        is_kept ? draws.below(i, kept_directions) : kept_directions + draws.below(i, static_cast<std::uint32_t>(count - kept_directions));
  }
  return asked;
}

/// [drawn steps, query heads, d] queries for the directions of asked_directions(). @param keys  the stream of the keys' directions
pqkv::device_buffer<float> queries_of(std::size_t kept, const pqkv::random_stream& keys, std::size_t count) {
  const auto asked = upload(asked_directions(kept, count));
  return filled<float>(drawn_steps * hq * d, asking_queries{keys, next_stream(), asked.data(), count});
}

/// The same rows. Without updates no block enters the block cache.
struct switched_tiers : tiers {
  using tiers::tiers;
  bool updates = true;
  template <class P, class Wanted>
  void look_up(const P& policy, const Wanted& asked) const {
    if (updates) tiers::look_up(policy, asked);
  }
  template <class P, class Sequences>
  void admit(const P& policy, Sequences sequences, std::uint32_t passes) const {
    if (updates) tiers::admit(policy, sequences, passes);
  }
};

struct cache_settings {
  std::size_t n, batch = 1, spare = room;
  pqkv::selector::normalisation over = pqkv::selector::normalisation::middle;
  bool is_dense = false;
};

template <class Rows>
pqkv::pqcache<Rows> filled_cache(const cache_settings& settings, pqkv::random_stream directions, typename Rows::params rows = {}) {
  const std::size_t n = settings.n;
  typename pqkv::pqcache<Rows>::params p{};
  p.batch = settings.batch;
  p.kv_heads = h;
  p.query_heads = hq;
  p.head_dim = d;
  p.capacity = n + settings.spare;
  p.budget.sinks = sinks;
  p.budget.window = window;
  p.budget.retrieve = settings.is_dense ? p.capacity : retrieved;
  p.selector.subspaces = 2;
  p.selector.bits = 6;
  p.selector.over = settings.over;
  p.selector.train = {.iterations = 10, .seed = 1, .rows_per_centroid = 256};
  p.rows = rows;
  const pqkv::exec::cuda gpu;
  pqkv::pqcache<Rows> cache(gpu, p);
  const auto keys = filled<stored>(h * n * d, keys_in_runs{directions, next_stream(), next_stream(), n, n / retrieved});
  const auto values = normals<stored>(h * n * d);  // freed after the prefill
  const auto of = [n](const pqkv::device_buffer<stored>& data) { return pqkv::make_view<device>(data.data(), h, n, d); };
  cache.prefill(gpu, 0, of(keys), of(values));
  for (std::size_t slot = 1; slot < p.batch; ++slot) cache.fork(gpu, 0, slot);
  pqkv::sync(gpu);
  return cache;
}

enum class part { append, retrieve, whole };

/// The counts of all slots.
template <class Cache>
pqkv::tier_statistics all_of(const Cache& cache) {
  pqkv::tier_statistics sum{};
  for (std::size_t slot = 0; slot < cache.parameters().batch; ++slot) sum += cache.rows().statistics(slot);
  return sum;
}

/// Times a step of a cache, or its first part, with other queries each time.
/// @param name  of the line that is printed
template <class Cache>
void measure_steps(const std::string& name, Cache& cache, const pqkv::device_buffer<float>& queries, std::size_t warm_up,
                   part which = part::whole) {
  const std::size_t batch = cache.parameters().batch;
  const auto key = normals<float>(batch * h * d), value = normals<float>(batch * h * d);
  const pqkv::device_buffer<float> query(batch * hq * d, nullptr), out(batch * hq * d, nullptr);
  const pqkv::device_buffer<std::int32_t> indices(batch * h * retrieved, nullptr);
  const pqkv::device_buffer<std::uint32_t> counts(batch * h, nullptr);
  const stopwatch watch;
  const l2_flush flush(l2_bytes());
  auto step = [&](void* stream, int) {
    const pqkv::exec::cuda on{stream, {}};
    cache.append(on, pqkv::make_view<device>(key.data(), batch, h, d), pqkv::make_view<device>(value.data(), batch, h, d));
    const auto asked = pqkv::make_view<device>(query.data(), batch, hq, d);
    if (which == part::retrieve)
      cache.retrieve(on, asked, pqkv::make_view<device>(indices.data(), batch, h, retrieved),
                     pqkv::make_view<device>(counts.data(), batch, h));
    if (which == part::whole) cache.attend(on, asked, pqkv::make_view<device>(out.data(), batch, hq, d));
  };
  stopwatch::check(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
  const call_graph graph(watch.stream(), 1, step);
  std::size_t next = 0;
  const auto ask = [&] {
    stopwatch::check(cudaMemcpyAsync(query.data(), queries.data() + next++ % (drawn_steps / batch) * batch * hq * d,
                                     batch * hq * d * sizeof(float), cudaMemcpyDeviceToDevice, watch.stream()),
                     "cudaMemcpyAsync");
  };
  for (std::size_t i = 0; i < warm_up; ++i) ask(), graph.launch(watch.stream());
  stopwatch::check(cudaStreamSynchronize(watch.stream()), "cudaStreamSynchronize");
  const auto counted = [&] {
    if constexpr (pqkv::rows_of_tiers<std::remove_cvref_t<decltype(cache.rows())>>)
      return all_of(cache);
    else
      return pqkv::tier_statistics{};
  };
  const pqkv::tier_statistics before = counted();
  const pqkv::token_budget attended = cache.budget(pqkv::exec::cuda{watch.stream(), {}}, 0);
  const std::size_t tokens = std::min<std::size_t>(sinks + window + attended.retrieve, cache.size(pqkv::exec::cuda{watch.stream(), {}}, 0));
  const timing how{.calls = 1,
                   .replays = batch == 1 ? 100 : 30,
                   .cold_replays = batch == 1 ? 30 : 10,
                   .bytes = static_cast<double>(batch * h * tokens * 2 * d * sizeof(stored))};
  const std::vector<float> warm = times_of(watch, graph, 1, how.replays, [&] {
    ask();
    wait_kernel<long long><<<1, 1, 0, watch.stream()>>>(100000);  // 60 us
    stopwatch::check(cudaGetLastError(), "wait_kernel");
  });
  const std::vector<float> cold = times_of(watch, graph, 1, how.cold_replays, [&] { ask(), flush(watch.stream()); });
  print_line(name, how, warm, cold);
  const pqkv::tier_statistics after = counted();
  const double hits = static_cast<double>(after.hits - before.hits), misses = static_cast<double>(after.misses - before.misses),
               steps = static_cast<double>(how.replays + how.cold_replays + 6);
  if (hits + misses > 0)
    std::printf("{\"tier\": \"%s\", \"hit_rate\": %.3f, \"slow_bytes_of_a_step\": %.0f, \"admissions_of_a_step\": %.1f}\n", name.c_str(),
                hits / (hits + misses), static_cast<double>(after.slow_bytes - before.slow_bytes) / steps,
                static_cast<double>(after.admissions - before.admissions) / steps);
  std::fflush(stdout);
}

/// Steps that fill the block cache.
void fill_cache(pqkv::pqcache<switched_tiers>& cache, const pqkv::device_buffer<float>& queries) {
  const auto key = normals<float>(h * d), value = normals<float>(h * d);
  const pqkv::device_buffer<float> out(hq * d, nullptr);
  const pqkv::exec::cuda gpu;
  for (std::size_t i = 0; i < 300; ++i) {
    cache.append(gpu, pqkv::make_view<device>(key.data(), 1, h, d), pqkv::make_view<device>(value.data(), 1, h, d));
    cache.attend(gpu, pqkv::make_view<device>(queries.data() + i % drawn_steps * hq * d, 1, hq, d),
                 pqkv::make_view<device>(out.data(), 1, hq, d));
  }
  pqkv::sync(gpu);
}

/// Attention alone, with all rows on the GPU, to as many tokens as a step attends to.
void attend_alone(const std::string& name, std::size_t n) {
  const auto rows = normals<stored>(h * n * 2 * d);
  const auto store = pqkv::interleaved_kv<device>(static_cast<const stored*>(rows.data()), h, n, d);
  const pqkv::random_stream draws = next_stream();
  constexpr std::size_t sets = 4;
  const std::size_t run = (n - sinks - window) / retrieved;
  std::vector<std::int32_t> tokens(sets * h * retrieved);
  for (std::size_t i = 0; i < tokens.size(); ++i)
    tokens[i] = static_cast<std::int32_t>(sinks + i % retrieved * run + draws.below(i, static_cast<std::uint32_t>(run)));
  const auto indices = upload(tokens);
  const auto counts = upload(std::vector<std::uint32_t>(h, static_cast<std::uint32_t>(retrieved)));
  const auto end = static_cast<std::uint32_t>(n);
  const auto spans = upload(std::vector<pqkv::token_span>(h, {sinks, end - static_cast<std::uint32_t>(window), end}));
  const auto query = normals<float>(hq * d);
  const pqkv::device_buffer<float> out(hq * d, nullptr);
  const pqkv::device_buffer<std::byte> scratch(device_bytes<pqkv::op::attention>({.query_heads = hq, .head_dim = d}), nullptr);
  measure(name, {.calls = sets, .replays = 20}, [&](void* stream, int i) {
    const pqkv::token_set<device> asked{
        pqkv::as_const(pqkv::make_view<device>(spans.data(), h)),
        pqkv::as_const(pqkv::make_view<device>(indices.data() + static_cast<std::size_t>(i) * h * retrieved, h, retrieved)),
        pqkv::as_const(pqkv::make_view<device>(counts.data(), h))};
    pqkv::attention(pqkv::exec::cuda{stream, pqkv::arena(scratch)}, pqkv::as_const(pqkv::make_view<device>(query.data(), hq, d)), store,
                    asked, pqkv::make_view<device>(out.data(), hq, d));
  });
}

std::string step_name(const std::string& what, std::size_t n) {
  return named("tiered_step/" + what, {{"h", h}, {"g", g}, {"d", d}, {"n", n}});
}
bool is_measured(const std::string& name) { return !lists_names && name.compare(0, wanted.size(), wanted) == 0; }

void steps(std::size_t n) {
  struct kind {
    const char* what;
    std::size_t kept, cache_tokens;
  };
  constexpr std::size_t room_tokens = kept_directions * retrieved;
  constexpr kind kinds[] = {{"no_cache", 0, 0},         {"kept:5", 5, room_tokens}, {"kept:7", 7, room_tokens},
                            {"kept:0", 0, room_tokens}, {"kept:6", 6, room_tokens}, {"kept:8", 8, room_tokens}};
  const std::size_t measured = n == 131072 ? std::size(kinds) : 3;
  constexpr std::size_t split = 3;  // kinds that are measured without the update too
  const auto name = [n](const std::string& what) { return step_name(what, n); };
  const auto without = [](const kind& one) { return std::string(one.what) + "/without_update"; };
  std::vector<std::string> names{name("all_on_gpu"),    name("append"),        name("retrieve_on_gpu"),
                                 name("append_on_gpu"), name("attend_on_gpu"), name("dense")};
  for (std::size_t i = 0; i < measured; ++i) names.push_back(name(kinds[i].what));
  for (std::size_t i = 0; i < split; ++i) names.push_back(name(without(kinds[i])));
  if (n == 131072) names.push_back(name("over_attended/kept:5"));
  if (!is_any_wanted(names)) return;
  const pqkv::random_stream directions = next_stream();
  const std::size_t count = n / retrieved;
  const auto rows_of = [](std::size_t cache_tokens) {
    return tiers::params{.sink_tokens = sinks, .recent_tokens = 1024, .cache_tokens = cache_tokens, .admit_blocks = 64};
  };
  const auto go = [&](const std::string& what, auto& cache, const auto& asked, std::size_t warm_up, part which = part::whole) {
    if (is_measured(name(what))) measure_steps(name(what), cache, asked, warm_up, which);
  };
  if (is_measured(name("all_on_gpu")) || is_measured(name("append_on_gpu")) || is_measured(name("retrieve_on_gpu"))) {
    auto cache = filled_cache<pqkv::dense_rows<stored, device>>({.n = n}, directions);
    const auto asked = queries_of(0, directions, count);
    go("all_on_gpu", cache, asked, 3);
    go("append_on_gpu", cache, asked, 3, part::append);
    go("retrieve_on_gpu", cache, asked, 3, part::retrieve);
  }
  if (is_measured(name("dense"))) {
    auto cache = filled_cache<pqkv::dense_rows<stored, device>>({.n = n, .is_dense = true}, directions);
    go("dense", cache, queries_of(0, directions, count), 3);
  }
  if (is_measured(name("attend_on_gpu"))) attend_alone(name("attend_on_gpu"), n);
  for (std::size_t i = 0; i < measured; ++i) {
    const bool has_parts = i < split && is_measured(name(without(kinds[i])));
    if (!is_measured(name(kinds[i].what)) && !has_parts && !(i == 0 && is_measured(name("append")))) continue;
    auto cache = filled_cache<switched_tiers>({.n = n}, directions, rows_of(kinds[i].cache_tokens));
    const auto asked = queries_of(kinds[i].kept, directions, count);
    if (i == 0) go("append", cache, asked, 3, part::append);
    if (kinds[i].cache_tokens != 0) fill_cache(cache, asked);
    go(kinds[i].what, cache, asked, 3);
    cache.rows().updates = false;
    if (i < split) go(without(kinds[i]), cache, asked, 3);
  }
  if (n == 131072 && is_measured(name("over_attended/kept:5"))) {
    auto cache = filled_cache<switched_tiers>({.n = n, .over = pqkv::selector::normalisation::attended}, directions, rows_of(room_tokens));
    go("over_attended/kept:5", cache, queries_of(5, directions, count), 300);
  }
}

/// One layer of many sequences with rows in pinned memory, each with its own queries and cache, and of as many as device memory holds with
/// all rows there: 141 GB less 16 GB of weights, shared by 32 layers, hold 7 sequences of 120000 tokens.
void throughput() {
  constexpr std::size_t n = 120000, spare = 512, dense_batch = 7;
  struct kind {
    std::size_t batch, kept;
  };
  constexpr kind kinds[] = {{8, 5}, {8, 7}, {32, 5}, {32, 7}};
  const auto name = [&](const std::string& what, std::size_t batch) {
    return named("throughput/" + what, {{"batch", batch}, {"h", h}, {"g", g}, {"d", d}, {"n", n}});
  };
  const auto of_kept = [](std::size_t kept) { return "kept:" + std::to_string(kept); };
  std::vector<std::string> names{name("dense", dense_batch), name("all_on_gpu", dense_batch)};
  for (const kind& one : kinds) names.push_back(name(of_kept(one.kept), one.batch));
  if (!is_any_wanted(names)) return;
  const pqkv::random_stream directions = next_stream();
  const std::size_t count = n / retrieved;
  for (const bool is_dense : {true, false}) {
    const std::string& of = names[is_dense ? 0 : 1];
    if (!is_measured(of)) continue;
    auto cache =
        filled_cache<pqkv::dense_rows<stored, device>>({.n = n, .batch = dense_batch, .spare = spare, .is_dense = is_dense}, directions);
    measure_steps(of, cache, queries_of(0, directions, count), 3);
  }
  for (const std::size_t batch : {std::size_t{8}, std::size_t{32}}) {
    if (!is_measured(name(of_kept(5), batch)) && !is_measured(name(of_kept(7), batch))) continue;
    auto cache =
        filled_cache<tiers>({.n = n, .batch = batch, .spare = spare}, directions,
                            {.sink_tokens = sinks, .recent_tokens = 1024, .cache_tokens = kept_directions * retrieved, .admit_blocks = 64});
    for (const std::size_t kept : {std::size_t{5}, std::size_t{7}})
      if (is_measured(name(of_kept(kept), batch)))
        measure_steps(name(of_kept(kept), batch), cache, queries_of(kept, directions, count), 150);
  }
}

/// Some rows [h, n]: normal numbers, or integers with scales of 2^-15 to 2^-1.
inline pqkv::device_buffer<stored> rows_to_fetch(std::size_t n, stored) { return normals<stored>(h * n * 2 * d); }
inline pqkv::device_buffer<std::byte> rows_to_fetch(std::size_t n, pqkv::scaled_int8) {
  return filled<std::byte>(h * n * pqkv::quantized_rows<>::token_bytes(d), bytes_of_scales{next_stream()});
}
inline void* first_row(const pqkv::bus_rows<stored>& rows) { return rows.all.keys.data; }
inline void* first_row(const pqkv::bus_rows<pqkv::scaled_int8>& rows) { return rows.all.data; }

/// Attention to ascending rows that are in pinned memory alone.
/// @tparam T    of the rows
/// @param type  empty, or its name
template <class T>
void fetch(std::size_t listed, const std::string& type = "") {
  constexpr std::size_t n = 131072;
  const std::string name = named("tier_fetch" + type, {{"h", h}, {"g", g}, {"d", d}, {"n", n}, {"rows", h * listed}});
  if (!is_wanted(name)) return;
  pqkv::cache_shape shape{};
  shape.kv_heads = h, shape.query_heads = hq, shape.head_dim = d, shape.capacity = n;
  const tiers_of<T> rows(pqkv::exec::cuda{}, shape, {});
  const auto data = rows_to_fetch(n, T{});
  pqkv::copy_bytes(pqkv::exec::cuda{}, first_row(rows.view()), data.data(), data.size_bytes());
  const pqkv::random_stream draws = next_stream();
  constexpr std::size_t sets = 4;  // other rows in every call of the graph
  std::vector<std::int32_t> tokens(sets * h * listed);
  for (std::size_t i = 0; i < tokens.size(); ++i)
    tokens[i] = static_cast<std::int32_t>(i % listed * (n / listed) + draws.below(i, static_cast<std::uint32_t>(n / listed)));
  const auto indices = upload(tokens);
  const auto counts = upload(std::vector<std::uint32_t>(h, static_cast<std::uint32_t>(listed)));
  const auto spans = upload(std::vector<pqkv::token_span>(h));
  const auto query = normals<float>(hq * d);
  const pqkv::device_buffer<float> out(hq * d, nullptr);
  const pqkv::device_buffer<std::byte> scratch(device_bytes<pqkv::op::attention>({.query_heads = hq, .head_dim = d}), nullptr);
  measure(name, {.calls = sets, .replays = 20, .bytes = static_cast<double>(h * listed * pqkv::token_row<T>::bytes(d))},
          [&](void* stream, int i) {
            const pqkv::token_set<device> asked{
                pqkv::as_const(pqkv::make_view<device>(spans.data(), h)),
                pqkv::as_const(pqkv::make_view<device>(indices.data() + static_cast<std::size_t>(i) * h * listed, h, listed)),
                pqkv::as_const(pqkv::make_view<device>(counts.data(), h))};
            pqkv::attention(pqkv::exec::cuda{stream, pqkv::arena(scratch)}, pqkv::as_const(pqkv::make_view<device>(query.data(), hq, d)),
                            rows.tiers(), asked, pqkv::make_view<device>(out.data(), hq, d));
          });
}

void measure_all() {
  fetch<stored>(256);
  fetch<stored>(1024);
  fetch<pqkv::scaled_int8>(256, "/int8");
  fetch<pqkv::scaled_int8>(1024, "/int8");
  for (const std::size_t n : {16384u, 131072u, 524288u, 1048576u}) steps(n);
  throughput();
}
}  // namespace

int main(int argc, char** argv) { return bench::run(argc, argv, measure_all); }
