// SPDX-License-Identifier: Apache-2.0
// Sharded checkpoints: the same logits as from one file, and one line that names file and tensor for every way index and shards can
// contradict each other.
#include "hugging_face.hpp"

#include <doctest/doctest.h>

#include "load_error.hpp"
#include "model.hpp"
#include "prefill.hpp"
#include "tiny_model.hpp"

using namespace minillama_test;
using nlohmann::json;

namespace {

const std::string index_name = "model.safetensors.index.json";
const char* const shard_names[] = {"model-00001-of-00003.safetensors", "model-00002-of-00003.safetensors",
                                   "model-00003-of-00003.safetensors"};

/// A tiny model in three shards, its tensors dealt out in turn.
class sharded_model {
 public:
  sharded_model() {
    std::size_t i = 0;
    for (const auto& [name, entry] : random_weights(shape, 1)) {
      parts[i % 3].insert({name, entry});
      index["weight_map"][name] = shard_names[i++ % 3];
    }
    index["metadata"] = {{"total_size", 0}};
  }

  void write() const {
    write_text(folder.path() / "config.json", config_of(shape).dump());
    write_text(folder.path() / index_name, index.dump());
    for (std::size_t i = 0; i < 3; ++i) parts_of(parts[i], shape.type).write(folder.path() / shard_names[i]);
  }

  /// Text of the error that loading ends with, behind the directory's name; empty when there is none.
  std::string problem() const {
    try {
      const minillama::model model(folder.path());
    } catch (const minillama::load_error& error) {
      const std::string what = error.what(), start = folder.path().string() + "/";
      CHECK_MESSAGE(what.rfind(start, 0) == 0, what);
      CHECK_MESSAGE(what.find('\n') == std::string::npos, what);
      return what.substr(start.size());
    }
    return "";
  }
  std::string problem_written() const {
    write();
    return problem();
  }

  temporary_directory folder;
  tiny_shape shape{.vocabulary = 300, .tied = false, .type = "BF16"};
  tensors parts[3];
  json index;
};

std::vector<float> logits_of(const std::filesystem::path& directory) {
  const minillama::model llama(directory);
  minillama::pool_runner runner(1);
  const std::vector<minillama::token_id> tokens{1, 299, 7, 256};
  return minillama::prefill(llama, tokens, runner).logits;
}

const std::string norm = "model.norm.weight";

}  // namespace

TEST_CASE("three shards give the logits of one file, which is read where both are there") {
  const sharded_model model;
  model.write();
  const temporary_directory single;
  write_model(single.path(), model.shape, random_weights(model.shape, 1));
  const auto wanted = logits_of(single.path());
  CHECK(wanted.size() == 300);
  CHECK(logits_of(model.folder.path()) == wanted);

  parts_of(random_weights(model.shape, 2), model.shape.type).write(model.folder.path() / "model.safetensors");
  CHECK(logits_of(model.folder.path()) != wanted);
}

TEST_CASE("an index that is no index is refused") {
  sharded_model model;
  model.write();
  CHECK(model.problem() == "");
  for (const char* text : {"", "{", "[]", "weight_map"}) {
    write_text(model.folder.path() / index_name, text);
    CHECK(model.problem() == index_name + ": is not a JSON object");
  }
  write_text(model.folder.path() / index_name, "{}");
  CHECK(model.problem() == index_name + ": weight_map: missing key");
  write_text(model.folder.path() / index_name, R"({"weight_map": ["a"]})");
  CHECK(model.problem() == index_name + ": weight_map: expected an object, got array");
  write_text(model.folder.path() / index_name, R"({"weight_map": {"a": 3}})");
  CHECK(model.problem() == index_name + ": a: expected a shard's file name, got number");
  write_text(model.folder.path() / index_name, R"({"weight_map": {"a": "x", "a": "y"}})");
  CHECK(model.problem() == index_name + ": a: is given twice");
  std::filesystem::remove(model.folder.path() / index_name);
  CHECK(model.problem() == "model.safetensors: cannot be opened: No such file or directory");
}

TEST_CASE("a shard outside the directory is refused, even where there is one") {
  sharded_model model;
  model.write();
  std::filesystem::create_directory(model.folder.path() / "inner");
  for (const char* name : shard_names) std::filesystem::copy_file(model.folder.path() / name, model.folder.path() / "inner" / name);
  for (const std::string& place :
       {"inner/" + std::string(shard_names[0]), (model.folder.path() / shard_names[0]).string(), "inner/../" + std::string(shard_names[0]),
        "..\\" + std::string(shard_names[0]), std::string(".."), std::string("."), std::string(), std::string("a\0b", 3)}) {
    CAPTURE(place);
    model.index["weight_map"][norm] = place;
    const std::string problem = model.problem_written();
    CHECK_MESSAGE(problem.rfind(index_name + ": " + norm + ": expected a shard's file name without a path, got ", 0) == 0, problem);
  }
}

TEST_CASE("shards that are missing, broken, or lack a tensor are refused") {
  sharded_model model;
  const std::string shard = model.index["weight_map"][norm];
  model.write();
  std::filesystem::resize_file(model.folder.path() / shard, 100);
  CHECK(model.problem().rfind(shard + ": header: is longer than the file", 0) == 0);
  std::filesystem::remove(model.folder.path() / shard);
  const std::string problem = model.problem();
  CHECK(problem.rfind(shard + ": ", 0) == 0);
  CHECK(problem.find(": missing shard, which " + index_name + " names for this tensor") != std::string::npos);

  for (tensors& part : model.parts) part.erase(norm);
  CHECK(model.problem_written() == shard + ": " + norm + ": missing tensor, which " + index_name + " says is here");
  model.index["weight_map"].erase(norm);
  CHECK(model.problem_written() == index_name + ": " + norm + ": missing tensor");
}

TEST_CASE("a tensor in two shards is refused, whichever the index names") {
  sharded_model model;
  const tensor copy = random_weights(model.shape, 1).at(norm);
  for (tensors& part : model.parts) part.erase(norm);
  model.parts[0][norm] = model.parts[2][norm] = copy;
  for (const char* place : {shard_names[0], shard_names[2]}) {
    model.index["weight_map"][norm] = place;
    CHECK(model.problem_written() ==
          std::string(shard_names[2]) + ": " + norm + ": tensor is in two shards, here and in " + shard_names[0]);
  }
}
