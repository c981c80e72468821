// SPDX-License-Identifier: Apache-2.0
// Tokens of texts, for comparison with other programs: reads JSON lines {"text": ...} on standard input and writes, for each,
// {"ids": [...], "decoded": ...} by the tokenizer.json that is named. `--start` puts what begins a sequence before each text.
#include <cstdio>
#include <iostream>
#include <string_view>

#include "hugging_face_tokenizer.hpp"

int main(int argc, char** argv) {
  if (argc < 2) {
    std::fprintf(stderr, "usage: minillama_tokenize tokenizer.json [--start] < lines of JSON\n");
    return 2;
  }
  try {
    const minillama::hugging_face_tokenizer words(argv[1]);
    const bool start = argc > 2 && std::string_view(argv[2]) == "--start";
    std::string line;
    while (std::getline(std::cin, line)) {
      const auto text = nlohmann::json::parse(line).at("text").get<std::string>();
      std::vector<minillama::token_id> ids = words.encode(text, minillama::text_place::start);
      const auto begin = words.begin_token();
      if (begin && !start) ids.erase(ids.begin());
      std::string decoded;
      minillama::token_id previous = begin.value_or(0);
      for (const minillama::token_id id : ids) {
        decoded += words.decode(previous, id);
        previous = id;
      }
      std::cout << nlohmann::json{{"ids", ids}, {"decoded", decoded}}.dump(-1, ' ', true, nlohmann::json::error_handler_t::replace) << "\n";
    }
  } catch (const std::exception& problem) {
    std::fprintf(stderr, "%s\n", problem.what());
    return 2;
  }
}
