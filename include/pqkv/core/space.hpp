// SPDX-License-Identifier: Apache-2.0
// Where memory is, as a type. It is part of the types of views and policies, so passing a device view with a host policy is a compile error
// that names both.
#pragma once

#include "../config.hpp"

namespace pqkv::inline PQKV_MODE::space {
struct host {};     // memory of the CPU
struct pinned {};   // page-locked host memory that a device reads too
struct managed {};  // migrates between both
struct device {};   // memory of a device

/// Whether an adaptor makes views of such a container, whose memory may be outside the host's (adapt/).
template <class Container>
inline constexpr bool has_own_views = false;

/// True for the four spaces.
template <class S>
inline constexpr bool is_space = false;
template <>
inline constexpr bool is_space<host> = true;
template <>
inline constexpr bool is_space<pinned> = true;
template <>
inline constexpr bool is_space<managed> = true;
template <>
inline constexpr bool is_space<device> = true;

/// Whether code that runs in space To may read memory of space From.
template <class From, class To>
inline constexpr bool usable_from = false;
template <class S>
inline constexpr bool usable_from<S, S> = true;
template <>
inline constexpr bool usable_from<pinned, host> = true;
template <>
inline constexpr bool usable_from<pinned, device> = true;
template <>
inline constexpr bool usable_from<managed, host> = true;
template <>
inline constexpr bool usable_from<managed, device> = true;
}  // namespace pqkv::space
