// SPDX-License-Identifier: Apache-2.0
// What a step costs beside time, which the emulation counts: one wait, no allocation.
#include <doctest/doctest.h>

#include "../tiny_model.hpp"
#include "cuda/decoder.hpp"
#include "cuda/prefill.hpp"
#include "emulation.hpp"

using namespace minillama_test;

TEST_CASE("a decode step waits once, for its logits, and allocates nothing") {
  const temporary_directory folder;
  const tiny_shape shape;
  write_model(folder.path(), shape, random_weights(shape, 1));
  const minillama::cuda::device_model llama{minillama::model(folder.path())};
  const std::vector<minillama::token_id> tokens(100, 7);
  const auto prompt = minillama::cuda::prefill(llama, tokens);
  minillama::policy_settings settings;
  settings.quantizer.bits = 4;
  for (const auto name : {minillama::policy_name::full, minillama::policy_name::pq, minillama::policy_name::streaming}) {
    settings.name = name;
    minillama::cuda::device_session at(llama, settings, prompt, 100, minillama::session_kind::single);
    const std::size_t waits = emulated::waits(), allocations = emulated::allocations();
    for (int i = 0; i < 100; ++i) at.step(9);
    CHECK(emulated::waits() == waits + 100);
    CHECK(emulated::allocations() == allocations);
  }
}
