// SPDX-License-Identifier: Apache-2.0
// The control of the refused cases: the same calls with the fault of each taken out compile, so that each fault is the reason.
#include <pqkv/pqkv.hpp>

struct pool {
  template <class F>
  void run(std::size_t count, F&& f) {
    for (std::size_t i = 0; i < count; ++i) f(i);
  }
};

float scores[8];
std::int32_t indices[4];
pqkv::half keys[16 * 8];
std::uint8_t bytes[2 * 16];
pqkv::codebook book;
pool workers;
pqkv::exec::host<pqkv::isa::best, pool&> policy{workers};
pqkv::exec::cuda device_policy;  // a complete type without any CUDA header

struct chooser : pqkv::selector::defaults {
  struct params {};
  static pqkv::status can_construct(const pqkv::cache_shape&, const params&) noexcept { return {}; }
  chooser(const auto&, const pqkv::cache_shape&, const params&) {}
  std::size_t lists() const { return 1; }
  void select(const auto&, const auto&, const auto&, const auto&, const auto&, const auto&, const auto&) {}
};
pqkv::pqcache<>* cache;
pqkv::pqcache<pqkv::dense_rows<float>, chooser>* own_cache;

int main() {
  pqkv::top_k(policy, pqkv::make_view(scores, 1, 8), pqkv::make_view(indices, 1, 4));
  pqkv::top_k(policy, pqkv::make_view<pqkv::space::pinned>(scores, 1, 8), pqkv::make_view(indices, 1, 4));
  pqkv::encode(policy, pqkv::make_view(keys, 1, 16, 8), book.view(), pqkv::make_view(bytes, 1, 2, 16));
  cache->maintain(policy);
  cache->maintain(pqkv::exec::host<>{});
  own_cache->maintain(policy);
}
