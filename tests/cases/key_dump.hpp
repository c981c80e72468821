// SPDX-License-Identifier: Apache-2.0
// Keys and queries of a real model in one file: minillama_dump_keys writes it, tests/cuda/real_keys.cu compares backends on it. Keys are
// stored as bfloat16, as engines do, queries as the floats that the model computed; both after rotary embedding.
//
// The file, little-endian, without gaps:
//   8 bytes                                      "pqkvkeys"
//   uint32 [7]                                   1 (the format), layers, h, hq, n, d, steps
//   uint16 [layers, h, n, d]                     keys of the prompt, bits of bfloat16
//   float32 [layers, steps, hq, d]               queries of the decode steps behind it, of positions n, n + 1 ...
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <fstream>
#include <stdexcept>
#include <string>
#include <vector>

#include <pqkv/core/scalar.hpp>
#include <pqkv/core/view.hpp>

namespace pqkv_cases {

struct key_dump {
  std::size_t layers = 0, h = 0, hq = 0, n = 0, d = 0, steps = 0;
  std::vector<pqkv::bfloat16> keys;  // [layers, h, n, d]
  std::vector<float> queries;        // [layers, steps, hq, d]

  key_dump() = default;
  key_dump(std::size_t layer_count, std::size_t kv_heads, std::size_t query_heads, std::size_t tokens, std::size_t head_dim,
           std::size_t step_count)
      : layers(layer_count),
        h(kv_heads),
        hq(query_heads),
        n(tokens),
        d(head_dim),
        steps(step_count),
        keys(layers * h * n * d),
        queries(layers * steps * hq * d) {}

  /// [h, n, d]
  pqkv::view<const pqkv::bfloat16, 3> keys_of(std::size_t layer) const { return pqkv::make_view(keys.data() + layer * h * n * d, h, n, d); }
  /// [steps, hq, d]
  pqkv::view<const float, 3> queries_of(std::size_t layer) const {
    return pqkv::make_view(queries.data() + layer * steps * hq * d, steps, hq, d);
  }

  /// @throws std::runtime_error when the file cannot be written
  void write(const std::string& path) const {
    std::ofstream file(path, std::ios::binary | std::ios::trunc);
    const std::uint32_t head[] = {format, word(layers), word(h), word(hq), word(n), word(d), word(steps)};
    file.write(mark, sizeof mark);
    file.write(reinterpret_cast<const char*>(head), sizeof head);
    file.write(reinterpret_cast<const char*>(keys.data()), static_cast<std::streamsize>(keys.size() * sizeof keys[0]));
    file.write(reinterpret_cast<const char*>(queries.data()), static_cast<std::streamsize>(queries.size() * sizeof queries[0]));
    file.close();
    if (!file) throw std::runtime_error(path + ": cannot be written");
  }

  /// @throws std::runtime_error when the file is missing, of another kind, or not as long as its head says
  static key_dump read(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    if (!file) throw std::runtime_error(path + ": cannot be read");
    char begin[sizeof mark];
    std::uint32_t head[7];
    file.read(begin, sizeof begin);
    file.read(reinterpret_cast<char*>(head), sizeof head);
    if (!file || std::memcmp(begin, mark, sizeof mark) != 0 || head[0] != format)
      throw std::runtime_error(path + ": holds no keys of this format");
    double floats = 1;
    for (const std::uint32_t extent : {head[1], head[2], head[4], head[5]}) floats *= extent;
    if (head[2] == 0 || head[3] % head[2] != 0 || head[3] > 4096 || head[6] > 1u << 20 || floats > 0x1p34)
      throw std::runtime_error(path + ": its extents are none of a model");
    key_dump dump(head[1], head[2], head[3], head[4], head[5], head[6]);
    file.read(reinterpret_cast<char*>(dump.keys.data()), static_cast<std::streamsize>(dump.keys.size() * sizeof dump.keys[0]));
    file.read(reinterpret_cast<char*>(dump.queries.data()), static_cast<std::streamsize>(dump.queries.size() * sizeof dump.queries[0]));
    if (!file) throw std::runtime_error(path + ": is shorter than its head says");
    if (file.peek() != std::ifstream::traits_type::eof()) throw std::runtime_error(path + ": is longer than its head says");
    return dump;
  }

  std::size_t bytes() const {
    return sizeof mark + 7 * sizeof(std::uint32_t) + keys.size() * sizeof keys[0] + queries.size() * sizeof(float);
  }

 private:
  static_assert(std::endian::native == std::endian::little);
  static constexpr char mark[8] = {'p', 'q', 'k', 'v', 'k', 'e', 'y', 's'};
  static constexpr std::uint32_t format = 1;
  static std::uint32_t word(std::size_t x) { return static_cast<std::uint32_t>(x); }
};

}  // namespace pqkv_cases
