// SPDX-License-Identifier: Apache-2.0
// Text to tokens and back: bytes, and which model takes which tokenizer.
#include "tokenizer.hpp"

#include <doctest/doctest.h>

#include "load_error.hpp"

using minillama::text_place;
using minillama::token_id;

TEST_CASE("bytes are tokens, at the start and behind other text, and come back") {
  const minillama::byte_tokenizer bytes;
  CHECK(bytes.vocabulary() == 256);
  CHECK_FALSE(bytes.begin_token().has_value());
  for (const text_place place : {text_place::start, text_place::behind}) {
    CHECK(bytes.encode("", place).empty());
    CHECK(bytes.encode(std::string_view("a\0\xff", 3), place) == std::vector<token_id>{97, 0, 255});
  }
  for (token_id token = 0; token < 256; ++token) CHECK(bytes.encode(bytes.decode(32, token), text_place::behind) == std::vector{token});
}

TEST_CASE("a model of 256 tokens reads bytes, any other needs a file") {
  minillama::model_config config;
  config.vocabulary = 256;
  CHECK(minillama::make_tokenizer(config, "/nowhere")->encode("a", text_place::start) == std::vector<token_id>{97});
  config.vocabulary = 257;
  CHECK_THROWS_WITH_AS(minillama::make_tokenizer(config, "/nowhere"),
                       "tokenizer: a file is needed: the model has 257 tokens, and only a model of 256 reads bytes", minillama::load_error);
}
