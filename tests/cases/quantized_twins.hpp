// SPDX-License-Identifier: Apache-2.0
// A cache whose rows are 8-bit integers, in the memory of any policy, and a host cache of floats that is given what those integers stand
// for, rounded here by the plain formula. So both hold the same numbers: the same codes, the same lists, attention within rounding.
#pragma once

#include <doctest/doctest.h>

#include <cmath>
#include <cstring>
#include <numeric>
#include <vector>

#include <pqkv/pqkv.hpp>

#include "inputs.hpp"
#include "placed_array.hpp"

namespace pqkv_cases {

/// A row's integers times its scale. Rounded to nearest even by the C library.
inline void plain_rounded(float* row, std::size_t d) {
  float largest = 0;
  bool finite = true;
  for (std::size_t i = 0; i < d; ++i) finite = finite && std::isfinite(row[i]), largest = std::max(largest, std::fabs(row[i]));
  const float scale = largest < 0x1p-100f ? 0.0f : largest / 127.0f, inverse = scale > 0 ? 1.0f / scale : 0.0f;
  for (std::size_t i = 0; i < d; ++i)
    // In double the product is exact, so this rounds once, as a fused multiply-add does.
    row[i] =
        finite ? static_cast<float>(std::nearbyint(static_cast<double>(row[i]) * static_cast<double>(inverse))) * scale : std::nanf("");
}

template <class Policy, class HostSelector, class Selector>
class quantized_twins {
 public:
  using float_cache = pqkv::pqcache<pqkv::dense_rows<float>, HostSelector>;
  using quantized_cache = pqkv::pqcache<pqkv::quantized_rows<typename Policy::space_type>, Selector>;

  quantized_twins(const Policy& policy, const typename float_cache::params& p, content what, std::uint64_t seed)
      : policy_(policy), p_(p), what_(what), random_(seed), floats_(p), quantized_(policy, of(p)) {}

  std::size_t size(std::size_t slot) const { return floats_.size(slot); }

  void prefill(std::size_t slot, std::size_t n) {
    if (size(slot) != 0) reset(slot);
    const auto keys = rows(what_, p_.kv_heads, n), values = rows(content::gaussian, p_.kv_heads, n);
    const auto rounded_keys = rounded(keys), rounded_values = rounded(values);
    for (std::size_t first = 0; first < n;) {
      const std::size_t count = random_.below(2) == 0 ? n - first : 1 + random_.below(n - first);
      const auto which = first + count == n ? pqkv::chunk::last : pqkv::chunk::more;
      const auto piece = [&](const auto& all) { return all.view().slice(1, first, count); };
      floats_.prefill(cpu_, slot, whole(rounded_keys, n).slice(1, first, count), whole(rounded_values, n).slice(1, first, count), which);
      const placed_array<float, Policy> k(policy_, packed(piece(keys))), v(policy_, packed(piece(values)));
      quantized_.prefill(policy_, slot, k.const_view(p_.kv_heads, count, p_.head_dim), v.const_view(p_.kv_heads, count, p_.head_dim),
                         which);
      pqkv::sync(policy_);
      first += count;
    }
  }
  /// Some rows in any order, up to `most` tokens each; then both are asked.
  void step(std::size_t most) {
    std::vector<std::uint32_t> order(p_.batch), slots, counts;
    std::iota(order.begin(), order.end(), 0u);
    for (std::size_t i = p_.batch; i > 1; --i) std::swap(order[i - 1], order[random_.below(i)]);
    order.resize(1 + random_.below(p_.batch));
    for (const std::uint32_t slot : order) {
      const std::size_t count = std::min(1 + random_.below(most), p_.capacity - size(slot));
      if (count != 0) slots.push_back(slot), counts.push_back(static_cast<std::uint32_t>(count));
    }
    if (slots.empty()) return;
    const std::size_t tokens = std::accumulate(counts.begin(), counts.end(), std::size_t{0}), h = p_.kv_heads, d = p_.head_dim;
    const auto keys = rows(what_, tokens, h), values = rows(content::gaussian, tokens, h);
    const auto rounded_keys = rounded(keys), rounded_values = rounded(values);
    const placed_array<std::uint32_t, Policy> placed_slots(policy_, slots), placed_counts(policy_, counts);
    const pqkv::basic_step<typename Policy::space_type> there{placed_slots.const_view(slots.size()),
                                                              placed_counts.const_view(slots.size())};
    const pqkv::basic_step<> here{pqkv::make_view(std::as_const(slots)), pqkv::make_view(std::as_const(counts))};
    floats_.append(cpu_, pqkv::make_view(rounded_keys.data(), tokens, h, d), pqkv::make_view(rounded_values.data(), tokens, h, d), here);
    const placed_array<float, Policy> k(policy_, packed(keys.view())), v(policy_, packed(values.view()));
    quantized_.append(policy_, k.const_view(tokens, h, d), v.const_view(tokens, h, d), there);
    pqkv::sync(policy_);
    ask(tokens, here, there);
  }
  void truncate(std::size_t slot, std::size_t n) {
    floats_.truncate(cpu_, slot, n);
    quantized_.truncate(policy_, slot, n);
  }
  void fork(std::size_t from, std::size_t to) {
    floats_.fork(cpu_, from, to);
    quantized_.fork(policy_, from, to);
  }
  void reset(std::size_t slot) {
    floats_.reset(slot);
    quantized_.reset(policy_, slot);
  }
  void maintain() {
    floats_.maintain(cpu_);
    quantized_.maintain(policy_);
  }
  /// Saves a slot and loads it again.
  void reload(std::size_t slot) {
    std::vector<std::byte> file;
    quantized_.save(policy_, slot, [&](const std::byte* piece, std::size_t bytes) { file.insert(file.end(), piece, piece + bytes); });
    quantized_.reset(policy_, slot);
    std::size_t at = 0;
    quantized_.load(policy_, slot, [&](std::byte* to, std::size_t bytes) {
      const std::size_t given = std::min(bytes, file.size() - at);
      std::memcpy(to, file.data() + at, given);
      at += given;
      return given;
    });
    reloaded = true;
  }

  std::size_t checked = 0, ranked = 0;
  bool reloaded = false;
  double worst = 0;  // difference of outputs over the largest of them

 private:
  typename quantized_cache::params of(const typename float_cache::params& p) const {
    typename quantized_cache::params all;
    static_cast<pqkv::cache_shape&>(all) = p;
    all.budget = p.budget, all.selector = p.selector;
    return all;
  }
  auto rows(content what, std::size_t first, std::size_t second) {
    return make_rows<float>(what, first, second, p_.head_dim, random_.bits());
  }
  pqkv::view<const float, 3> whole(const std::vector<float>& rows, std::size_t n) const {
    return pqkv::make_view(rows.data(), p_.kv_heads, n, p_.head_dim);
  }
  static std::vector<float> packed(pqkv::view<const float, 3> rows) {
    std::vector<float> all;
    for (std::size_t a = 0; a < rows.extent(0); ++a)
      for (std::size_t b = 0; b < rows.extent(1); ++b)
        for (std::size_t i = 0; i < rows.extent(2); ++i) all.push_back(rows(a, b, i));
    return all;
  }
  template <class Rows>
  std::vector<float> rounded(const Rows& rows) const {
    std::vector<float> all = packed(rows.view());
    for (std::size_t row = 0; row < all.size(); row += p_.head_dim) plain_rounded(&all[row], p_.head_dim);
    return all;
  }

  template <class Step>
  void ask(std::size_t tokens, const pqkv::basic_step<>& here, const Step& there) {
    const std::size_t hq = p_.query_heads, d = p_.head_dim, lists = floats_.lists(), k = p_.capacity;
    std::vector<float> query(tokens * hq * d), out(query.size()), lse(tokens * hq);
    for (float& x : query) x = 2 * random_.gaussian();
    std::vector<std::int32_t> indices(tokens * lists * k);
    std::vector<std::uint32_t> counts(tokens * lists);
    const placed_array<float, Policy> placed_query(policy_, query), placed_out(policy_, query.size()), placed_lse(policy_, lse.size());
    const placed_array<std::int32_t, Policy> placed_indices(policy_, indices.size());
    const placed_array<std::uint32_t, Policy> placed_counts(policy_, counts.size());
    const auto q = pqkv::make_view(std::as_const(query).data(), tokens, hq, d);
    floats_.retrieve(cpu_, q, pqkv::make_view(indices.data(), tokens, lists, k), pqkv::make_view(counts.data(), tokens, lists), here);
    floats_.attend(cpu_, q, pqkv::make_view(out.data(), tokens, hq, d), pqkv::make_view(lse.data(), tokens, hq), here);
    const auto asked = placed_query.const_view(tokens, hq, d);
    quantized_.retrieve(policy_, asked, placed_indices.view(tokens, lists, k), placed_counts.view(tokens, lists), there);
    quantized_.attend(policy_, asked, placed_out.view(tokens, hq, d), placed_lse.view(tokens, hq), there);
    REQUIRE(placed_counts.read() == counts);
    REQUIRE(placed_indices.read() == indices);
    const std::vector<float> got = placed_out.read(), got_lse = placed_lse.read();
    float largest = 0;
    for (const float x : out) largest = std::max(largest, std::fabs(x));
    for (std::size_t i = 0; i < out.size(); ++i) {
      REQUIRE(std::isfinite(got[i]));
      worst = std::max(worst, static_cast<double>(std::fabs(got[i] - out[i]) / largest));
    }
    for (std::size_t i = 0; i < lse.size(); ++i) REQUIRE(got_lse[i] == doctest::Approx(lse[i]).epsilon(1e-4));
    for (std::size_t slot = 0; slot < p_.batch; ++slot) {
      const pqkv::sequence a = floats_.at(slot), b = quantized_.at(policy_, slot);
      REQUIRE(a.n == b.n);
      REQUIRE(a.learned == b.learned);
    }
    ++checked;
    const std::uint32_t last = here.slots(here.slots.extent(0) - 1);
    ranked += counts.back() != 0 && counts.back() < floats_.middle(last).size() ? 1 : 0;
  }

  Policy policy_;
  typename float_cache::params p_;
  content what_;
  random_source random_;
  pqkv::exec::host<> cpu_;
  float_cache floats_;
  quantized_cache quantized_;
};

/// A life of two slots or more under random calls.
template <class Twins>
void live_quantized(Twins& twins, std::size_t batch, std::size_t capacity, std::size_t events, random_source& random) {
  for (std::size_t slot = 0; slot < batch; ++slot) twins.prefill(slot, 1 + random.below(capacity - 30));
  for (std::size_t event = 0; event < events; ++event) {
    CAPTURE(event);
    const std::size_t slot = random.below(batch);
    switch (random.below(12)) {
      case 0:
        twins.fork(slot, random.below(batch));
        break;
      case 1:
        twins.maintain();
        break;
      case 2:
        if (twins.size(slot) + 20 > capacity || twins.size(slot) == 0) twins.prefill(slot, 1 + random.below(capacity - 1));
        break;
      case 3:
        twins.truncate(slot, twins.size(slot) - random.below(1 + twins.size(slot) / (1 + random.below(6))));
        break;
      case 4:
        twins.reload(slot);
        break;
      default:
        twins.step(7);
    }
  }
}

}  // namespace pqkv_cases
