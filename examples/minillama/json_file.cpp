// SPDX-License-Identifier: Apache-2.0
// A text is read twice: first by a watcher that keeps open objects' keys alone, then by the parser. The parser's own callback would do it
// at once, but looks at all members of an object again whenever one of them ends: a header of 260000 tensors took minutes.
#include "json_file.hpp"

#include <fstream>
#include <functional>
#include <iterator>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "load_error.hpp"

namespace minillama {

using nlohmann::json;

namespace {

/// Far above any configuration; the JSON library goes down by recursion where it copies or prints a value.
constexpr std::size_t deepest = 32;

/// Sees the text as the parser will, and refuses what must not be parsed: depth, more values than allowed, a key that is given twice.
class watcher final : public nlohmann::json_sax<json> {
 public:
  using refusal = std::function<void(const std::string& key, const std::string& what)>;  // throws; key: empty for the text

  watcher(std::size_t most_values, refusal refuse) : most_(most_values), refuse_(std::move(refuse)) {}

  bool null() override { return count(); }
  bool boolean(bool) override { return count(); }
  bool number_integer(number_integer_t) override { return count(); }
  bool number_unsigned(number_unsigned_t) override { return count(); }
  bool number_float(number_float_t, const string_t&) override { return count(); }
  bool string(string_t&) override { return count(); }
  bool binary(binary_t&) override { return false; }  // no JSON
  bool start_object(std::size_t) override { return open(); }
  bool start_array(std::size_t) override { return open(); }
  bool end_object() override { return close(); }
  bool end_array() override { return close(); }
  bool key(string_t& name) override {
    if (!keys_.back().insert(name).second) refuse_(name, "is given twice");
    return count();
  }
  bool parse_error(std::size_t, const std::string&, const nlohmann::detail::exception&) override { return false; }

 private:
  bool count() {
    if (++values_ > most_) refuse_("", "has more than " + std::to_string(most_) + " values");
    return true;
  }
  bool open() {
    if (keys_.size() >= deepest) refuse_("", "is nested deeper than " + std::to_string(deepest) + " levels");
    keys_.emplace_back();
    return count();
  }
  bool close() {
    keys_.pop_back();
    return true;
  }

  std::size_t most_, values_ = 0;
  refusal refuse_;
  std::vector<std::set<std::string>> keys_;  // of each value that is open; an array has none
};

}  // namespace

json parse_object(const std::filesystem::path& path, const std::string& part, std::string_view text, std::size_t most_values) {
  const auto refuse = [&](const std::string& key, const std::string& what) {
    const std::string place = part.empty() || key.empty() ? part + key : part + ": " + key;
    throw place.empty() ? load_error(path.string(), what) : load_error(path, place, what);
  };
  if (text.find('\0') != text.npos) refuse("", "is not a JSON object: there is a NUL byte in it");  // where the library would stop reading
  watcher watch(most_values, refuse);
  if (!json::sax_parse(text.begin(), text.end(), &watch)) refuse("", "is not a JSON object");
  json object = json::parse(text.begin(), text.end(), nullptr, false);
  if (!object.is_object()) refuse("", "is not a JSON object");
  return object;
}

json read_object(const std::filesystem::path& path, const json_limits& most) {
  std::error_code problem;
  const auto kind = std::filesystem::status(path, problem).type();
  using std::filesystem::file_type;
  if (kind != file_type::regular && kind != file_type::not_found && kind != file_type::directory && kind != file_type::none)
    throw load_error(path.string(), "is not a file");  // a pipe, which would be waited for
  std::ifstream file(path, std::ios::binary);
  if (!file || kind == file_type::directory) throw load_error(path.string(), "cannot be opened");
  if (const auto bytes = std::filesystem::file_size(path, problem); !problem && bytes > most.bytes)
    throw load_error(path.string(), "has " + std::to_string(bytes) + " bytes; expected at most " + std::to_string(most.bytes));
  const std::string text{std::istreambuf_iterator<char>(file), {}};
  return parse_object(path, "", text, most.values);
}

}  // namespace minillama
