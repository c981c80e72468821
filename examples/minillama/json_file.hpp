// SPDX-License-Identifier: Apache-2.0
// JSON from files that may come from anywhere. The parser alone would keep the last of two equal keys; here a key is given once.
#pragma once
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

namespace minillama {

/// Parses one JSON object.
///
/// @param path  of the file that the text comes from, for messages
/// @param part  of the file, for messages; empty when it is the whole file
/// @throws load_error that names file and part when the text is not a JSON object, or file, part and key when an object gives a key twice
nlohmann::json parse_object(const std::filesystem::path& path, const std::string& part, std::string_view text);

/// Parses a whole file. @throws load_error also when it cannot be read
nlohmann::json read_object(const std::filesystem::path& path);

}  // namespace minillama
