// SPDX-License-Identifier: Apache-2.0
// What the doors of the library say about bad input. A check returns a `status` and allocates nothing, so engines without
// exceptions can ask first (`can_...`); a door turns a failed status into a typed exception whose text names the function,
// the parameter, what was expected and what came. Expected outcomes (a miss, an empty list) are values, never errors.
#pragma once

#include <cstddef>
#include <cstdio>
#include <stdexcept>
#include <string>

#include "../config.hpp"

namespace pqkv {

/// Extents disagree or an extent is out of range.
struct shape_error : std::invalid_argument {
  using std::invalid_argument::invalid_argument;
};

/// A parameter's value is out of range, or a call comes in the wrong state.
struct value_error : std::invalid_argument {
  using std::invalid_argument::invalid_argument;
};

/// The capacity fixed at construction is used up. Nothing was changed.
struct capacity_error : std::length_error {
  using std::length_error::length_error;
};

/// A call of the CUDA runtime failed: a launch at once, or what ran before at sync(). what() says which call of which function.
struct cuda_error : std::runtime_error {
  cuda_error(int code, const std::string& message) : std::runtime_error(message), error(code) {}

  int error;  // a cudaError_t
};

/// The outcome of a check: `ok`, or what is wrong. All texts are string literals.
struct status {
  enum class code { ok, shape, value, capacity };

  code what = code::ok;
  const char* function = "";   // the door, e.g. "scan"
  const char* parameter = "";  // e.g. "codes.extent(1)"
  const char* rule = "";       // what the number means or must satisfy, e.g. "m, from table"
  double expected = 0;
  double got = 0;

  constexpr bool ok() const noexcept { return what == code::ok; }
  constexpr explicit operator bool() const noexcept { return ok(); }

  /// "pqkv::scan: codes.extent(1): expected 2 (m, from table), got 3"
  std::string message() const {
    char text[320];
    std::snprintf(text, sizeof text, "pqkv::%s: %s: expected %.15g (%s), got %.15g", function, parameter, expected, rule, got);
    return text;
  }
};

/// Throws the exception that belongs to a failed status; without exceptions ends in PQKV_ON_ERROR.
[[noreturn]] inline void raise(const status& failed) {
#if PQKV_HAS_EXCEPTIONS
  switch (failed.what) {
    case status::code::shape:
      throw shape_error(failed.message());
    case status::code::capacity:
      throw capacity_error(failed.message());
    default:
      throw value_error(failed.message());
  }
#else
  PQKV_ON_ERROR(failed.message().c_str());
  std::abort();
#endif
}

/// A door's first line: passes, or raises.
inline void require_ok(const status& checked) {
  if (!checked.ok()) raise(checked);
}

namespace detail {
/// Collects the first failure of a list of checks; later ones are not looked at.
class checks {
 public:
  constexpr explicit checks(const char* function) noexcept { first_.function = function; }

  constexpr checks& extent(const char* parameter, std::size_t got, std::size_t expected, const char* rule) noexcept {
    return that(got == expected, status::code::shape, parameter, rule, static_cast<double>(expected), static_cast<double>(got));
  }
  constexpr checks& at_least(const char* parameter, double got, double expected, const char* rule) noexcept {
    return that(got >= expected, status::code::value, parameter, rule, expected, got);
  }
  constexpr checks& at_most(const char* parameter, double got, double expected, const char* rule) noexcept {
    return that(got <= expected, status::code::value, parameter, rule, expected, got);
  }
  constexpr checks& that(bool holds, status::code what, const char* parameter, const char* rule, double expected, double got) noexcept {
    if (first_.ok() && !holds) {
      first_.what = what;
      first_.parameter = parameter;
      first_.rule = rule;
      first_.expected = expected;
      first_.got = got;
    }
    return *this;
  }
  constexpr operator status() const noexcept { return first_; }
  constexpr bool ok() const noexcept { return first_.ok(); }

 private:
  status first_{};
};
}  // namespace detail
}  // namespace pqkv
