// SPDX-License-Identifier: Apache-2.0
#include "unicode_text.hpp"

#include <algorithm>
#include <cstddef>
#include <iterator>

namespace minillama {
namespace {

constexpr char32_t replacement = 0xfffd;

bool is_between(char32_t c, char32_t first, char32_t last) { return first <= c && c <= last; }

}  // namespace

std::string replaced(std::string_view text, std::string_view from, std::string_view to, std::size_t most) {
  std::string out;
  std::size_t done = 0;
  for (auto at = text.find(from); at != text.npos && out.size() <= most; at = text.find(from, done)) {
    out.append(text.substr(done, at - done)).append(to);
    done = at + from.size();
  }
  return out.append(text.substr(done));
}

std::u32string code_points(std::string_view text) {
  std::u32string all;
  for (std::size_t at = 0; at < text.size();) {
    const auto lead = static_cast<unsigned char>(text[at]);
    const std::size_t length = lead < 0x80 ? 1 : lead >> 5 == 6 ? 2 : lead >> 4 == 14 ? 3 : lead >> 3 == 30 ? 4 : 0;
    char32_t c = length == 1 ? lead : lead & (0x7fu >> length);
    std::size_t read = 1;
    for (; read < length && at + read < text.size() && static_cast<unsigned char>(text[at + read]) >> 6 == 2; ++read)
      c = c << 6 | (static_cast<unsigned char>(text[at + read]) & 0x3fu);
    constexpr char32_t least[] = {0, 0, 0x80, 0x800, 0x10000};
    const bool good = length != 0 && read == length && c >= least[length] && c <= 0x10ffff && !is_between(c, 0xd800, 0xdfff);
    all += good ? c : replacement;
    at += good ? length : 1;
  }
  return all;
}

char32_t lower_case(char32_t c) {
  if (is_between(c, U'A', U'Z')) return c + 32;
  if (c < 0xc0) return c;
  if (is_between(c, 0xc0, 0xde) && c != 0xd7) return c + 32;     // Latin-1
  if (is_between(c, 0x391, 0x3ab) && c != 0x3a2) return c + 32;  // Greek
  if (is_between(c, 0x400, 0x40f)) return c + 80;                // Cyrillic
  if (is_between(c, 0x410, 0x42f)) return c + 32;                // Cyrillic
  if (is_between(c, 0x531, 0x556)) return c + 48;                // Armenian
  const bool even_is_upper = is_between(c, 0x100, 0x12f) || is_between(c, 0x132, 0x137) || is_between(c, 0x14a, 0x177) ||
                             is_between(c, 0x460, 0x481) || is_between(c, 0x48a, 0x4bf) || is_between(c, 0x4d0, 0x52f) ||
                             is_between(c, 0x1e00, 0x1e95) || is_between(c, 0x1ea0, 0x1eff);
  if (even_is_upper) return c % 2 == 0 ? c + 1 : c;
  const bool odd_is_upper = is_between(c, 0x139, 0x148) || is_between(c, 0x179, 0x17e) || is_between(c, 0x4c1, 0x4ce);
  if (odd_is_upper) return c % 2 == 1 ? c + 1 : c;
  return c == 0x178 ? 0xff : c;
}

std::u32string lower_case(std::u32string text) {
  for (char32_t& c : text) c = lower_case(c);
  return text;
}

bool is_space(char32_t c) {
  return is_between(c, 0x09, 0x0d) || is_between(c, 0x1c, 0x20) || c == 0x85 || c == 0xa0 || c == 0x1680 || is_between(c, 0x2000, 0x200a) ||
         c == 0x2028 || c == 0x2029 || c == 0x202f || c == 0x205f || c == 0x3000;
}

bool is_decimal_digit(char32_t c) {
  // Where ten digits of a script begin, ascending.
  static constexpr char32_t zeros[] = {0x30,    0x660,   0x6f0,   0x7c0,   0x966,   0x9e6,   0xa66,   0xae6,   0xb66,   0xbe6,   0xc66,
                                       0xce6,   0xd66,   0xde6,   0xe50,   0xed0,   0xf20,   0x1040,  0x1090,  0x17e0,  0x1810,  0x1946,
                                       0x19d0,  0x1a80,  0x1a90,  0x1b50,  0x1bb0,  0x1c40,  0x1c50,  0xa620,  0xa8d0,  0xa900,  0xa9d0,
                                       0xa9f0,  0xaa50,  0xabf0,  0xff10,  0x104a0, 0x10d30, 0x11066, 0x110f0, 0x11136, 0x111d0, 0x112f0,
                                       0x11450, 0x114d0, 0x11650, 0x116c0, 0x11730, 0x118e0, 0x11950, 0x11c50, 0x11d50, 0x11da0, 0x16a60,
                                       0x16ac0, 0x16b50, 0x1d7ce, 0x1d7d8, 0x1d7e2, 0x1d7ec, 0x1d7f6, 0x1e140, 0x1e2f0, 0x1e950, 0x1fbf0};
  const auto above = std::upper_bound(std::begin(zeros), std::end(zeros), c);
  return above != std::begin(zeros) && c - above[-1] < 10;
}

bool is_word_character(char32_t c) {
  if (c < 0x80) return is_between(c, U'0', U'9') || is_between(c, U'A', U'Z') || is_between(c, U'a', U'z') || c == U'_';
  if (c < 0xc0) return c == 0xaa || c == 0xb2 || c == 0xb3 || c == 0xb5 || c == 0xb9 || c == 0xba || is_between(c, 0xbc, 0xbe);
  if (c == 0xd7 || c == 0xf7 || c == replacement || is_space(c)) return false;
  const bool symbol = is_between(c, 0x2010, 0x206f) || is_between(c, 0x20a0, 0x20cf) || is_between(c, 0x2116, 0x2117) ||
                      is_between(c, 0x211e, 0x2123) || is_between(c, 0x2190, 0x245f) || is_between(c, 0x2500, 0x2775) ||
                      is_between(c, 0x2900, 0x2bff) || is_between(c, 0x3001, 0x3004) || is_between(c, 0x3008, 0x3020) ||
                      is_between(c, 0xff01, 0xff0f) || is_between(c, 0xff1a, 0xff20) || is_between(c, 0x1f000, 0x1f0ff) ||
                      is_between(c, 0x1f300, 0x1faff);
  return !symbol;
}

std::vector<std::u32string> split_at_blanks(std::u32string_view text) {
  std::vector<std::u32string> parts;
  for (auto at = text.begin();;) {
    at = std::find_if_not(at, text.end(), is_space);
    if (at == text.end()) return parts;
    const auto end = std::find_if(at, text.end(), is_space);
    parts.emplace_back(at, end);
    at = end;
  }
}

}  // namespace minillama
