// SPDX-License-Identifier: Apache-2.0
// config.json: what is taken has finite rotary angles, and the library takes its heads or says why not. The same input is read as the
// generation_config.json beside a config.json: its end tokens are of the vocabulary.
#include "config.hpp"

#include <pqkv/cache/sequence.hpp>

#include "fuzz_folder.hpp"
#include "rotary.hpp"

extern "C" int PQKV_FUZZ_ENTRY(const std::uint8_t* data, std::size_t size) {
  static pqkv_fuzz::input_file file;
  file.set(data, size);
  static pqkv_fuzz::model_folder beside("generation_config.json");
  beside.file.set(data, size);
  const std::size_t taken_before = pqkv_fuzz::accepted;
  pqkv_fuzz::read_untrusted([] {
    const minillama::model_config config = minillama::load_config(beside.path() / "config.json");
    for (const minillama::token_id token : config.end_tokens)
      if (token >= config.vocabulary) std::abort();
  });
  pqkv_fuzz::accepted = taken_before;  // any object is a generation_config.json
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
