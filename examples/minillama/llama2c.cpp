// SPDX-License-Identifier: Apache-2.0
// The file has no names: where a tensor stands follows from the shape and from the order in which llama2.c writes.
#include "llama2c.hpp"

#include <algorithm>
#include <array>
#include <cstring>
#include <limits>
#include <map>
#include <string_view>
#include <vector>

#include "load_error.hpp"

namespace minillama {
namespace {

constexpr std::size_t header_bytes = 7 * sizeof(std::int32_t);
constexpr std::int32_t magic = 0x616b3432;  // "ak42", first number of versions 1 and up
constexpr std::int64_t largest_extent = std::int64_t{1} << 24;

// More bytes than any file has; products that do not fit become this.
constexpr std::size_t beyond_files = std::numeric_limits<std::size_t>::max() / 64;

std::size_t product(std::size_t a, std::size_t b) { return b != 0 && a > beyond_files / b ? beyond_files : a * b; }

std::int32_t number_at(std::span<const std::byte> bytes, std::size_t i) {
  std::uint32_t bits = 0;
  for (std::size_t k = 0; k < 4; ++k) bits |= static_cast<std::uint32_t>(bytes[4 * i + k]) << (8 * k);
  return static_cast<std::int32_t>(bits);
}

/// Files of other formats, which one tries sooner or later.
void refuse_other_formats(const std::filesystem::path& path, std::span<const std::byte> bytes) {
  const std::string_view text(reinterpret_cast<const char*>(bytes.data()), std::min<std::size_t>(bytes.size(), 16));
  if (text.starts_with("GGUF"))
    throw load_error(path.string(), "is a GGUF file, which is not read; examples/models/gguf_to_hugging_face.py makes a directory of it");
  if (text.size() > 8 && text[8] == '{')
    throw load_error(path.string(), "is a safetensors file; give the directory that it is in, with its config.json");
  if (text.starts_with("PK\x03\x04") || text.starts_with("\x80\x02"))
    throw load_error(path.string(), "is a PyTorch file, which is not read: weights are read from model.safetensors");
  if (text.starts_with("{")) throw load_error(path.string(), "is a JSON file; give the directory that it is in");
}

model_config read_header(const std::filesystem::path& path, std::span<const std::byte> bytes) {
  refuse_other_formats(path, bytes);
  if (bytes.size() < header_bytes)
    throw load_error(
        path, "header",
        "file is truncated: expected at least " + std::to_string(header_bytes) + " bytes, got " + std::to_string(bytes.size()));
  if (number_at(bytes, 0) == magic) throw load_error(path, "header", "unsupported: a llama2.c file of version 1 or later (only version 0)");
  const auto extent = [&](std::size_t i, const char* name, std::int64_t most = largest_extent) {
    std::int64_t value = number_at(bytes, i);
    if (i == 5 && value < 0) value = -value;  // the sign says whether the last matrix is there
    if (value < 1 || value > most) throw load_error(path, name, "expected 1 to " + std::to_string(most) + ", got " + std::to_string(value));
    return static_cast<std::size_t>(value);
  };
  const auto divides = [&](const char* name, std::size_t part, const char* of, std::size_t whole) {
    if (whole % part != 0)
      throw load_error(path, name, std::to_string(part) + " does not divide the " + std::to_string(whole) + " of " + of);
  };
  model_config config;
  config.hidden = extent(0, "dim");
  config.intermediate = extent(1, "hidden_dim");
  config.layers = extent(2, "n_layers", most_layers);
  config.query_heads = extent(3, "n_heads");
  config.kv_heads = extent(4, "n_kv_heads");
  config.vocabulary = extent(5, "vocab_size");
  config.max_positions = extent(6, "seq_len");
  config.tied_embeddings = number_at(bytes, 5) > 0;
  divides("n_heads", config.query_heads, "dim", config.hidden);
  divides("n_kv_heads", config.kv_heads, "n_heads", config.query_heads);
  config.set_head_dim(config.hidden / config.query_heads);
  if (config.stored_head_dim % 2 != 0)
    throw load_error(path, "n_heads", "a head of " + std::to_string(config.stored_head_dim) + " is odd; rotary embedding turns pairs");
  config.rms_norm_epsilon = 1e-5f;  // both are constants of llama2.c's program
  config.rope_theta = 10000.0;
  for (const token_id token : {1u, 2u})
    if (token < config.vocabulary) config.end_tokens.push_back(token);
  return config;
}

/// Outputs of the projections of keys and of values; those of queries are as many as hidden.
std::size_t stored_kv_width(const model_config& c) { return c.kv_heads * c.stored_head_dim; }

/// Bytes of a file of this shape.
std::size_t file_bytes(const model_config& c) {
  const std::size_t layer = c.hidden * (2 + 2 * c.hidden + 2 * stored_kv_width(c) + 3 * c.intermediate);
  const std::size_t floats = product(c.vocabulary, c.hidden) * (c.tied_embeddings ? 1 : 2) + product(c.layers, layer) + c.hidden +
                             product(c.max_positions, c.stored_head_dim);
  return header_bytes + product(floats, sizeof(float));
}

class llama2c_file final : public weight_source {
 public:
  explicit llama2c_file(const std::filesystem::path& path) : path_(path), file_(path), config_(read_header(path, file_.bytes())) {
    const model_config& c = config_;
    const std::size_t expected = file_bytes(c), got = file_.bytes().size();
    if (got != expected)  // first of all: a header alone must not make this program list millions of layers
      throw load_error(path_, "size",
                       "expected " + (expected < beyond_files ? std::to_string(expected) : "more than " + std::to_string(beyond_files)) +
                           " bytes for the shape in the header, got " + std::to_string(got));
    place("model.embed_tokens.weight", {c.vocabulary, c.hidden});
    place_layers("input_layernorm", {c.hidden});
    place_layers("self_attn.q_proj", {c.hidden, c.hidden}, row_order::adjacent_pairs);
    place_layers("self_attn.k_proj", {stored_kv_width(c), c.hidden}, row_order::adjacent_pairs);
    place_layers("self_attn.v_proj", {stored_kv_width(c), c.hidden});
    place_layers("self_attn.o_proj", {c.hidden, c.hidden});
    place_layers("post_attention_layernorm", {c.hidden});
    place_layers("mlp.gate_proj", {c.intermediate, c.hidden});
    place_layers("mlp.down_proj", {c.hidden, c.intermediate});
    place_layers("mlp.up_proj", {c.intermediate, c.hidden});
    place("model.norm.weight", {c.hidden});
    end_ += c.max_positions * c.stored_head_dim;  // cosines and sines of every position, which nobody reads any more
    if (!c.tied_embeddings) place("lm_head.weight", {c.vocabulary, c.hidden});
  }

  const model_config& config() const { return config_; }

  std::vector<std::string> names() const override {
    std::vector<std::string> all;
    for (const auto& entry : places_) all.push_back(entry.first);
    return all;
  }
  [[noreturn]] void refuse(const std::string& name, const std::string& what) const override { throw load_error(path_, name, what); }
  void require(const std::string& name, std::span<const std::size_t> shape) const override { place_of(name, shape); }
  bool same(const std::string& one, const std::string& other) const override { return one == other; }  // none is stored twice
  weight_type type_of(const std::string&) const override { return weight_type::float32; }
  void read_rows(const std::string& name, std::span<const std::size_t> shape, const row_taker& take) const override {
    const tensor_place& found = place_of(name, shape);
    const std::size_t columns = found.shape.back(), d = config_.stored_head_dim;
    std::size_t count = 1;
    for (const std::size_t extent : found.shape) count *= extent;
    const auto bytes = file_.bytes().subspan(header_bytes + found.begin * sizeof(float), count * sizeof(float));
    const row_taker reordered = [&](std::size_t row, std::span<const std::byte> elements) {
      // The pair (2i, 2i + 1) of a head becomes (i, i + d/2).
      const std::size_t inner = row % d;
      take(found.order == row_order::as_stored ? row : row - inner + inner / 2 + inner % 2 * (d / 2), elements);
    };
    const auto wrong = hand_over_rows(file_, bytes, weight_type::float32, columns, reordered);
    if (wrong) throw load_error(path_, name, "NaN or infinity at element " + std::to_string(*wrong));
  }

 private:
  enum class row_order { as_stored, adjacent_pairs };
  struct tensor_place {
    std::size_t begin;  // in floats behind the header
    std::vector<std::size_t> shape;
    row_order order;
  };

  const tensor_place& place_of(const std::string& name, std::span<const std::size_t> shape) const {
    const auto entry = places_.find(name);
    if (entry == places_.end()) refuse(name, "missing tensor");
    if (!std::equal(shape.begin(), shape.end(), entry->second.shape.begin(), entry->second.shape.end()))
      refuse(name, "has another shape than the model expects");
    return entry->second;
  }

  void place(const std::string& name, std::vector<std::size_t> shape, row_order order = row_order::as_stored) {
    std::size_t count = 1;
    for (const std::size_t extent : shape) count *= extent;
    places_[name] = {end_, std::move(shape), order};
    end_ += count;
  }
  /// One tensor of each layer; llama2.c keeps them together.
  void place_layers(const std::string& name, const std::vector<std::size_t>& shape, row_order order = row_order::as_stored) {
    for (std::size_t layer = 0; layer < config_.layers; ++layer)
      place("model.layers." + std::to_string(layer) + "." + name + ".weight", shape, order);
  }

  std::filesystem::path path_;
  mapped_file file_;
  model_config config_;
  std::map<std::string, tensor_place> places_;
  std::size_t end_ = 0;  // in floats behind the header
};

}  // namespace

checkpoint open_llama2c(const std::filesystem::path& path) {
  auto file = std::make_unique<llama2c_file>(path);
  const model_config config = file->config();
  return {config, std::move(file)};
}

}  // namespace minillama
