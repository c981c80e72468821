// SPDX-License-Identifier: Apache-2.0
// model.safetensors.index.json, beside two shards that are whole.
#include "fuzz_folder.hpp"
#include "model.hpp"

namespace {

pqkv_fuzz::model_folder& folder_with_shards() {
  static pqkv_fuzz::model_folder folder("model.safetensors.index.json");
  static const bool written = [] {
    minillama_test::tensors shards[2];
    std::size_t i = 0;
    for (const auto& [name, entry] : minillama_test::random_weights(pqkv_fuzz::seed_shape, 1)) shards[i++ % 2][name] = entry;
    for (std::size_t k = 0; k < 2; ++k)
      minillama_test::parts_of(shards[k], "BF16").write(folder.path() / ("shard" + std::to_string(k) + ".safetensors"));
    return true;
  }();
  static_cast<void>(written);
  return folder;
}

}  // namespace

extern "C" int PQKV_FUZZ_ENTRY(const std::uint8_t* data, std::size_t size) {
  pqkv_fuzz::model_folder& folder = folder_with_shards();
  folder.file.set(data, size);
  pqkv_fuzz::read_untrusted([&] { minillama::model(folder.path()); });
  return 0;
}
