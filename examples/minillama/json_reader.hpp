// SPDX-License-Identifier: Apache-2.0
// One object of a JSON file, with getters that name file and key when something is wrong.
#pragma once
#include <cstddef>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace minillama {

/// Whether a value is a whole number, be it spelt 8192.0.
bool is_whole(const nlohmann::json& value);

class json_reader {
 public:
  /// @param object  outlives the reader
  /// @param place   of the object in the file, with a dot after it: "normalizer.", or "line 3: "; empty for the outermost
  /// @throws load_error when it is no object
  json_reader(std::filesystem::path file, const nlohmann::json& object, std::string place = "");

  [[noreturn]] void fail(const std::string& key, const std::string& what) const;

  const std::filesystem::path& file() const { return file_; }
  /// The key with the place before it, as messages have it.
  std::string path_of(const std::string& key) const { return place_ + key; }

  /// Whether the key is there, be it null.
  bool states(const std::string& key) const { return object_->contains(key); }
  /// The value of a key; null counts as absent, as it does for Hugging Face.
  const nlohmann::json* find(const std::string& key) const;
  const nlohmann::json& at(const std::string& key) const;

  json_reader inside(const std::string& key) const { return {file_, at(key), path_of(key) + "."}; }
  /// Readers of an array's objects.
  std::vector<json_reader> each(const std::string& key) const;

  std::string text(const std::string& key) const;
  /// An array of texts, with at least one.
  std::vector<std::string> texts(const std::string& key) const;
  bool flag_or(const std::string& key, bool otherwise) const;
  double positive(const std::string& key) const;
  double positive_or(const std::string& key, double otherwise) const { return find(key) ? positive(key) : otherwise; }
  /// A whole number from `least` to `most`, which may be spelt 8192.0.
  std::size_t whole(const std::string& key, std::size_t least, std::size_t most) const;

  /// All keys, null ones too.
  std::vector<std::string> keys() const;

  /// Refuses a file that asks for something that this program does not compute.
  void require_text(const std::string& key, const std::string& only) const;

 private:
  std::filesystem::path file_;
  const nlohmann::json* object_;
  std::string place_;
};

}  // namespace minillama
