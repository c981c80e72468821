// SPDX-License-Identifier: Apache-2.0
// config.json: what is taken has finite rotary angles, and the library takes its heads or says why not.
#include "config.hpp"

#include <pqkv/cache/sequence.hpp>

#include "fuzz_input.hpp"
#include "rotary.hpp"

extern "C" int PQKV_FUZZ_ENTRY(const std::uint8_t* data, std::size_t size) {
  static pqkv_fuzz::input_file file;
  file.set(data, size);
  pqkv_fuzz::read_untrusted([] {
    const minillama::model_config config = minillama::load_config(file.path());
    const pqkv::status taken = pqkv::can_cache({.kv_heads = config.kv_heads,
                                                .query_heads = config.query_heads,
                                                .head_dim = config.head_dim,
                                                .capacity = config.max_positions,
                                                .softmax_scale = config.softmax_scale()});
    if (!taken.ok()) {
      if (taken.message().empty()) std::abort();
      return;
    }
    for (const float angle : minillama::rotary_frequencies(config))
      if (!pqkv::is_finite(angle) || angle < 0 || angle > 1) std::abort();
  });
  return 0;
}
