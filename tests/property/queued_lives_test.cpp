// SPDX-License-Identifier: Apache-2.0
// Random lives of a cache in device memory, run by a backend that queues (cases/queued_backend.hpp), against the host's cache given the
// same calls: prompts whole and in chunks, ragged steps, steps and cuts replayed from graphs while the sequences grow, forks, resets,
// slots saved by one cache and loaded by the other, maintenance. After every step lists are the same to the token, attention to 1e-5,
// counters and sequences to the bit. Some keep their rows in pinned memory behind the device's.
#include <doctest/doctest.h>

#include "cases/sanitized.hpp"
#include "cases/queued_twins.hpp"

namespace {
using namespace pqkv_cases;
using pqkv::group_reduction;
using pqkv::search_path;

pqkv::cache_shape random_shape(random_source& random) {
  const std::size_t groups[] = {1, 2, 4};
  pqkv::cache_shape p;
  p.batch = 1 + random.below(4);
  p.kv_heads = 1 + random.below(2);
  p.query_heads = p.kv_heads * groups[random.below(3)];
  p.head_dim = 16 * (1 + random.below(2));
  p.capacity = 150 + random.below(250);
  p.step_queries = random.below(3) == 0 ? 0 : 1 + random.below(24);
  p.selection = static_cast<pqkv::draft_selection>(random.below(4) == 0);
  p.softmax_scale = random.below(4) == 0 ? 0.2f : 0.0f;
  return p;
}
pqkv::budget_rule random_budget(random_source& random) {
  pqkv::budget_rule b;
  b.sinks = random.below(9);
  b.min_tokens = b.sinks + 1 + random.below(30);
  b.ratio = 0.03 * static_cast<double>(random.below(10));
  b.window_share = 0.1 * static_cast<double>(random.below(6));
  b.growth = static_cast<pqkv::budget_growth>(random.below(4) == 0);
  if (random.below(4) == 0) b.tokens = b.sinks + 1 + random.below(60);
  if (random.below(4) == 0) b.window = 1 + random.below(50);
  if (random.below(4) == 0) b.retrieve = random.below(80);
  return b;
}
void draw_selector(pqkv::selector::pq_params& s, pqkv::cache_shape& shape, random_source& random) {
  s.bits = 4 + static_cast<unsigned>(random.below(5));
  const std::size_t most = s.bits <= 6 ? 4 : 2;
  s.subspaces = std::size_t{1} << random.below(most);
  s.train.iterations = 1 + random.below(3);
  s.train.seed = random.bits();
  s.tail_tokens = 1 + random.below(30);
  s.reduction = static_cast<group_reduction>(random.below(5));
  s.path = s.subspaces * s.bits <= 12 ? static_cast<search_path>(random.below(3)) : search_path::automatic;
  s.metric = static_cast<pqkv::key_metric>(random.below(3) == 0);
  if (shape.head_dim % (2 * s.subspaces) == 0 && random.below(3) == 0) s.axes = pqkv::axis_order::weighted_pairs;
  s.over = static_cast<pqkv::selector::normalisation>(random.below(2));
  s.renewal = static_cast<pqkv::selector::renewal_scope>(random.below(2));
  s.refresh_iterations = random.below(3);
  shape.capacity += std::size_t{1} << s.bits;
}
template <class Params>
void draw_selector(Params&, pqkv::cache_shape&, random_source&) {}

/// What happens in a life, drawn by weight.
template <class Twins>
void live(Twins& twins, std::size_t batch, std::size_t capacity, std::size_t events, random_source& random) {
  for (std::size_t slot = 0; slot < batch; ++slot)
    twins.prefill(slot, random.below(4) == 0 ? capacity - random.below(30) : random.below(capacity - 40));
  for (std::size_t event = 0; event < events; ++event) {
    CAPTURE(event);
    const std::size_t slot = random.below(batch), other = random.below(batch);
    switch (random.below(22)) {
      case 0:
        twins.reset(slot);
        break;
      case 1:
        twins.fork(slot, other);
        break;
      case 2:
      case 3:
        twins.maintain();
        break;
      case 4:
        if (twins.size(slot) == 0 || twins.size(slot) > capacity - 20) twins.prefill(slot, capacity / 2 + random.below(capacity / 2 - 20));
        break;
      case 5:
        twins.truncate(slot, twins.size(slot) - random.below(1 + twins.size(slot) / (1 + random.below(8))));
        break;
      case 6:
      case 7: {
        std::vector<std::uint32_t> lengths;
        for (std::size_t row = 0; row < batch; ++row) {
          const std::size_t n = twins.size(batch - 1 - row), less = random.below(1 + n / (1 + random.below(16)));
          lengths.push_back(static_cast<std::uint32_t>(random.below(8) == 0 ? n + 1 + random.below(5) : n - less));
        }
        twins.cut(lengths, random.below(2) == 0);
        break;
      }
      case 8:
        twins.plain_step();
        break;
      case 9:
        twins.exchange(slot, other);
        break;
      default: {
        const bool replayed = random.below(2) == 0;
        for (std::size_t steps = 1 + random.below(4); steps-- > 0;) twins.step(twins.draw_step(), replayed);
      }
    }
    twins.compare_slots();
  }
}

template <class T, class HostSelector, class DeviceSelector = HostSelector, class DeviceRows = pqkv::owned_rows<T, pqkv::space::device>>
void lives(std::uint64_t seed, std::size_t count, bool ranks) {
  random_source random(seed);
  std::size_t checked = 0, ranked = 0, refusals = 0;
  for (std::size_t i = 0; i < count; ++i) {
    CAPTURE(seed);
    CAPTURE(i);
    typename pqkv::pqcache<pqkv::owned_rows<T>, HostSelector>::params p;
    static_cast<pqkv::cache_shape&>(p) = random_shape(random);
    p.budget = random_budget(random);
    draw_selector(p.selector, p, random);
    const content what = every_content[random.below(4)];
    const std::size_t most = 20 + random.below(20);
    const std::uint64_t own = random.bits();
    queued_twins<T, HostSelector, DeviceSelector, DeviceRows> twins(p, most, what, own);
    live(twins, p.batch, p.capacity, 40, random);
    checked += twins.checked, ranked += twins.ranked, refusals += twins.refusals;
  }
  MESSAGE("rows checked ", checked, ", with a ranked list ", ranked, ", refused ", refusals);
  CHECK((refusals > 0 || looked_at_step > 1));
  CHECK((!ranks || ranked > checked / 4 / looked_at_step / quick_step));
}
using host_pq = pqkv::selector::basic_pq<>;
using device_pq = pqkv::selector::basic_pq<pqkv::space::device>;
template <class Eviction, class T = pqkv::bfloat16>
using device_tiers = pqkv::tiered_rows<pqkv::owned_rows<T, pqkv::space::pinned>, pqkv::space::device, Eviction>;
}  // namespace

TEST_CASE("queued lives: product quantization, float") { lives<float, host_pq, device_pq>(21, lives_of(60), true); }
TEST_CASE("queued lives: product quantization, bfloat16") { lives<pqkv::bfloat16, host_pq, device_pq>(22, lives_of(32), true); }
TEST_CASE("queued lives: product quantization, half") { lives<pqkv::half, host_pq, device_pq>(23, lives_of(16), true); }
TEST_CASE("queued lives: dense attention") { lives<float, pqkv::selector::full>(24, lives_of(8), false); }
TEST_CASE("queued lives: sinks and window alone") { lives<pqkv::bfloat16, pqkv::selector::streaming>(25, lives_of(8), false); }
TEST_CASE("queued lives: exact scores") {
  lives<float, pqkv::selector::oracle, pqkv::selector::basic_oracle<pqkv::space::device>>(28, lives_of(12), true);
}
TEST_CASE("queued lives: rows in pinned memory, least frequently used") {
  lives<pqkv::bfloat16, host_pq, device_pq, device_tiers<pqkv::eviction::lfu>>(26, lives_of(16), true);
}
TEST_CASE("queued lives: rows in pinned memory, admission by frequency") {
  lives<pqkv::bfloat16, host_pq, device_pq, device_tiers<pqkv::eviction::tiny_lfu>>(27, lives_of(16), true);
}
TEST_CASE("queued lives: sinks and window alone, rows in pinned memory") {
  lives<pqkv::bfloat16, pqkv::selector::streaming, pqkv::selector::streaming, device_tiers<pqkv::eviction::lru>>(32, lives_of(8), false);
}
TEST_CASE("queued lives: 8-bit rows in pinned memory, least frequently used") {
  lives<pqkv::scaled_int8, host_pq, device_pq, device_tiers<pqkv::eviction::lfu, pqkv::scaled_int8>>(29, lives_of(16), true);
}
TEST_CASE("queued lives: 8-bit rows in pinned memory, least recently used") {
  lives<pqkv::scaled_int8, host_pq, device_pq, device_tiers<pqkv::eviction::lru, pqkv::scaled_int8>>(30, lives_of(16), true);
}
TEST_CASE("queued lives: 8-bit rows in pinned memory, admission by frequency") {
  lives<pqkv::scaled_int8, host_pq, device_pq, device_tiers<pqkv::eviction::tiny_lfu, pqkv::scaled_int8>>(31, lives_of(16), true);
}
