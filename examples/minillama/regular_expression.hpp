// SPDX-License-Identifier: Apache-2.0
// The regular expressions of tokenizer files, over PCRE2. They are written for Oniguruma, whose \s is Unicode's White_Space: it is
// spelt out here, since PCRE2's has U+180E too.
#pragma once
#include <cstddef>
#include <functional>
#include <memory>
#include <string>
#include <string_view>

namespace minillama {

class regular_expression {
 public:
  /// @throws std::invalid_argument with the reason and its place: not a regular expression, or one that is not supported
  explicit regular_expression(const std::string& pattern);
  ~regular_expression();
  regular_expression(regular_expression&&) noexcept;
  regular_expression& operator=(regular_expression&&) noexcept;

  /// Calls found(begin, end) for each match, from left to right; empty matches are left out. Bytes that are no UTF-8 match nothing, and
  /// what comes before and after them is searched as a text of its own.
  ///
  /// @cost   n for a pattern that looks at each byte a few times
  /// @throws std::runtime_error when a match takes more steps than any sensible pattern needs
  void each_match(std::string_view text, const std::function<void(std::size_t, std::size_t)>& found) const;

 private:
  struct compiled;
  std::unique_ptr<compiled> compiled_;
};

/// The pattern with \s and \S spelt out.
/// @throws std::invalid_argument for \S inside brackets, and for brackets or && inside brackets, which PCRE2 takes for letters
std::string with_white_space(std::string_view pattern);

}  // namespace minillama
