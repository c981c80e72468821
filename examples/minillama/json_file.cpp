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
}  // namespace

json parse_object(const std::filesystem::path& path, const std::string& part, std::string_view text) {
  std::vector<std::set<std::string>> open_objects;
  const auto watch = [&](int depth, json::parse_event_t event, json& parsed) {
    const bool opens = event == json::parse_event_t::object_start || event == json::parse_event_t::array_start;
    if (opens && depth >= deepest) {
      const std::string what = "is nested deeper than " + std::to_string(deepest) + " levels";
      throw part.empty() ? load_error(path.string(), what) : load_error(path, part, what);
    }
    if (event == json::parse_event_t::object_start) open_objects.emplace_back();
    if (event == json::parse_event_t::object_end) open_objects.pop_back();
    if (event == json::parse_event_t::key) {
      const auto& key = parsed.get_ref<const std::string&>();
      if (!open_objects.back().insert(key).second) throw load_error(path, key, "is given twice");
    }
    return true;
  };
  json object = json::parse(text.begin(), text.end(), watch, false);
  if (object.is_object()) return object;
  if (part.empty()) throw load_error(path.string(), "is not a JSON object");
  throw load_error(path, part, "is not a JSON object");
}

json read_object(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file || std::filesystem::is_directory(path)) throw load_error(path.string(), "cannot be opened");
  const std::string text{std::istreambuf_iterator<char>(file), {}};
  return parse_object(path, "", text);
}

}  // namespace minillama
