// SPDX-License-Identifier: Apache-2.0
// What is wrong with a file or an option that was handed in. One line, "<file>: <key>: <what>", so that a program can print it as it is.
#pragma once
#include <filesystem>
#include <stdexcept>
#include <string>

namespace minillama {

/// Text of a file's making as a message may show it: control characters, line feeds among them, as "\x0a".
inline std::string on_one_line(const std::string& text) {
  std::string shown;
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte >= 0x20 && byte != 0x7f)
      shown += c;
    else
      shown += {'\\', 'x', "0123456789abcdef"[byte / 16], "0123456789abcdef"[byte % 16]};
  }
  return shown;
}

class load_error : public std::runtime_error {
 public:
  load_error(const std::string& source, const std::string& what) : std::runtime_error(on_one_line(source + ": " + what)) {}
  load_error(const std::filesystem::path& file, const std::string& key, const std::string& what)
      : std::runtime_error(on_one_line(file.string() + ": " + key + ": " + what)) {}
};

}  // namespace minillama
