// SPDX-License-Identifier: Apache-2.0
// Text as code points, and the classes of characters that metrics ask for. Letters change their case where a script has one lower-case
// letter for each upper-case one: Latin, Greek, Cyrillic and Armenian; other letters are left as they are.
#pragma once
#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

namespace minillama {

/// The text with `to` in place of each `from`; what was put in is not searched again. Linear in what it reads and writes.
///
/// @param from  not empty
/// @param most  bytes, after which it may stop: the result is longer then, and no text to go on with
std::string replaced(std::string_view text, std::string_view from, std::string_view to, std::size_t most = static_cast<std::size_t>(-1));

/// Code points of UTF-8. A byte that is no part of a character becomes U+FFFD: models can end in the middle of one.
std::u32string code_points(std::string_view text);

char32_t lower_case(char32_t c);
std::u32string lower_case(std::u32string text);

/// What Python's str.split() splits at.
bool is_space(char32_t c);
/// A decimal digit of any script, as Python's \d finds them (Unicode 14).
bool is_decimal_digit(char32_t c);
/// A letter, a digit or an underscore. Beyond ASCII everything is one but blanks, punctuation and symbols of the blocks that texts use.
bool is_word_character(char32_t c);

/// The parts between runs of blanks; none of them is empty.
std::vector<std::u32string> split_at_blanks(std::u32string_view text);

}  // namespace minillama
