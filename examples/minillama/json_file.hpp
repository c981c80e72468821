// SPDX-License-Identifier: Apache-2.0
// JSON from files that may come from anywhere. The parser alone would keep the last of two equal keys; here a key is given once. Neither
// time nor memory grows faster than the text, and both have a limit.
#pragma once
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

namespace minillama {

/// The most that is read of one kind of file. Three bytes of text can be a value, which takes some 60 to 100 bytes once it is parsed.
struct json_limits {
  std::uintmax_t bytes = std::uintmax_t{4} << 20;  ///< of the file
  std::size_t values = std::size_t{1} << 20;       ///< of all depths; a key is one too
};
/// Of a checkpoint's index: a tensor takes some 100 bytes, and a Llama has a few thousand.
inline constexpr json_limits index_limits{.bytes = std::uintmax_t{16} << 20};
/// Of a tokenizer.json: the largest ones have 40 MB and two million values.
inline constexpr json_limits tokenizer_limits{.bytes = std::uintmax_t{256} << 20, .values = std::size_t{1} << 23};

/// Parses one JSON object.
///
/// @param path         of the file that the text comes from, for messages
/// @param part         of the file, for messages; empty when it is the whole file
/// @param most_values  more are refused before one of them is kept
/// @throws load_error that names file and part when the text is not a JSON object, is nested too deeply or has too many values, or file,
///         part and key when an object gives a key twice
nlohmann::json parse_object(const std::filesystem::path& path, const std::string& part, std::string_view text,
                            std::size_t most_values = json_limits{}.values);

/// Parses a whole file. @throws load_error also when it cannot be read, or has more bytes than `most`
nlohmann::json read_object(const std::filesystem::path& path, const json_limits& most = {});

}  // namespace minillama
