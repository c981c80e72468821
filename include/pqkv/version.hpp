// SPDX-License-Identifier: Apache-2.0
// The version of the headers that are being compiled; CMakeLists.txt reads it from here.
#pragma once

#include "config.hpp"

namespace pqkv::inline PQKV_MODE {
/// major.minor.patch
/// @{
inline constexpr int version_major = 0;
inline constexpr int version_minor = 1;
inline constexpr int version_patch = 0;
/// @}
}  // namespace pqkv
