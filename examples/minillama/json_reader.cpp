// SPDX-License-Identifier: Apache-2.0
#include "json_reader.hpp"

#include <cmath>
#include <cstdint>

#include "load_error.hpp"

namespace minillama {

using nlohmann::json;

bool is_whole(const json& value) {
  return value.is_number_integer() || (value.is_number_float() && std::floor(value.get<double>()) == value.get<double>());
}

json_reader::json_reader(std::filesystem::path file, const json& object, std::string place)
    : file_(std::move(file)), object_(&object), place_(std::move(place)) {
  if (object.is_object()) return;
  const std::string key = place_.empty() ? "the file" : place_.substr(0, place_.size() - 1);
  throw load_error(file_, key, std::string("expected an object, got ") + object.type_name());
}

void json_reader::fail(const std::string& key, const std::string& what) const { throw load_error(file_, path_of(key), what); }

const json* json_reader::find(const std::string& key) const {
  const auto entry = object_->find(key);
  return entry == object_->end() || entry->is_null() ? nullptr : &*entry;
}

const json& json_reader::at(const std::string& key) const {
  const json* value = find(key);
  if (!value) fail(key, "missing key");
  return *value;
}

std::vector<json_reader> json_reader::each(const std::string& key) const {
  const json& values = at(key);
  if (!values.is_array()) fail(key, std::string("expected an array, got ") + values.type_name());
  std::vector<json_reader> readers;
  for (std::size_t i = 0; i < values.size(); ++i) readers.emplace_back(file_, values[i], path_of(key) + "[" + std::to_string(i) + "].");
  return readers;
}

std::string json_reader::text(const std::string& key) const {
  const json& value = at(key);
  if (!value.is_string()) fail(key, std::string("expected a text, got ") + value.type_name());
  return value.get<std::string>();
}

std::vector<std::string> json_reader::texts(const std::string& key) const {
  const json& values = at(key);
  if (!values.is_array()) fail(key, std::string("expected an array, got ") + values.type_name());
  if (values.empty()) fail(key, "expected at least one text, got none");
  std::vector<std::string> all;
  for (std::size_t i = 0; i < values.size(); ++i) {
    if (!values[i].is_string()) fail(key + "[" + std::to_string(i) + "]", std::string("expected a text, got ") + values[i].type_name());
    all.push_back(values[i].get<std::string>());
  }
  return all;
}

bool json_reader::flag_or(const std::string& key, bool otherwise) const {
  const json* value = find(key);
  if (value && !value->is_boolean()) fail(key, std::string("expected true or false, got ") + value->type_name());
  return value ? value->get<bool>() : otherwise;
}

double json_reader::positive(const std::string& key) const {
  const json& value = at(key);
  if (!value.is_number()) fail(key, std::string("expected a number, got ") + value.type_name());
  if (!(value.get<double>() > 0) || value.get<double>() > 1e30) fail(key, "expected a number above 0, got " + value.dump());
  return value.get<double>();
}

std::size_t json_reader::whole(const std::string& key, std::size_t least, std::size_t most) const {
  const json& value = at(key);
  if (!is_whole(value)) fail(key, "expected a whole number, got " + (value.is_number() ? value.dump() : std::string(value.type_name())));
  if (value.get<double>() > static_cast<double>(most) || value.get<double>() < static_cast<double>(least))
    fail(key, "expected " + std::to_string(least) + " to " + std::to_string(most) + ", got " + value.dump());
  return value.get<std::size_t>();
}

std::vector<std::string> json_reader::keys() const {
  std::vector<std::string> all;
  for (const auto& [key, value] : object_->items()) all.push_back(key);
  return all;
}

void json_reader::require_text(const std::string& key, const std::string& only) const {
  const json* value = find(key);
  if (value && *value != only) fail(key, "unsupported: " + value->dump() + " (only \"" + only + "\")");
}

}  // namespace minillama
