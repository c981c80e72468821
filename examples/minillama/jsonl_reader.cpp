// SPDX-License-Identifier: Apache-2.0
// The file is mapped, and a line is parsed where it lies.
#include "jsonl_reader.hpp"

#include <algorithm>

#include "json_file.hpp"
#include "load_error.hpp"

namespace minillama {

bool jsonl_reader::next() {
  const auto bytes = file_.bytes();
  const std::string_view text{reinterpret_cast<const char*>(bytes.data()), bytes.size()};
  while (at_ < text.size()) {
    const std::size_t begin = at_, end = std::min(text.find('\n', begin), text.size());
    const std::string_view row = text.substr(begin, end - begin);
    at_ = end + 1;
    ++line_;
    if (row.find_first_not_of(" \t\r") == row.npos) continue;
    if (row.size() > most_line_bytes)
      throw load_error(path_, name_of_line(),
                       "has " + std::to_string(row.size()) + " bytes; expected at most " + std::to_string(most_line_bytes));
    object_ = parse_object(path_, name_of_line(), row);
    file_.forget(bytes.subspan(begin, end - begin));
    return true;
  }
  return false;
}

}  // namespace minillama
