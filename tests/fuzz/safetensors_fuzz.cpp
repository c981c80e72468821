// SPDX-License-Identifier: Apache-2.0
// model.safetensors, as the weights of a model of the seeds' shape.
#include "safetensors.hpp"

#include "fuzz_folder.hpp"
#include "model.hpp"

extern "C" int PQKV_FUZZ_ENTRY(const std::uint8_t* data, std::size_t size) {
  static pqkv_fuzz::model_folder folder("model.safetensors");
  folder.file.set(data, size);
  pqkv_fuzz::read_untrusted([] { minillama::model(folder.path()); });
  return 0;
}
