// SPDX-License-Identifier: Apache-2.0
// What is wrong with a file or an option that was handed in. One line, "<file>: <key>: <what>", so that a program can print it as it is.
#pragma once
#include <filesystem>
#include <stdexcept>
#include <string>

namespace minillama {

class load_error : public std::runtime_error {
 public:
  load_error(const std::string& source, const std::string& what) : std::runtime_error(source + ": " + what) {}
  load_error(const std::filesystem::path& file, const std::string& key, const std::string& what)
      : std::runtime_error(file.string() + ": " + key + ": " + what) {}
};

}  // namespace minillama
