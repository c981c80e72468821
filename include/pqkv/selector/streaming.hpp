// SPDX-License-Identifier: Apache-2.0
// Attends only to sinks and window. Source: Xiao et al., "Efficient streaming language models with attention sinks", ICLR 2024.
#pragma once

#include "full.hpp"

namespace pqkv::inline PQKV_MODE::selector {
/// Nothing is retrieved.
using streaming = unranked<coverage::nothing>;
}  // namespace pqkv::selector
