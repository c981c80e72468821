// SPDX-License-Identifier: Apache-2.0
// top_k(): the exact set with ties to the lower index, for every kind of float there is and for 16-bit scores, strided rows, every k
// from none to more than there are, rows that mislead a sample; on every ISA against a full sort, and against the definition of a
// threshold by brute force.
#include <doctest/doctest.h>

#include <pqkv/detail/host/top_k.hpp>

#include "cases/float_modes.hpp"
#include "cases/inputs.hpp"
#include "cases/plain_search.hpp"
#include "cases/policies.hpp"
#include "cases/refusals.hpp"
#include "cases/sanitized.hpp"

namespace {
using namespace pqkv_cases;
using pqkv::exec::host;

constexpr float inf = std::numeric_limits<float>::infinity();
const float nan_value = std::numeric_limits<float>::quiet_NaN();

/// One row's list, from a call with rows of odd strides and everything else poisoned.
template <class Policy, class T>
std::vector<std::vector<std::int32_t>> run_top_k(const Policy& policy, const std::vector<std::vector<T>>& rows, std::size_t k_max) {
  const std::size_t n = rows[0].size(), stride = n + 3, out_stride = k_max + 2;
  std::vector<T> scores(rows.size() * stride, std::numeric_limits<T>::max());
  for (std::size_t row = 0; row < rows.size(); ++row)
    std::copy(rows[row].begin(), rows[row].end(), scores.begin() + static_cast<std::ptrdiff_t>(row * stride));
  std::vector<std::int32_t> indices(rows.size() * out_stride, -7);
  pqkv::top_k(policy, pqkv::view<const T, 2>{scores.data(), {rows.size(), n}, {stride, 1}},
              pqkv::view<std::int32_t, 2>{indices.data(), {rows.size(), k_max}, {out_stride, 1}});
  std::vector<std::vector<std::int32_t>> lists;
  for (std::size_t row = 0; row < rows.size(); ++row) {
    const auto first = indices.begin() + static_cast<std::ptrdiff_t>(row * out_stride);
    const std::size_t count = std::min(k_max, n);
    lists.emplace_back(first, first + static_cast<std::ptrdiff_t>(count));
    for (std::size_t i = count; i < out_stride; ++i) CHECK(first[static_cast<std::ptrdiff_t>(i)] == (i < k_max ? -1 : -7));
  }
  return lists;
}

template <class Policy, class T>
std::vector<std::int32_t> run_row(const Policy& policy, const std::vector<T>& row, std::size_t k_max) {
  return run_top_k(policy, std::vector<std::vector<T>>{row}, k_max)[0];
}

std::vector<float> random_row(std::size_t n, int kind, random_source& random) {
  const float special[] = {nan_value, -nan_value, inf, -inf, 0.0f, -0.0f, 1e-45f, -1e-45f, 1e-38f, 3e38f, -3e38f, 1.0f};
  std::vector<float> row(n);
  for (float& x : row) {
    switch (kind) {
      case 0:
        x = random.gaussian();
        break;
      case 1:
        x = static_cast<float>(random.below(4));
        break;  // mostly ties
      case 2:
        x = special[random.below(12)];
        break;  // every kind
      case 3:
        x = pqkv::float_from_bits(static_cast<std::uint32_t>(random.bits()));
        break;  // any bits at all
      case 4:
        x = pqkv::float_from_bits(0x3f800000u + static_cast<std::uint32_t>(random.below(9)));
        break;  // neighbours in the last digit
      case 5:
        x = 0.25f;
        break;
      default:
        x = random.below(2) == 0 ? 0.0f : -0.0f;
    }
  }
  return row;
}
/// Long rows of many shapes: what a sample tells, what it does not, and what it tells wrongly.
enum class shape { normal, exponential, ascending, descending, steps, few, most_equal, rare_high, rare_low, hidden, nan_mostly, bits };
constexpr shape every_shape[] = {shape::normal,   shape::exponential, shape::ascending,  shape::descending,
                                 shape::steps,    shape::few,         shape::most_equal, shape::rare_high,
                                 shape::rare_low, shape::hidden,      shape::nan_mostly, shape::bits};

float long_row_score(shape what, std::size_t i, std::size_t n, random_source& random) {
  const float x = random.gaussian();
  switch (what) {
    case shape::normal:
      return x;
    case shape::exponential:
      return std::exp(8 * x);
    case shape::ascending:
      return static_cast<float>(i);
    case shape::descending:
      return static_cast<float>(n - i);
    case shape::steps:
      return static_cast<float>(i / 700) + 0.001f * x;
    case shape::few:
      return static_cast<float>(random.below(5));
    case shape::most_equal:
      return random.below(10) == 0 ? x : 0.5f;
    case shape::rare_high:
      return random.below(900) == 0 ? 100 + x : x;
    case shape::rare_low:
      return random.below(900) == 0 ? -100 + x : 7.0f;
    case shape::hidden:  // all that is large stands in one place
      return i > n / 3 && i < n / 3 + n / 40 ? 1000 + x : x;
    case shape::nan_mostly:
      return random.below(3) == 0 ? x : nan_value;
    case shape::bits:
      break;
  }
  return pqkv::float_from_bits(static_cast<std::uint32_t>(random.bits()));
}
}  // namespace

TEST_CASE("top_k: equals a full sort on rows of every kind") {
  random_source random(0x70bc);
  std::size_t rows_checked = 0;
  for (const std::size_t n : {1u, 2u, 7u, 8u, 9u, 64u, 65u, 300u, 2050u})
    for (int kind = 0; kind < 7; ++kind) {
      std::vector<std::vector<float>> rows;
      for (int i = 0; i < 3; ++i) rows.push_back(random_row(n, kind, random));
      for (const std::size_t k : {std::size_t{0}, std::size_t{1}, n / 3, n / 2, n - 1, n, n + 1, n + 40}) {
        CAPTURE(n);
        CAPTURE(kind);
        CAPTURE(k);
        const auto lists = run_top_k(host<>{}, rows, k);
        for (std::size_t row = 0; row < rows.size(); ++row) {
          REQUIRE(lists[row] == plain_top_k(rows[row], k));
          ++rows_checked;
        }
      }
    }
  CHECK(rows_checked == 9 * 7 * 8 * 3);
}

TEST_CASE("top_k: equals a full sort on long rows, on every ISA") {
  random_source random(0x10a6);
  std::size_t rows = 0;
  for (const std::size_t n : {2048u, 2049u, 5003u, 20011u, 70001u})
    for (const shape what : every_shape) {
      if (!looks_at(rows++)) continue;
      std::vector<float> row(n);
      for (std::size_t i = 0; i < n; ++i) row[i] = long_row_score(what, i, n, random);
      for (const std::size_t k : {std::size_t{1}, std::size_t{2}, n / 64, n / 8, n / 2, n - 1, 1 + random.below(n)}) {
        CAPTURE(n);
        CAPTURE(static_cast<int>(what));
        CAPTURE(k);
        const auto wanted = plain_top_k(row, k);
        for_each_isa([&](auto isa) { REQUIRE(run_row(host<decltype(isa)>{}, row, k) == wanted); });
      }
    }
}

TEST_CASE("top_k: 16-bit scores, on every ISA") {
  random_source random(0x16b);
  std::size_t turn = 0;
  for (const std::size_t n : {1u, 15u, 31u, 32u, 33u, 64u, 100u, 2100u, 4095u, 30011u})
    for (int kind = 0; kind < 6; ++kind) {
      if (!looks_at(turn++)) continue;
      std::vector<std::vector<std::uint16_t>> rows(2, std::vector<std::uint16_t>(n));
      for (auto& row : rows)
        for (std::size_t i = 0; i < n; ++i) {
          const std::uint64_t any = random.bits();
          const std::uint64_t scores[] = {any & 0xffff, any & 3,   0xffff - (any & 3), any % 20 == 0 ? 0xffff : any & 0xff,
                                          0xffff,       i & 0xffff};
          row[i] = static_cast<std::uint16_t>(scores[kind]);
        }
      for (const std::size_t k : {std::size_t{0}, std::size_t{1}, n / 20, n / 3, n - 1, n, n + 9}) {
        CAPTURE(n);
        CAPTURE(kind);
        CAPTURE(k);
        for (const auto& row : rows) {
          const auto wanted = plain_top_k(std::vector<float>(row.begin(), row.end()), k);
          for_each_isa([&](auto isa) { REQUIRE(run_row(host<decltype(isa)>{}, row, k) == wanted); });
        }
        REQUIRE(run_top_k(host<>{}, rows, k)[1] == plain_top_k(std::vector<float>(rows[1].begin(), rows[1].end()), k));
      }
    }
}

TEST_CASE("top_k: subnormals differ from zero though the caller's float modes flush them") {
  random_source random(0xf1);
  std::vector<float> row(3000);
  for (float& x : row) x = pqkv::float_from_bits(static_cast<std::uint32_t>(random.below(1u << 20) | random.below(2) << 31));
  const auto wanted = plain_top_k(row, 700);
  for_each_isa([&](auto isa) {
    std::vector<std::int32_t> found;
    bool intact = false;
    {
      const foreign_float_modes modes;
      found = run_row(host<decltype(isa)>{}, row, 700);
      intact = modes.intact();
    }
    CHECK(intact);
    CHECK(found == wanted);
  });
}

TEST_CASE("top_k: no token left out beats one taken, and of equals the lower index is taken") {
  random_source random(0xb7e);
  for (int kind = 0; kind < 7; ++kind)
    for (int round = 0; round < 20; ++round) {
      const std::vector<float> row = random_row(40, kind, random);
      const std::vector<std::int32_t> list = run_row(host<>{}, row, 1 + random.below(39));
      std::vector<bool> in(40, false);
      for (const std::int32_t i : list) in[static_cast<std::size_t>(i)] = true;
      for (std::size_t a = 0; a < 40; ++a)
        for (std::size_t b = 0; b < 40; ++b) {
          if (!in[a] || in[b]) continue;
          REQUIRE_FALSE(ranks_before(row[b], row[a]));
          if (!ranks_before(row[a], row[b])) REQUIRE(a < b);
        }
    }
}

TEST_CASE("top_k: the order of special values, by hand") {
  const std::vector<float> row = {nan_value, -inf, -1.0f, -0.0f, 0.0f, 1e-45f, inf, -0.0f, -nan_value, inf};
  using list = std::vector<std::int32_t>;
  const auto take = [&](std::size_t k) { return run_row(host<>{}, row, k); };
  CHECK(take(1) == list{6});
  CHECK(take(2) == list{6, 9});
  CHECK(take(3) == list{5, 6, 9});
  CHECK(take(4) == list{3, 5, 6, 9});  // -0 before +0 by index alone
  CHECK(take(5) == list{3, 4, 5, 6, 9});
  CHECK(take(6) == list{3, 4, 5, 6, 7, 9});
  CHECK(take(7) == list{2, 3, 4, 5, 6, 7, 9});
  CHECK(take(8) == list{1, 2, 3, 4, 5, 6, 7, 9});
  CHECK(take(9) == list{0, 1, 2, 3, 4, 5, 6, 7, 9});  // NaNs last, the lower index first
}

TEST_CASE("top_k: no rows, no tokens") {
  std::vector<std::int32_t> indices(6, -7);
  const float nothing = 0;
  pqkv::top_k(host<>{}, pqkv::make_view(&nothing, 2, 0), pqkv::make_view(indices.data(), 2, 3));
  for (const std::int32_t i : indices) CHECK(i == -1);
  pqkv::top_k(host<>{}, pqkv::make_view(&nothing, 0, 5), pqkv::make_view(indices.data(), 0, 3));
}

TEST_CASE("top_k: threads give the same set") {
  random_source random(0x33);
  std::vector<std::vector<float>> rows;
  for (int i = 0; i < 9; ++i) rows.push_back(random_row(500, i % 4, random));
  const auto wanted = run_top_k(host<>{}, rows, 77);
  CHECK(run_top_k(host<pqkv::isa::scalar, threaded_runner>{}, rows, 77) == wanted);
}

TEST_CASE("top_k: extents that disagree are refused") {
  const std::vector<float> scores(20, 1.0f);
  std::vector<std::int32_t> indices(20, -7);
  const auto in = pqkv::make_view(scores.data(), 2, 10);
  const auto out = pqkv::make_view(indices.data(), 2, 5);
  const auto call = [](auto s, auto i) { return [=] { pqkv::top_k(host<>{}, s, i); }; };
  using pqkv::shape_error;
  CHECK(unless_refused<shape_error>(call(in, out.slice(0, 0, 1)), "top_k: indices.extent(0)", 2, 1) == "");
  auto strided = in;
  strided.strides[1] = 2;
  CHECK(unless_refused<shape_error>(call(strided, out), "top_k: scores.stride(1)", 1, 2) == "");
  auto spread = out;
  spread.strides[1] = 2;
  CHECK(unless_refused<shape_error>(call(in, spread), "top_k: indices.stride(1)", 1, 2) == "");
  const std::vector<std::uint16_t> short_scores(20, 1);
  CHECK(unless_refused<shape_error>(call(pqkv::make_view(short_scores.data(), 2, 10), out.slice(0, 0, 1)), "top_k: indices.extent(0)", 2,
                                    1) == "");
  const pqkv::view<const float, 2> huge{scores.data(), {2, std::size_t{1} << 31}, {0, 1}};
  CHECK(unless_refused<pqkv::value_error>(call(huge, out), "top_k: scores.extent(1)", 2147483647.0, 2147483648.0) == "");
  for (const std::int32_t i : indices) CHECK(i == -7);
}
