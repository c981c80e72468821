// SPDX-License-Identifier: Apache-2.0
// The caches of a model's layers, all of one kind: they rank, or they keep a window.
#pragma once

#include <cstddef>
#include <variant>
#include <vector>

namespace minillama::cuda {

template <class Ranked, class Streaming>
struct caches_of_layers {
  std::variant<std::vector<Ranked>, std::vector<Streaming>> layers{};

  /// Calls f with the cache of a layer.
  template <class F>
  auto with(std::size_t layer, F f) {
    return std::visit([&](auto& all) { return f(all[layer]); }, layers);
  }
  /// Calls f with every layer's.
  template <class F>
  void each(F f) {
    std::visit(
        [&](auto& all) {
          for (auto& layer : all) f(layer);
        },
        layers);
  }
};

}  // namespace minillama::cuda
