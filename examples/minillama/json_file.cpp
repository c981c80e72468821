// SPDX-License-Identifier: Apache-2.0
// Keys are watched while parsing: afterwards nothing tells that there were two.
#include "json_file.hpp"

#include <fstream>
#include <iterator>
#include <set>
#include <string>
#include <vector>

#include "load_error.hpp"

namespace minillama {

using nlohmann::json;

namespace {
/// Far above any configuration; the JSON library goes down by recursion where it copies or prints a value.
constexpr int deepest = 32;
/// Of a file; the largest tokenizers have a tenth of it.
constexpr std::uintmax_t most_bytes = std::uintmax_t{256} << 20;
}  // namespace

json parse_object(const std::filesystem::path& path, const std::string& part, std::string_view text) {
  const auto refuse = [&](const std::string& what) { throw part.empty() ? load_error(path.string(), what) : load_error(path, part, what); };
  if (text.find('\0') != text.npos) refuse("is not a JSON object: there is a NUL byte in it");  // where the library would stop reading
  std::vector<std::set<std::string>> open_objects;
  const auto watch = [&](int depth, json::parse_event_t event, json& parsed) {
    const bool opens = event == json::parse_event_t::object_start || event == json::parse_event_t::array_start;
    if (opens && depth >= deepest) refuse("is nested deeper than " + std::to_string(deepest) + " levels");
    if (event == json::parse_event_t::object_start) open_objects.emplace_back();
    if (event == json::parse_event_t::object_end) open_objects.pop_back();
    if (event == json::parse_event_t::key) {
      const auto& key = parsed.get_ref<const std::string&>();
      if (!open_objects.back().insert(key).second) throw load_error(path, part.empty() ? key : part + ": " + key, "is given twice");
    }
    return true;
  };
  json object = json::parse(text.begin(), text.end(), watch, false);
  if (!object.is_object()) refuse("is not a JSON object");
  return object;
}

json read_object(const std::filesystem::path& path) {
  std::error_code problem;
  const auto kind = std::filesystem::status(path, problem).type();
  using std::filesystem::file_type;
  if (kind != file_type::regular && kind != file_type::not_found && kind != file_type::directory && kind != file_type::none)
    throw load_error(path.string(), "is not a file");  // a pipe, which would be waited for
  std::ifstream file(path, std::ios::binary);
  if (!file || kind == file_type::directory) throw load_error(path.string(), "cannot be opened");
  if (const auto bytes = std::filesystem::file_size(path, problem); !problem && bytes > most_bytes)
    throw load_error(path.string(), "has " + std::to_string(bytes) + " bytes; expected at most " + std::to_string(most_bytes));
  const std::string text{std::istreambuf_iterator<char>(file), {}};
  return parse_object(path, "", text);
}

}  // namespace minillama
