// SPDX-License-Identifier: Apache-2.0
// llama2.c's weights.
#include "llama2c.hpp"

#include "fuzz_input.hpp"
#include "model.hpp"

extern "C" int PQKV_FUZZ_ENTRY(const std::uint8_t* data, std::size_t size) {
  static pqkv_fuzz::input_file file;
  file.set(data, size);
  pqkv_fuzz::read_untrusted([] { minillama::model(minillama::open_llama2c(file.path())); });
  return 0;
}
