// SPDX-License-Identifier: Apache-2.0
// Every adaptor gives the row that was written, whatever the layout; store_rows() converts to nearest, counts rows that are not
// finite once stored, and refuses extents that disagree.
#include <doctest/doctest.h>

#include <pqkv/detail/host/kv_store.hpp>

#include "cases/inputs.hpp"
#include "cases/policies.hpp"
#include "cases/refusals.hpp"

namespace {
using namespace pqkv_cases;
using pqkv::exec::host;

constexpr std::size_t h = 3, n = 21, d = 24;

/// What element i of a row holds: exact in every storage type.
float mark(std::size_t head, std::size_t t, std::size_t i, bool value) {
  return static_cast<float>(head * 31 + t * 7 + i) * (value ? -1.0f : 1.0f);
}
template <class T>
void fill_marks(pqkv::view<T, 3> rows, bool value) {
  for (std::size_t head = 0; head < h; ++head)
    for (std::size_t t = 0; t < n; ++t)
      for (std::size_t i = 0; i < d; ++i) rows(head, t, i) = T(mark(head, t, i, value));
}

/// Elements of a store that are not the marked ones.
template <class Store>
std::size_t wrong_elements(const Store& store) {
  static_assert(pqkv::kv_store<Store>);
  REQUIRE(store.heads() == h);
  REQUIRE(store.tokens() == n);
  REQUIRE(store.head_dim() == d);
  std::size_t wrong = 0;
  for (std::size_t head = 0; head < h; ++head)
    for (std::size_t t = 0; t < n; ++t)
      for (std::size_t i = 0; i < d; ++i) {
        const auto key = store.key(head, t), value = store.value(head, t);
        wrong +=
            float(key.data[i * key.stride]) != mark(head, t, i, false) || float(value.data[i * value.stride]) != mark(head, t, i, true);
      }
  return wrong;
}

template <class T>
void check_adaptors() {
  for (const layout k : every_layout)
    for (const layout v : every_layout) {
      rows<T> keys(h, n, d, k), values(h, n, d, v);
      fill_marks(keys.view(), false);
      fill_marks(values.view(), true);
      CHECK(wrong_elements(pqkv::strided_kv(keys.view(), pqkv::as_const(values.view()))) == 0);
      if (k == layout::dense && v == layout::dense)
        CHECK(wrong_elements(pqkv::dense_kv(keys.view().data, values.view().data, h, n, d)) == 0);
    }
  rows<T> both(h, n, d, layout::interleaved);
  fill_marks(both.view(), false);
  fill_marks(both.other_half(), true);
  CHECK(wrong_elements(pqkv::interleaved_kv(static_cast<const T*>(both.view().data), h, n, d)) == 0);
}

/// A store seen through a map: heads of slots in another order, one of them twice.
template <class T>
void check_mapped() {
  constexpr std::size_t of_slot = 3, slots = 4;  // h of one sequence
  rows<T> keys(of_slot * slots, n, d, layout::padded), values(of_slot * slots, n, d, layout::transposed);
  for (std::size_t head = 0; head < of_slot * slots; ++head)
    for (std::size_t t = 0; t < n; ++t)
      for (std::size_t i = 0; i < d; ++i)
        keys(head, t, i) = T(static_cast<float>(head * 5 + t + i)), values(head, t, i) = T(-static_cast<float>(head * 5 + t + i));
  const auto store = pqkv::strided_kv(keys.view(), values.view());
  const std::vector<std::uint32_t> order = {2, 0, 2, 3};
  const pqkv::mapped_store<pqkv::strided_store<T>> mapped{store, {pqkv::make_view(order.data(), 4), of_slot}, 12};
  static_assert(pqkv::kv_store<decltype(mapped)>);
  CHECK(mapped.heads() == 12);
  CHECK(mapped.tokens() == n);
  CHECK(mapped.head_dim() == d);
  for (std::size_t head = 0; head < 12; ++head) {
    const std::size_t in_store = order[head / of_slot] * of_slot + head % of_slot;
    CHECK(mapped.key(head, 7).data == store.key(in_store, 7).data);
    CHECK(mapped.value(head, 7).data == store.value(in_store, 7).data);
    CHECK(mapped.value(head, 7).stride == store.value(in_store, 7).stride);
  }
  const pqkv::mapped_store<pqkv::strided_store<T>> in_order{store, {}, 12};
  for (std::size_t head = 0; head < 12; ++head) CHECK(in_order.key(head, 3).data == store.key(head, 3).data);
}

/// Rows that can be written are rows that can be read, and a part of their keys is a view.
template <class T>
void check_writable(layout where) {
  rows<T> keys(h, n, d, where), values(h, n, d, where);
  const pqkv::strided_rows<T> written{keys.view(), values.view()};
  static_assert(pqkv::kv_rows<pqkv::strided_rows<T>> && !pqkv::kv_rows<pqkv::strided_store<T>>);
  for (std::size_t head = 0; head < h; ++head)
    for (std::size_t t = 0; t < n; ++t)
      for (std::size_t i = 0; i < d; ++i) {
        const auto key = written.key_slot(head, t), value = written.value_slot(head, t);
        key.data[i * key.stride] = T(mark(head, t, i, false));
        value.data[i * value.stride] = T(mark(head, t, i, true));
      }
  CHECK(wrong_elements(written) == 0);
  CHECK(wrong_elements(pqkv::strided_store<T>(written)) == 0);
  const auto some = written.strided_keys(1, 2, 5, 7);
  CHECK(some.extent(0) == 2);
  CHECK(some.extent(1) == 7);
  CHECK(some.extent(2) == d);
  CHECK(float(some(1, 6, 3)) == mark(2, 11, 3, false));
}

/// Types without what a store must have.
struct no_values {
  using value_type = float;
  using space_type = pqkv::space::host;
  std::size_t heads() const { return 1; }
  std::size_t tokens() const { return 1; }
  std::size_t head_dim() const { return 8; }
  pqkv::kv_row<float> key(std::size_t, std::size_t) const { return {nullptr, 1}; }
};
struct doubles : no_values {
  using value_type = double;
  pqkv::kv_row<double> value(std::size_t, std::size_t) const { return {nullptr, 1}; }
};
static_assert(!pqkv::kv_store<no_values>);
static_assert(!pqkv::kv_store<doubles>);
}  // namespace

TEST_CASE("kv_store: every adaptor finds every row") {
  check_adaptors<float>();
  check_adaptors<pqkv::half>();
  check_adaptors<pqkv::bfloat16>();
}

TEST_CASE("kv_store: heads of another store, in an order of one's own") {
  check_mapped<float>();
  check_mapped<pqkv::half>();
  check_mapped<pqkv::bfloat16>();
}

TEST_CASE("kv_store: rows of every layout can be written and read") {
  for (const layout where : every_layout)
    check_writable<float>(where), check_writable<pqkv::half>(where), check_writable<pqkv::bfloat16>(where);
}

TEST_CASE("kv_store: keys and values of different extents are refused") {
  const rows<float> keys(h, n, d), heads(h + 1, n, d), tokens(h, n - 1, d), elements(h, n, d + 8);
  using pqkv::shape_error;
  CHECK(unless_refused<shape_error>([&] { pqkv::strided_kv(keys.view(), heads.view()); }, "strided_kv: values.extent(0)", h, h + 1) == "");
  CHECK(unless_refused<shape_error>([&] { pqkv::strided_kv(keys.view(), tokens.view()); }, "strided_kv: values.extent(1)", n, n - 1) == "");
  CHECK(unless_refused<shape_error>([&] { pqkv::strided_kv(keys.view(), elements.view()); }, "strided_kv: values.extent(2)", d, d + 8) ==
        "");
}

TEST_CASE("store_rows: converts between all types and layouts to nearest") {
  const auto check = [](auto from_type, auto to_type) {
    using from = decltype(from_type);
    using to = decltype(to_type);
    for (const layout a : every_layout) {
      const auto source = make_rows<from>(content::gaussian, h, n, d, 5, a);
      rows<to> target(h, n, d, every_layout[(static_cast<std::size_t>(a) + 2) % 5]);
      std::vector<std::uint32_t> bad(h, 4);
      pqkv::store_rows(host<pqkv::isa::best, threaded_runner>{}, source.view(), target.view(), pqkv::make_view(bad.data(), h));
      std::size_t wrong = 0;
      for (std::size_t head = 0; head < h; ++head)
        for (std::size_t t = 0; t < n; ++t)
          for (std::size_t i = 0; i < d; ++i) wrong += float(target(head, t, i)) != float(to(float(source.view()(head, t, i))));
      CHECK(wrong == 0);
      CHECK(bad == std::vector<std::uint32_t>(h, 4));  // raised by none
    }
  };
  using pqkv::half, pqkv::bfloat16;
  check(float(), float()), check(float(), half()), check(float(), bfloat16());
  check(half(), float()), check(half(), half()), check(half(), bfloat16());
  check(bfloat16(), float()), check(bfloat16(), half()), check(bfloat16(), bfloat16());
}

TEST_CASE("store_rows: counts rows that are not finite, once each, per head") {
  auto source = make_rows<float>(content::gaussian, h, n, d, 6);
  source(0, 3, 0) = nonfinite(0);
  source(0, 3, 23) = nonfinite(1);  // the same row
  source(0, 20, 11) = nonfinite(2);
  source(2, 0, 1) = nonfinite(1);
  rows<float> target(h, n, d);
  std::vector<std::uint32_t> bad(h, 0);
  pqkv::store_rows(host<>{}, source.view(), target.view(), pqkv::make_view(bad.data(), h));
  CHECK(bad == std::vector<std::uint32_t>{2, 0, 1});
  pqkv::store_rows(host<>{}, source.view(), target.view(), pqkv::make_view(bad.data(), h));
  CHECK(bad == std::vector<std::uint32_t>{4, 0, 2});
  pqkv::store_rows(host<>{}, source.view(), target.view());  // no counter, no harm
  CHECK(std::isnan(target(0, 3, 23)));

  // Finite in float, infinite in half: what counts is what is stored.
  auto large = make_rows<float>(content::gaussian, h, n, d, 7);
  large(1, 4, 2) = 65520.0f;  // rounds up to infinity
  large(1, 5, 2) = 65519.0f;  // rounds down to the largest half
  rows<pqkv::half> halves(h, n, d);
  std::vector<std::uint32_t> overflown(h, 0);
  pqkv::store_rows(host<>{}, large.view(), halves.view(), pqkv::make_view(overflown.data(), h));
  CHECK(overflown == std::vector<std::uint32_t>{0, 1, 0});
  CHECK(float(halves(1, 5, 2)) == 65504.0f);
}

TEST_CASE("store_rows: no rows, and one row broadcast over a stride of zero") {
  const rows<float> none(h, 0, d);
  rows<float> target(h, n, d);
  pqkv::store_rows(host<>{}, none.view(), target.view().slice(1, 0, 0));
  CHECK(std::isnan(target(0, 0, 0)));
  const auto one = make_rows<float>(content::gaussian, h, 1, d, 8);
  pqkv::view<const float, 3> broadcast = one.view();
  broadcast.extents[1] = n;
  broadcast.strides[1] = 0;
  pqkv::store_rows(host<>{}, broadcast, target.view());
  CHECK(target(2, 20, 5) == one.view()(2, 0, 5));
}

TEST_CASE("store_rows: extents that disagree are refused and nothing is written") {
  const auto source = make_rows<float>(content::gaussian, h, n, d, 6);
  rows<float> target(h, n, d);
  std::vector<std::uint32_t> bad(h, 0);
  const auto call = [&](auto to, std::size_t counters) {
    return [&, to, counters] { pqkv::store_rows(host<>{}, source.view(), to, pqkv::make_view(bad.data(), counters)); };
  };
  using pqkv::shape_error;
  CHECK(unless_refused<shape_error>(call(target.view().slice(0, 0, 2), h), "store_rows: to.extent(0)", h, 2) == "");
  CHECK(unless_refused<shape_error>(call(target.view().slice(1, 0, 2), h), "store_rows: to.extent(1)", n, 2) == "");
  CHECK(unless_refused<shape_error>(call(target.view().slice(2, 0, 2), h), "store_rows: to.extent(2)", d, 2) == "");
  CHECK(unless_refused<shape_error>(call(target.view(), 2), "store_rows: nonfinite.extent(0)", h, 2) == "");
  CHECK(std::isnan(target(0, 0, 0)));
}
