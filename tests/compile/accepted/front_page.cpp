// SPDX-License-Identifier: Apache-2.0
// The front page alone, as an engine's first file has it.
#include <pqkv/pqkv.hpp>
