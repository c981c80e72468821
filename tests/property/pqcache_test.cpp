// SPDX-License-Identifier: Apache-2.0
// Random lives of a pqcache against the plain model (cases/model_life.hpp), for every stored type, on one thread and on several.
#include <doctest/doctest.h>

#include "cases/sanitized.hpp"
#include "cases/model_life.hpp"
#include "cases/policies.hpp"

namespace {
using namespace pqkv_cases;

template <class T, class Policy>
void lives(const Policy& policy, std::uint64_t seed, std::size_t count) {
  random_source random(seed);
  std::size_t checked = 0, listed = 0;
  for (std::size_t i = 0; i < count; ++i) {
    CAPTURE(seed);
    CAPTURE(i);
    const auto p = random_params<T>(random);  // one draw a statement: argument order is the compiler's choice
    const content what = every_content[random.below(4)];
    model_life<T, Policy> one(policy, p, what, random.bits());
    one.run(40);
    checked += one.checked;
    listed += one.listed;
  }
  MESSAGE("queries checked ", checked, ", with a ranked list ", listed);
  CHECK(listed > checked / 4 / looked_at_step);
}
}  // namespace

TEST_CASE("pqcache: random lives equal the plain model, float, best instruction set") {
  lives<float>(pqkv::exec::host<>{}, 11, 16 / looked_at_step);
}
TEST_CASE("pqcache: random lives equal the plain model, float, scalar") {
  lives<float>(pqkv::exec::host<pqkv::isa::scalar>{}, 12, 8 / looked_at_step);
}
TEST_CASE("pqcache: random lives equal the plain model, half, threads") {
  lives<pqkv::half>(pqkv::exec::host<pqkv::isa::best, threaded_runner>{}, 13, 8 / looked_at_step);
}
TEST_CASE("pqcache: random lives equal the plain model, bfloat16") { lives<pqkv::bfloat16>(pqkv::exec::host<>{}, 14, 8 / looked_at_step); }
