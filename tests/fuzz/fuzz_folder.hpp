// SPDX-License-Identifier: Apache-2.0
// A model's directory in which one file is the input.
#pragma once
#include "../minillama/tiny_model.hpp"
#include "fuzz_input.hpp"

namespace pqkv_fuzz {

/// The shape that seeds have (make_corpus.py).
inline const minillama_test::tiny_shape seed_shape{.hidden = 8,
                                                   .intermediate = 8,
                                                   .vocabulary = 8,
                                                   .layers = 1,
                                                   .query_heads = 2,
                                                   .kv_heads = 1,
                                                   .head_dim = 4,
                                                   .max_positions = 16,
                                                   .tied = false,
                                                   .type = "BF16"};

class model_folder {
 public:
  /// @param input  name of the file that is the input
  explicit model_folder(const char* input) {
    minillama_test::write_text(path() / "config.json", minillama_test::config_of(seed_shape).dump());
    std::filesystem::create_symlink(file.path(), path() / input);
  }
  const std::filesystem::path& path() const { return folder_.path(); }

  input_file file;

 private:
  minillama_test::temporary_directory folder_;
};

}  // namespace pqkv_fuzz
