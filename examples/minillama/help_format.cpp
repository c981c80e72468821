// SPDX-License-Identifier: Apache-2.0
#include "help_format.hpp"

#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <set>
#include <sstream>

namespace minillama {
namespace {

constexpr std::size_t indent = 29;  // of descriptions

/// CLI11's word for what an option takes is "UINT:1 to 8", with what its check says after the colon.
std::string value_of(const std::string& type) {
  const std::string kind = type.substr(0, type.find(':'));
  if (kind == "ENUM" || type.find('{') != std::string::npos) return " NAME";  // the description has the names
  if (kind == "UINT") return " N";
  if (kind == "FLOAT") return " X";
  return kind.empty() ? "" : " " + kind;
}

std::string range_of(const std::string& type) {
  const std::size_t colon = type.find(':');
  return colon == std::string::npos || value_of(type) == " NAME" ? "" : type.substr(colon + 1);
}

/// In the order of the alphabet: CLI11 has them by address.
std::string names_of(const std::set<CLI::Option*>& options) {
  std::set<std::string> sorted;
  for (const CLI::Option* one : options) sorted.insert(one->get_name());
  std::string names;
  for (const std::string& one : sorted) names += (names.empty() ? "" : ", ") + one;
  return names;
}

std::string left_column(const CLI::Option& option) {
  std::string name = option.get_name(false, true);  // "-m,--model"
  const std::size_t comma = name.find(',');
  name = comma == std::string::npos ? (name.starts_with("--") ? "    " : "") + name : name.substr(0, comma) + ", " + name.substr(comma + 1);
  if (option.get_type_size() != 0) name += value_of(option.get_type_name());
  if (option.get_expected_max() > 1) name += " ...";
  return "  " + name;
}

std::string right_column(const CLI::Option& option) {
  const std::string described = option.get_description();
  std::string more;
  const auto add = [&](const std::string& what) { more += (more.empty() || what.empty() ? "" : "; ") + what; };
  if (option.get_required()) add("required");
  if (option.get_type_size() != 0) {
    add(range_of(option.get_type_name()));
    const bool says_default = described.find("default") != std::string::npos;
    if (!option.get_default_str().empty() && !says_default) add("default " + option.get_default_str());
  }
  if (!option.get_needs().empty()) add("needs " + names_of(option.get_needs()));
  if (!option.get_excludes().empty()) add("not with " + names_of(option.get_excludes()));
  return more.empty() ? described : described + " (" + more + ")";
}

}  // namespace

std::string help_format::make_option(const CLI::Option* option, bool) const {
  std::string text, line = left_column(*option);
  std::istringstream words(right_column(*option));
  bool begins = true;  // nothing stands in the right column yet
  const auto next_line = [&] {
    text += line + "\n";
    line.clear(), begins = true;
  };
  if (line.size() + 2 > indent) next_line();
  for (std::string word; words >> word;) {
    if (!begins && line.size() + 1 + word.size() > columns_) next_line();
    if (begins)
      line.resize(indent, ' ');
    else
      line += ' ';
    line += word, begins = false;
  }
  return text + line + "\n";
}

std::size_t columns_of_standard_output() {
  winsize size{};
  if (::ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) != 0 || size.ws_col == 0) return 80;
  return std::clamp<std::size_t>(size.ws_col, 40, 120);
}

}  // namespace minillama
