// SPDX-License-Identifier: Apache-2.0
// config.json: what is taken makes a plan and finite rotary angles, or the library refuses the shape.
#include "config.hpp"

#include "footprint.hpp"
#include "fuzz_input.hpp"
#include "rotary.hpp"

extern "C" int PQKV_FUZZ_ENTRY(const std::uint8_t* data, std::size_t size) {
  static pqkv_fuzz::input_file file;
  file.set(data, size);
  pqkv_fuzz::read_untrusted([] {
    const minillama::model_config config = minillama::load_config(file.path());
    if (config.head_dim > 4096) return;  // whom the library refuses, and whose angles take long
    for (const float angle : minillama::rotary_frequencies(config))
      if (!pqkv::is_finite(angle) || angle < 0 || angle > 1) std::abort();
    try {
      minillama::plan_footprint(config, {}, {.prompt = 8, .capacity = 16});
    } catch (const std::logic_error&) {  // value_error, shape_error, capacity_error, length_error
    }
  });
  return 0;
}
