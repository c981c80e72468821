// SPDX-License-Identifier: Apache-2.0
// Scores of minillama's metrics, for comparison with other programs. Reads JSON lines from standard input: `by`, a name of score_names();
// `text`; `answers`; `classes`, perhaps empty. Writes one score a line, with all of its digits.
#include "metrics.hpp"

#include <cstdio>
#include <exception>
#include <iostream>
#include <nlohmann/json.hpp>
#include <string>

int main() {
  try {
    for (std::string line; std::getline(std::cin, line);) {
      const nlohmann::json given = nlohmann::json::parse(line);
      std::printf("%.17g\n", minillama::score_of(minillama::score_names().at(given.at("by")), given.at("text"), given.at("answers"),
                                                 given.at("classes").get<std::vector<std::string>>()));
    }
  } catch (const std::exception& error) {
    std::fprintf(stderr, "score_texts: %s\n", error.what());
    return 2;
  }
}
