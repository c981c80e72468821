// SPDX-License-Identifier: Apache-2.0
// tokenizer.bin, which holds what llama2.c exports of SentencePiece.
#include "llama2c_tokenizer.hpp"

#include "fuzz_texts.hpp"

extern "C" int PQKV_FUZZ_ENTRY(const std::uint8_t* data, std::size_t size) {
  static pqkv_fuzz::input_file file;
  file.set(data, size);
  pqkv_fuzz::read_untrusted([&] { pqkv_fuzz::speak(minillama::llama2c_tokenizer(file.path()), data, size); });
  return 0;
}
