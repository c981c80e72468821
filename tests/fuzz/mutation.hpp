// SPDX-License-Identifier: Apache-2.0
// Seeded changes of a corpus's files: bytes, numbers in binary and in text, words of the formats, pieces moved, doubled or taken out.
#pragma once
#include <algorithm>
#include <cctype>
#include <cstdint>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <vector>

namespace pqkv_fuzz {

class mutator {
 public:
  /// @param seeds  at least one
  mutator(const std::vector<std::string>& seeds, std::uint64_t seed) : seeds_(seeds), bits_(seed) {}

  /// Another input: a file of the corpus with 1 to 8 changes. One in 500 is stretched to a megabyte or so.
  std::string operator()() {
    std::string input = seeds_[below(seeds_.size())];
    for (std::size_t left = 1 + below(8); left > 0; --left) change(input);
    if (below(500) == 0) stretch(input);
    return input;
  }

 private:
  static constexpr std::size_t most_bytes = std::size_t{1} << 20;

  std::size_t below(std::size_t limit) { return limit == 0 ? 0 : static_cast<std::size_t>(bits_() % limit); }

  void change(std::string& input) {
    if (input.empty()) input = "{";
    const std::size_t at = below(input.size()), length = 1 + below(std::min<std::size_t>(input.size() - at, 64));
    switch (below(10)) {
      case 0:
        input[at] = static_cast<char>(input[at] ^ (1 << below(8)));
        break;
      case 1:
        input[at] = static_cast<char>(bits_());
        break;
      case 2:
        number(input, at);
        break;
      case 3:
        input.erase(at, length);
        break;
      case 4:
        input.insert(below(input.size()), input.substr(at, length));
        break;
      case 5:
        input.insert(at, word());
        break;
      case 6:
        decimal(input, at);
        break;
      case 7:
        input.resize(at);
        break;
      case 8: {
        const std::string& other = seeds_[below(seeds_.size())];
        const std::size_t from = below(other.size());
        input.replace(at, length, other.substr(from, below(128)));
        break;
      }
      default:
        std::swap(input[at], input[below(input.size())]);
    }
  }

  /// A number of the edge in 1, 2, 4 or 8 bytes, little endian.
  void number(std::string& input, std::size_t at) {
    static constexpr std::uint64_t edges[] = {0,
                                              1,
                                              2,
                                              3,
                                              0x7f,
                                              0x80,
                                              0xff,
                                              0x7fff,
                                              0x8000,
                                              0xffff,
                                              0x7f800000,
                                              0x7fc00000,
                                              0x7fffffff,
                                              0x80000000,
                                              0xffffffff,
                                              0x01000000,
                                              0x616b3432,
                                              1u << 20,
                                              1u << 10,
                                              ~std::uint64_t{0},
                                              std::uint64_t{1} << 63,
                                              std::uint64_t{1} << 32};
    std::uint64_t value = edges[below(std::size(edges))] + below(3) - 1;
    for (std::size_t left = std::min(std::size_t{1} << below(4), input.size() - at); left > 0; --left, ++at, value >>= 8)
      input[at] = static_cast<char>(value);
  }

  /// Another number where the text has one.
  void decimal(std::string& input, std::size_t at) {
    static const char* const numbers[] = {"0",
                                          "-1",
                                          "1",
                                          "2",
                                          "3",
                                          "8",
                                          "255",
                                          "1e400",
                                          "1e-300",
                                          "0.5",
                                          "1024",
                                          "1025",
                                          "16777216",
                                          "4294967296",
                                          "9223372036854775808",
                                          "18446744073709551615",
                                          "18446744073709551616",
                                          "-9223372036854775808",
                                          "1e30",
                                          "8192.0"};
    const auto digit = [&](std::size_t i) { return std::isdigit(static_cast<unsigned char>(input[i])) != 0; };
    while (at < input.size() && !digit(at)) ++at;
    std::size_t end = at;
    while (end < input.size() && digit(end)) ++end;
    input.replace(at, end - at, numbers[below(std::size(numbers))]);
  }

  const char* word() {
    static const char* const words[] = {"null",
                                        "true",
                                        "false",
                                        "{}",
                                        "[]",
                                        "\"\"",
                                        ",",
                                        ":",
                                        "{",
                                        "}",
                                        "[",
                                        "]",
                                        "\"",
                                        "\\u0000",
                                        "\\ud800",
                                        "\n",
                                        "\xff",
                                        "\xe2\x96\x81",
                                        "\"rope_scaling\":{\"rope_type\":\"yarn\",\"factor\":4},",
                                        "\"dtype\":\"F16\",",
                                        "\"__metadata__\":{\"a\":\"b\"},",
                                        "(?i:",
                                        "(a+)+b",
                                        "\\\\p{L}+",
                                        "..",
                                        "/",
                                        "[[[[[[[["};
    return words[below(std::size(words))];
  }

  /// One piece again and again.
  void stretch(std::string& input) {
    if (input.empty()) return;
    const std::size_t at = below(input.size());
    const std::string piece = input.substr(at, 1 + below(200));
    std::string many;
    while (many.size() < most_bytes) many += piece;
    input.insert(at, many);
  }

  const std::vector<std::string>& seeds_;
  std::mt19937_64 bits_;
};

}  // namespace pqkv_fuzz
