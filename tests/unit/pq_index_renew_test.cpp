// SPDX-License-Identifier: Apache-2.0
// Renewing codebooks searches less than its parts would, because codes say which of the kept centroids is nearest, and has their bits:
// those of replacing centroids, k-means from there, and encoding, one after the other, on every instruction set and with tasks on threads.
// A renewal over new keys has the bits of a plain formulation.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include <pqkv/pqkv.hpp>

#include "cases/inputs.hpp"
#include "cases/policies.hpp"
#include "cases/sanitized.hpp"

namespace {
using namespace pqkv_cases;
using pqkv::axis_order;
using pqkv::key_metric;
const pqkv::exec::host<> cpu;
constexpr std::size_t h = 2, m = 4, d = 48, first = 5;

struct renewal {
  unsigned bits;
  std::size_t trained, n;
  axis_order axes = axis_order::contiguous;
  key_metric metric = key_metric::squared_l2;
  std::size_t iterations = 1;
  std::size_t ranked() const { return std::max(trained, n - 20); }
  pqkv::pq_index_shape shape() const { return {1, h, d, m, bits, n + 7, metric, 0, 8, pqkv::search_path::scan, axes}; }
};

/// An index that was learnt from tokens [first, trained) and has the codes of all tokens that have left the window since.
template <class T>
pqkv::pq_index<> learnt(const pqkv::strided_rows<T>& all, const renewal& call) {
  pqkv::pq_index<> index(cpu, call.shape());
  std::vector<std::uint8_t> outcomes(h * m);
  index.learn(cpu, 0, all, first, call.trained, call.trained, {.iterations = 2}, pqkv::make_view(outcomes.data(), h, m));
  const pqkv::leaving_tokens leaving{0, static_cast<std::uint32_t>(call.trained), static_cast<std::uint32_t>(call.ranked())};
  index.view().encode(cpu, all, pqkv::make_view(&leaving, 1));
  return index;
}

/// The parts of a renewal, one after the other, in plain C++.
template <class T>
std::vector<std::uint8_t> renew_in_parts(const pqkv::strided_rows<T>& all, const pqkv::pq_index_view<>& own, const renewal& call,
                                         const pqkv::kmeans_params& params) {
  const pqkv::exec::host<pqkv::isa::scalar> plain;
  const pqkv::leaving_tokens window{0, static_cast<std::uint32_t>(call.ranked()), static_cast<std::uint32_t>(call.n)};
  own.encode(plain, all, pqkv::make_view(&window, 1));
  const std::uint64_t fresh = call.n - call.trained, count = own.book.size() * fresh / (call.n - first);
  pqkv::kernel<pqkv::op::replace_centroids, pqkv::backend::host>::run(
      plain, all, 0, own, {first, call.n, call.trained, {fresh, count, {params.seed, ~std::uint64_t{0}}}});
  std::vector<float> ordered;
  for (std::size_t head = 0; head < h; ++head)
    for (std::size_t t = first; t < call.n; ++t)
      for (std::size_t i = 0; i < d; ++i) ordered.push_back(all.key(head, t)[own.axes(i)]);
  const auto keys = pqkv::make_view(static_cast<const float*>(ordered.data()), h, call.n - first, d);
  std::vector<std::uint8_t> outcomes(h * m);
  pqkv::kmeans(plain, pqkv::split_subspaces(keys, m), pqkv::make_view(static_cast<const float*>(own.book.mean.data), h, m, d / m),
               own.book.centroids, pqkv::make_view(outcomes.data(), h, m), params, own.book.squared_radius);
  pqkv::encode(plain, keys, own.book, own.codes.slice(2, first, call.n - first));
  return outcomes;
}

/// Renews under a policy and in parts. Returns how many codes and centroids a renewal changed.
template <class T, class P>
std::size_t compare(const P& policy, rows<T>& keys, const renewal& call) {
  const pqkv::strided_rows<T> all{keys.view(), keys.view()};
  const auto index = learnt(all, call), plain = learnt(all, call);
  const auto got = index.view().sequence(0), wanted = plain.view().sequence(0);
  const std::vector<float> before(got.book.centroids.data, got.book.centroids.data + got.book.centroids.size());
  pqkv::kmeans_params params{.iterations = call.iterations, .seed = 3};
  std::vector<std::uint8_t> outcomes(h * m);
  index.renew(policy, 0, all, first, call.ranked(), call.trained, call.n, params, pqkv::make_view(outcomes.data(), h, m),
              pqkv::present_codes::nearest);
  params.start = pqkv::kmeans_start::given;
  CHECK(outcomes == renew_in_parts(all, wanted, call, params));
  CHECK(std::memcmp(got.book.centroids.data, wanted.book.centroids.data, before.size() * sizeof(float)) == 0);
  if (call.metric == key_metric::inner_product)
    CHECK(std::memcmp(got.book.squared_radius.data, wanted.book.squared_radius.data, h * m * sizeof(float)) == 0);
  std::size_t differing = 0;
  for (std::size_t head = 0; head < h; ++head)
    for (std::size_t j = 0; j < m; ++j)
      for (std::size_t t = first; t < call.ranked(); ++t) differing += got.codes(head, j, t) != wanted.codes(head, j, t) ? 1 : 0;
  CHECK(differing == 0);
  std::size_t moved = 0;
  for (std::size_t i = 0; i < before.size(); ++i) moved += got.book.centroids.data[i] != before[i] ? 1 : 0;
  return moved;
}
}  // namespace

TEST_CASE("pq index: a renewal has the bits of its parts, on every instruction set") {
  std::size_t turn = 0;
  for (const content what : every_content) {
    if (!pqkv_cases::looks_at(turn++)) continue;
    CAPTURE(what);
    auto keys = make_rows<float>(what, h, 900, d, 7, layout::padded);
    auto half_keys = make_rows<pqkv::half>(what, h, 900, d, 7);
    for_each_isa([&](auto isa) {
      const pqkv::exec::host<decltype(isa), threaded_runner> policy;
      CHECK(compare(policy, keys, {8, 800, 900}) > 0);                                  // 28 of 256 centroids are replaced
      CHECK(compare(policy, keys, {6, 700, 830, axis_order::rotary_halves}) > 0);       // 10 of 64; the last block is not full
      CHECK(compare(policy, half_keys, {8, 600, 900, axis_order::rotary_halves}) > 0);  // 85 of 256
    });
  }
}

TEST_CASE("pq index: a renewal that cannot use what is known has the bits of its parts too") {
  auto keys = make_rows<float>(content::gaussian, h, 900, d, 9);
  CHECK(compare(cpu, keys, {8, 400, 900}) > 0);  // more than half of the centroids
  CHECK(compare(cpu, keys, {4, 800, 900}) > 0);  // 16 centroids
  CHECK(compare(cpu, keys, {6, 898, 900}) > 0);  // none is replaced, all move
  CHECK(compare(cpu, keys, {8, 800, 900, axis_order::rotary_halves, key_metric::inner_product}) > 0);
  CHECK(compare(cpu, keys, {8, 800, 900, axis_order::contiguous, key_metric::squared_l2, 3}) > 0);  // further iterations
  for (const float unit : {0x1p-70f, 0x1p60f}) {                                                    // no shortlist of 16-bit integers
    auto scaled = make_rows<float>(content::gaussian, h, 900, d, 9);
    for (std::size_t head = 0; head < h; ++head)
      for (std::size_t t = 0; t < 900; ++t)
        for (std::size_t i = 0; i < d; ++i) scaled(head, t, i) *= unit;
    CHECK(compare(cpu, scaled, {6, 800, 900}) > 0);
  }
}

TEST_CASE("pq index: a key with a number that is not finite has code 0 in every subspace after a renewal") {
  auto keys = make_rows<float>(content::gaussian, h, 900, d, 11);
  keys(0, 300, 2) = NAN;  // one head, one subspace
  keys(0, 850, d - 1) = INFINITY;
  keys(1, 5, 20) = 0x1.8p127f;  // the difference from the mean overflows in neither
  const renewal call{6, 800, 900};
  CHECK(compare(cpu, keys, call) > 0);
  const pqkv::strided_rows<float> all{keys.view(), keys.view()};
  const auto index = learnt(all, call);
  std::vector<std::uint8_t> outcomes(h * m);
  index.renew(cpu, 0, all, first, call.ranked(), call.trained, call.n, {.iterations = 1}, pqkv::make_view(outcomes.data(), h, m),
              pqkv::present_codes::nearest);
  for (std::size_t j = 0; j < m; ++j) CHECK(index.view().codes(0, j, 300) == 0);
}

namespace {
/// A renewal over new keys in plain C++, of one head and subspace. Returns how many codes it wrote.
template <class T>
class plain_renewal {
 public:
  plain_renewal(const pqkv::strided_rows<T>& all, const pqkv::pq_index_view<>& own, std::size_t head, std::size_t j)
      : all_(all), own_(own), head_(head), j_(j), c_(own.book.size()), centroids_(&own.book.centroids(head, j, 0, 0)) {}

  std::size_t run(const renewal& call, std::uint64_t seed) {
    std::vector<bool> is_replaced = replace(call, seed);
    for (std::size_t i = 0; i < call.iterations; ++i) move(call, is_replaced);
    std::size_t written = 0;
    for (std::size_t t = first; t < call.n; ++t) {
      std::uint8_t& code = own_.codes(head_, j_, t);
      if (t < call.trained && (t >= call.ranked() || !is_replaced[code])) continue;
      const std::vector<float> y = row(t);
      code = is_usable(t) ? nearest(y) : std::uint8_t{0};
      ++written;
    }
    return written;
  }

 private:
  std::vector<bool> replace(const renewal& call, std::uint64_t seed) {
    std::vector<std::pair<std::size_t, std::size_t>> order;  // tokens, centroid
    for (std::size_t x = 0; x < c_; ++x) order.emplace_back(0, x);
    for (std::size_t t = first; t < call.ranked(); ++t) ++order[own_.codes(head_, j_, t)].first;
    std::sort(order.begin(), order.end());
    const std::uint64_t fresh = call.n - call.trained, count = c_ * fresh / (call.n - first);
    const pqkv::stratified_sample draws{fresh, count, {seed, ~std::uint64_t{0}}};
    std::vector<bool> is_replaced(c_);
    for (std::size_t i = 0; i < count; ++i) {
      const std::vector<float> y = row(call.trained + draws(i));
      if (!std::all_of(y.begin(), y.end(), [](float x) { return std::isfinite(x); })) continue;
      for (std::size_t e = 0; e < y.size(); ++e) centroids_[e * c_ + order[i].second] = y[e];
      is_replaced[order[i].second] = true;
    }
    return is_replaced;
  }
  void move(const renewal& call, const std::vector<bool>& is_replaced) {
    float largest = 0;
    for (std::size_t t = call.trained; t < call.n; ++t)
      for (const float x : row(t)) largest = is_usable(t) ? std::max(largest, std::abs(x)) : largest;
    const float scale = pqkv::canonical::power_of_two(pqkv::canonical::fixed_point_exponent(largest));
    std::vector<std::vector<float>> members(c_);
    for (std::size_t t = call.trained; t < call.n; ++t) {
      const std::vector<float> y = row(t);
      if (is_usable(t)) members[nearest(y)].insert(members[nearest(y)].end(), y.begin(), y.end());
    }
    const std::size_t width = own_.book.row_dim();
    for (std::size_t x = 0; x < c_; ++x)
      for (std::size_t e = 0; e < width && is_replaced[x] && !members[x].empty(); ++e) {
        std::int64_t sum = 0;
        for (std::size_t i = e; i < members[x].size(); i += width) sum += pqkv::canonical::fixed_point(members[x][i], scale);
        centroids_[e * c_ + x] = pqkv::canonical::fixed_point_mean(sum, members[x].size() / width, scale);
      }
  }

  std::vector<float> row(std::size_t t) const {
    const std::size_t ds = d / m;
    std::vector<float> y;
    for (std::size_t i = j_ * ds; i < (j_ + 1) * ds; ++i) y.push_back(element(t, i) - own_.book.mean(head_, i));
    if (own_.book.metric() != key_metric::inner_product) return y;
    float norm = 0;
    for (const float x : y) norm = std::fma(x, x, norm);
    y.push_back(std::isfinite(norm) ? std::sqrt(std::max(own_.book.squared_radius(head_, j_) - norm, 0.0f)) : norm);
    return y;
  }
  float element(std::size_t t, std::size_t i) const {
    const auto key = all_.key(head_, t);
    return own_.pairs.empty() ? static_cast<float>(key[own_.axes(i)]) : own_.pairs.of_key(key, head_, i);
  }
  bool is_usable(std::size_t t) const {
    for (std::size_t i = 0; i < d; ++i)
      if (!std::isfinite(element(t, i))) return false;
    const std::vector<float> y = row(t);
    return std::all_of(y.begin(), y.end(), [](float x) { return std::isfinite(x); });
  }
  std::uint8_t nearest(const std::vector<float>& y) const {
    std::vector<float> distances;
    for (std::size_t x = 0; x < c_; ++x) distances.push_back(pqkv::canonical::squared_distance(y.data(), centroids_ + x, c_, y.size()));
    return static_cast<std::uint8_t>(std::min_element(distances.begin(), distances.end()) - distances.begin());
  }

  const pqkv::strided_rows<T>& all_;
  const pqkv::pq_index_view<>& own_;
  std::size_t head_, j_, c_;
  float* centroids_;
};

struct over_new_keys {
  std::size_t written = 0, moved = 0;
};

/// Renews over new keys under a policy and in plain C++.
template <class T, class P>
over_new_keys compare_new(const P& policy, rows<T>& keys, const renewal& call) {
  const pqkv::strided_rows<T> all{keys.view(), keys.view()};
  const auto index = learnt(all, call), plain = learnt(all, call);
  const auto got = index.view().sequence(0), wanted = plain.view().sequence(0);
  const std::vector<float> before(got.book.centroids.data, got.book.centroids.data + got.book.centroids.size());
  over_new_keys found{static_cast<std::size_t>(
      index.renew_replaced(policy, 0, all, first, call.ranked(), call.trained, call.n, {.iterations = call.iterations, .seed = 3}))};
  std::size_t written = 0, differing = 0;
  for (std::size_t head = 0; head < h; ++head)
    for (std::size_t j = 0; j < m; ++j) {
      written += plain_renewal<T>(all, wanted, head, j).run(call, 3);
      for (std::size_t t = first; t < call.ranked(); ++t) differing += got.codes(head, j, t) != wanted.codes(head, j, t) ? 1 : 0;
    }
  CHECK(found.written == written);
  CHECK(differing == 0);
  CHECK(std::memcmp(got.book.centroids.data, wanted.book.centroids.data, before.size() * sizeof(float)) == 0);
  for (std::size_t i = 0; i < before.size(); ++i) found.moved += got.book.centroids.data[i] != before[i] ? 1 : 0;
  return found;
}
}  // namespace

TEST_CASE("pq index: a renewal over new keys has the bits of the plain formulation, on every instruction set") {
  std::size_t turn = 0;
  for (const content what : every_content) {
    if (!pqkv_cases::looks_at(turn++)) continue;
    CAPTURE(what);
    auto keys = make_rows<float>(what, h, 900, d, 7, layout::padded);
    auto half_keys = make_rows<pqkv::half>(what, h, 900, d, 7);
    for_each_isa([&](auto isa) {
      const pqkv::exec::host<decltype(isa), threaded_runner> policy;
      CHECK(compare_new(policy, keys, {8, 850, 900}).moved > 0);
      CHECK(compare_new(policy, half_keys, {6, 700, 900, axis_order::rotary_halves, key_metric::squared_l2, 3}).moved > 0);
    });
  }
}

TEST_CASE("pq index: a renewal over new keys, where few are new, all are in the window, or lengths are those of inner products") {
  auto keys = make_rows<float>(content::gaussian, h, 900, d, 9);
  CHECK(compare_new(cpu, keys, {8, 890, 900}).moved > 0);  // 2 of 256, trained on 10 keys that are all in the window
  CHECK(compare_new(cpu, keys, {8, 880, 900}).moved > 0);  // the window begins where the new keys do
  CHECK(compare_new(cpu, keys, {4, 460, 900}).moved > 0);  // 7 of 16
  const over_new_keys none = compare_new(cpu, keys, {6, 890, 900});
  CHECK(none.moved == 0);  // less than one centroid: the new keys are encoded, and nothing else
  CHECK(none.written == h * m * 10);
  CHECK(compare_new(cpu, keys, {8, 850, 900, axis_order::weighted_pairs}).moved > 0);
  CHECK(compare_new(cpu, keys, {8, 850, 900, axis_order::rotary_halves, key_metric::inner_product, 2}).moved > 0);
  for (const float unit : {0x1p-70f, 0x1p60f}) {  // no shortlist of 16-bit integers
    auto scaled = make_rows<float>(content::gaussian, h, 900, d, 9);
    for (std::size_t head = 0; head < h; ++head)
      for (std::size_t t = 0; t < 900; ++t)
        for (std::size_t i = 0; i < d; ++i) scaled(head, t, i) *= unit;
    CHECK(compare_new(cpu, scaled, {6, 800, 900}).moved > 0);
  }
}

TEST_CASE("pq index: a renewal over new keys leaves keys with a number that is not finite out, and gives them code 0") {
  for (const key_metric metric : {key_metric::squared_l2, key_metric::inner_product}) {
    auto keys = make_rows<float>(content::gaussian, h, 900, d, 11);
    for (std::size_t t = 0; t < 900; t += 3) keys(t % 2, t, t % d) = t % 6 == 1 ? INFINITY : NAN;
    keys(1, 880, 20) = 0x1.8p127f;  // finite, but its square is not
    const renewal call{6, 800, 900, axis_order::rotary_halves, metric, 2};
    CHECK(compare_new(cpu, keys, call).moved > 0);
    const pqkv::strided_rows<float> all{keys.view(), keys.view()};
    const auto index = learnt(all, call);
    index.renew_replaced(cpu, 0, all, first, call.ranked(), call.trained, call.n, {.iterations = 2});
    for (std::size_t t = 6; t < call.ranked(); t += 3)
      for (std::size_t j = 0; j < m; ++j) CHECK(index.view().codes(t % 2, j, t) == 0);
  }
}
