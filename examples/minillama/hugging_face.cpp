// SPDX-License-Identifier: Apache-2.0
// The index is checked against every shard before a tensor is read.
#include "hugging_face.hpp"

#include <map>

#include "json_file.hpp"
#include "load_error.hpp"
#include "safetensors.hpp"
#include "tensor_list.hpp"

namespace minillama {
namespace {

class single_file final : public weight_source {
 public:
  explicit single_file(const std::filesystem::path& path) : file_(path) {}
  std::vector<std::string> names() const override { return file_.names(); }
  [[noreturn]] void refuse(const std::string& name, const std::string& what) const override { throw load_error(file_.path(), name, what); }
  void require(const std::string& name, std::span<const std::size_t> shape) const override { file_.require(name, shape); }
  bool same(const std::string& one, const std::string& other) const override { return file_.same(one, file_, other); }
  weight_type type_of(const std::string& name) const override { return file_.type_of(name); }
  void read_rows(const std::string& name, std::span<const std::size_t> shape, const row_taker& take) const override {
    file_.read_rows(name, shape, take);
  }

 private:
  safetensors_file file_;
};

class sharded_files final : public weight_source {
 public:
  explicit sharded_files(const std::filesystem::path& index) : index_(index) {
    const nlohmann::json object = read_object(index_, index_limits);
    const auto map = object.find("weight_map");
    if (map == object.end()) throw load_error(index_, "weight_map", "missing key");
    if (!map->is_object()) throw load_error(index_, "weight_map", std::string("expected an object, got ") + map->type_name());
    for (const auto& [name, shard] : map->items()) places_.emplace(name, &opened(name, shard));
    refuse_second_copies();
  }

  /// Those of the shards, whether or not the index has them.
  std::vector<std::string> names() const override {
    std::vector<std::string> all;
    for (const auto& [file_name, file] : shards_)
      for (const std::string& name : file.names()) all.push_back(name);
    return all;
  }
  [[noreturn]] void refuse(const std::string& name, const std::string& what) const override {
    const auto place = places_.find(name);
    throw load_error(place == places_.end() ? index_ : place->second->path(), name, what);
  }
  void require(const std::string& name, std::span<const std::size_t> shape) const override { place_of(name).require(name, shape); }
  bool same(const std::string& one, const std::string& other) const override { return place_of(one).same(one, place_of(other), other); }
  weight_type type_of(const std::string& name) const override { return place_of(name).type_of(name); }
  void read_rows(const std::string& name, std::span<const std::size_t> shape, const row_taker& take) const override {
    place_of(name).read_rows(name, shape, take);
  }

 private:
  const safetensors_file& place_of(const std::string& name) const {
    const auto place = places_.find(name);
    if (place == places_.end()) throw load_error(index_, name, "missing tensor");
    return *place->second;
  }

  /// The shard of a tensor. It is a plain file name: an index must not reach out of its directory.
  const safetensors_file& opened(const std::string& name, const nlohmann::json& shard) {
    if (!shard.is_string()) throw load_error(index_, name, std::string("expected a shard's file name, got ") + shard.type_name());
    const auto& file_name = shard.get_ref<const std::string&>();
    if (file_name.empty() || file_name == "." || file_name == ".." ||
        file_name.find_first_of(std::string_view("/\\\0", 3)) != file_name.npos)
      throw load_error(index_, name, "expected a shard's file name without a path, got " + shard.dump());
    const std::filesystem::path path = index_.parent_path() / file_name;
    if (!shards_.contains(file_name) && !std::filesystem::exists(path))
      throw load_error(path, name, "missing shard, which " + index_.filename().string() + " names for this tensor");
    const safetensors_file& file = shards_.try_emplace(file_name, path).first->second;
    if (!file.contains(name)) throw load_error(path, name, "missing tensor, which " + index_.filename().string() + " says is here");
    return file;
  }

  void refuse_second_copies() const {
    std::map<std::string, std::string> first_shard;
    for (const auto& [file_name, file] : shards_)
      for (const std::string& name : file.names())
        if (const auto [first, fresh] = first_shard.emplace(name, file_name); !fresh)
          throw load_error(index_.parent_path() / file_name, name, "tensor is in two shards, here and in " + first->second);
  }

  std::filesystem::path index_;
  std::map<std::string, safetensors_file> shards_;
  std::map<std::string, const safetensors_file*> places_;
};

std::filesystem::path single_in(const std::filesystem::path& directory) { return directory / "model.safetensors"; }
std::filesystem::path index_in(const std::filesystem::path& directory) { return directory / "model.safetensors.index.json"; }

}  // namespace

bool has_hugging_face_weights(const std::filesystem::path& directory) {
  return std::filesystem::exists(single_in(directory)) || std::filesystem::exists(index_in(directory));
}

checkpoint open_hugging_face(const std::filesystem::path& directory) {
  checkpoint opened;
  opened.config = load_config(directory / "config.json");
  if (std::filesystem::exists(index_in(directory)) && !std::filesystem::exists(single_in(directory)))
    opened.weights = std::make_unique<sharded_files>(index_in(directory));
  else
    opened.weights = std::make_unique<single_file>(single_in(directory));
  match_tensors(opened);
  return opened;
}

}  // namespace minillama
