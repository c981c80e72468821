// SPDX-License-Identifier: Apache-2.0
// tokenizer.json, with the regular expressions in it.
#include "hugging_face_tokenizer.hpp"

#include "fuzz_texts.hpp"

extern "C" int PQKV_FUZZ_ENTRY(const std::uint8_t* data, std::size_t size) {
  static pqkv_fuzz::input_file file;
  file.set(data, size);
  pqkv_fuzz::read_untrusted([&] { pqkv_fuzz::speak(minillama::hugging_face_tokenizer(file.path()), data, size); });
  return 0;
}
