// SPDX-License-Identifier: Apache-2.0
// A selector that cannot select is refused where a verb is called, with the name of the concept and its file.
// expect: pqkv: Selector must model pqkv::selector_for (selector/concept.hpp)
#include <pqkv/pqkv.hpp>

struct forgetful : pqkv::selector::defaults {
  struct params {};
  static pqkv::status can_construct(const pqkv::cache_shape&, const params&) noexcept { return {}; }
  forgetful(const auto&, const pqkv::cache_shape&, const params&) {}
  std::size_t lists() const { return 1; }
};

pqkv::pqcache<pqkv::dense_rows<float>, forgetful>* cache;

int main() { cache->maintain(pqkv::exec::host<>{}); }
