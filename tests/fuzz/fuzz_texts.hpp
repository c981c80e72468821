// SPDX-License-Identifier: Apache-2.0
// What a tokenizer that was taken must do: tokens of any text are its own, and each has a text.
#pragma once
#include <algorithm>
#include <string_view>

#include "fuzz_input.hpp"
#include "tokenizer.hpp"

namespace pqkv_fuzz {

/// Encodes texts, the end of the input among them, and decodes what came of them.
inline void speak(const minillama::tokenizer& words, const std::uint8_t* data, std::size_t size) {
  const std::string_view own(reinterpret_cast<const char*>(data), size);
  for (const std::string_view text : {std::string_view("It's 1234 o'clock,\n  h\xc3\xa9!"), std::string_view("\xff\xfe a\0b", 7),
                                      std::string_view(), own.substr(size - std::min<std::size_t>(size, 64))})
    for (const auto place : {minillama::text_place::start, minillama::text_place::behind}) {
      minillama::token_id previous = 0;
      for (const minillama::token_id token : words.encode(text, place)) {
        if (token >= words.vocabulary()) std::abort();
        words.decode(previous, token);
        previous = token;
      }
    }
}

}  // namespace pqkv_fuzz
