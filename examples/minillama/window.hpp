// SPDX-License-Identifier: Apache-2.0
// What becomes of a policy where a model's layers attend only to a window.
#pragma once
#include <cstddef>

#include "config.hpp"
#include "policy.hpp"

namespace minillama {

/// The settings of a model's layers in a sequence of up to `capacity` tokens. Where tokens leave the model's window, its layers attend to
/// all tokens inside of it, under every policy: a window is bounded as it is, and needs no search. Memory has copies of the window where
/// keys and values are in a file, and no blocks beside it. Otherwise these are the settings asked for.
policy_settings settings_of_layers(const policy_settings& asked, const model_config& config, std::size_t capacity);

}  // namespace minillama
