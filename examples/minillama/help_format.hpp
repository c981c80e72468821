// SPDX-License-Identifier: Apache-2.0
// What --help looks like: a column of names, a column of descriptions broken between words, as wide as the terminal.
#pragma once
#include <CLI/CLI.hpp>
#include <cstddef>
#include <string>

namespace minillama {

/// An option's line. Behind its description stands in brackets what it takes, its default, and which other options it goes with.
class help_format : public CLI::Formatter {
 public:
  /// @param columns  of the lines, 40 or more
  explicit help_format(std::size_t columns) : columns_(columns) {}

  std::string make_option(const CLI::Option* option, bool is_positional) const override;

 private:
  std::size_t columns_;
};

/// The terminal's columns, 40 to 120; 80 where standard output is none.
std::size_t columns_of_standard_output();

}  // namespace minillama
