// SPDX-License-Identifier: Apache-2.0
// A match has a limit of steps, so that a hostile pattern ends with an error.
#include "regular_expression.hpp"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <algorithm>
#include <cstdint>
#include <stdexcept>

namespace minillama {
namespace {

constexpr std::string_view white_space =
    "\\t-\\r\\x{20}\\x{85}\\x{a0}\\x{1680}\\x{2000}-\\x{200a}\\x{2028}\\x{2029}\\x{202f}\\x{205f}\\x{3000}";
constexpr std::uint32_t most_steps = 20'000'000, most_kilobytes = 64 * 1024;

std::string message_of(int code) {
  PCRE2_UCHAR text[160];
  pcre2_get_error_message(code, text, sizeof(text));
  return reinterpret_cast<const char*>(text);
}

/// Bytes of the UTF-8 character that a text begins with; 0 where it begins with none.
std::size_t valid_character(std::string_view text) {
  const auto byte = [&](std::size_t i) { return i < text.size() ? static_cast<unsigned char>(text[i]) : 0u; };
  const unsigned lead = byte(0);
  if (lead < 0x80) return 1;
  if (lead < 0xc2 || lead > 0xf4) return 0;
  const std::size_t bytes = lead >= 0xf0 ? 4 : lead >= 0xe0 ? 3 : 2;
  // of the second byte: no longer form than needed, no surrogate, nothing above U+10FFFF
  const unsigned least = lead == 0xe0 ? 0xa0 : lead == 0xf0 ? 0x90 : 0x80, most = lead == 0xed ? 0x9f : lead == 0xf4 ? 0x8f : 0xbf;
  if (byte(1) < least || byte(1) > most) return 0;
  for (std::size_t i = 2; i < bytes; ++i)
    if ((byte(i) & 0xc0) != 0x80) return 0;
  return bytes;
}

/// Bytes of valid UTF-8 that a text begins with.
std::size_t valid_bytes(std::string_view text) {
  std::size_t valid = 0;
  while (valid < text.size()) {
    const std::size_t bytes = valid_character(text.substr(valid));
    if (bytes == 0) break;
    valid += bytes;
  }
  return valid;
}

}  // namespace

struct regular_expression::compiled {
  pcre2_code* code = nullptr;
  pcre2_match_data* match = nullptr;
  pcre2_match_context* limits = nullptr;

  compiled() = default;
  compiled(const compiled&) = delete;
  compiled& operator=(const compiled&) = delete;
  ~compiled() {
    pcre2_match_context_free(limits);
    pcre2_match_data_free(match);
    pcre2_code_free(code);
  }
};

std::string with_white_space(std::string_view pattern) {
  std::string out;
  bool in_class = false;
  for (std::size_t i = 0; i < pattern.size(); ++i) {
    if (pattern[i] == '\\' && i + 1 < pattern.size()) {
      const char letter = pattern[++i];
      if (letter == 's' && in_class)
        out += white_space;
      else if (letter == 's')
        out.append("[").append(white_space).append("]");
      else if (letter == 'S' && !in_class)
        out.append("[^").append(white_space).append("]");
      else if (letter == 'S')
        throw std::invalid_argument("\\S inside brackets is not supported");
      else
        out.append("\\").append(1, letter);
      continue;
    }
    if (in_class && pattern[i] == '[') throw std::invalid_argument("brackets inside brackets are not supported");
    if (in_class && pattern.substr(i, 2) == "&&") throw std::invalid_argument("&& inside brackets is not supported");
    if (pattern[i] == '[') in_class = true;
    if (pattern[i] == ']') in_class = false;
    out += pattern[i];
  }
  return out;
}

regular_expression::regular_expression(const std::string& pattern) : compiled_(std::make_unique<compiled>()) {
  const std::string spelt_out = with_white_space(pattern);
  int problem = 0;
  PCRE2_SIZE place = 0;
  compiled_->code = pcre2_compile(reinterpret_cast<PCRE2_SPTR>(spelt_out.data()), spelt_out.size(),
                                  PCRE2_UTF | PCRE2_UCP | PCRE2_NEVER_BACKSLASH_C, &problem, &place, nullptr);
  if (compiled_->code == nullptr) throw std::invalid_argument("not a regular expression: " + message_of(problem));
  compiled_->match = pcre2_match_data_create_from_pattern(compiled_->code, nullptr);
  compiled_->limits = pcre2_match_context_create(nullptr);
  if (compiled_->match == nullptr || compiled_->limits == nullptr) throw std::bad_alloc();
  pcre2_set_match_limit(compiled_->limits, most_steps);
  pcre2_set_heap_limit(compiled_->limits, most_kilobytes);
}

regular_expression::~regular_expression() = default;
regular_expression::regular_expression(regular_expression&&) noexcept = default;
regular_expression& regular_expression::operator=(regular_expression&&) noexcept = default;

void regular_expression::each_match(std::string_view text, const std::function<void(std::size_t, std::size_t)>& found) const {
  // PCRE2 would look for bytes that are no UTF-8 in the whole rest of the text, for each match anew.
  for (std::size_t begin = 0; begin < text.size();) {
    const std::size_t length = valid_bytes(text.substr(begin));
    const auto span = reinterpret_cast<PCRE2_SPTR>(text.data() + begin);
    for (std::size_t from = 0; from < length;) {
      const int groups =
          pcre2_match(compiled_->code, span, length, from, PCRE2_NOTEMPTY | PCRE2_NO_UTF_CHECK, compiled_->match, compiled_->limits);
      if (groups == PCRE2_ERROR_NOMATCH) break;
      if (groups < 0) throw std::runtime_error("regular expression: " + message_of(groups));
      const PCRE2_SIZE* ends = pcre2_get_ovector_pointer(compiled_->match);
      found(begin + ends[0], begin + ends[1]);
      from = ends[1];
    }
    begin += std::max<std::size_t>(length, 1);
  }
}

}  // namespace minillama
