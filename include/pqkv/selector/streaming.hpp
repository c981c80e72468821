// SPDX-License-Identifier: Apache-2.0
// Attends only to sinks and window. Source: Xiao et al., "Efficient streaming language models with attention sinks", ICLR 2024.
#pragma once

#include "full.hpp"

namespace pqkv::inline PQKV_MODE::selector {
/// Nothing is retrieved. A layer whose queries attend to the last w tokens, their own among them (a sliding window), has budget.sinks = 0,
/// budget.window = w and budget.retrieve = 0, and draft_selection::each_query.
using streaming = unranked<coverage::nothing>;
}  // namespace pqkv::selector
