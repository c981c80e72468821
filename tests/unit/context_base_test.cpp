// SPDX-License-Identifier: Apache-2.0
// What context-parallel caches of host and device memory refuse alike (scale/context_base.hpp).
#include <doctest/doctest.h>

#include <pqkv/pqkv.hpp>
#include <pqkv/scale/context_base.hpp>
#include <pqkv/scale/in_process.hpp>

namespace {
template <class Space>
using base = pqkv::scale::context_base<pqkv::dense_rows<float, Space>, pqkv::scale::in_process>;

template <class Base>
typename Base::params good() {
  typename Base::params p;
  p.kv_heads = 1, p.query_heads = 2, p.head_dim = 16, p.capacity = 100;
  return p;
}
template <class Base, class Change>
bool refuses(Change change, std::size_t ranks = 2, std::size_t rank = 0) {
  auto p = good<Base>();
  change(p);
  return !Base::can_construct(p, ranks, rank).ok();
}
}  // namespace

TEST_CASE_TEMPLATE("context_base: parameters", Space, pqkv::space::host, pqkv::space::device) {
  using type = base<Space>;
  CHECK(!refuses<type>([](auto&) {}));
  CHECK(refuses<type>([](auto&) {}, 2, 2));
  CHECK(refuses<type>([](auto&) {}, 0));
  CHECK(refuses<type>([](auto& p) { p.head_dim = 20; }));
  CHECK(refuses<type>([](auto& p) { p.block = 0; }));
  CHECK(refuses<type>([](auto& p) { p.selector.residual.subspaces = 2; }));
  CHECK(refuses<type>([](auto& p) { p.selector.axes = pqkv::axis_order::weighted_pairs; }));
  CHECK(refuses<type>([](auto& p) { p.selector.over = pqkv::selector::normalisation::attended; }));
}

TEST_CASE("context_base: sampled keys are rows of their heads") {
  std::vector<float> numbers(2 * 3 * 4);
  for (std::size_t i = 0; i < numbers.size(); ++i) numbers[i] = static_cast<float>(i);
  const pqkv::scale::sampled_keys<float> keys{pqkv::make_view(numbers.data(), 2, 3, 4), 10};
  CHECK(keys.head_dim() == 4);
  CHECK(keys.key(11, 2)[1] == 21.0f);
  CHECK(keys.strided_keys(10, 2, 1, 2)(1, 0, 0) == 16.0f);
}
