// SPDX-License-Identifier: Apache-2.0
// What the library says about bad input. A check returns a `status` and allocates nothing, so engines without exceptions can ask first
// (`can_...`). The function itself turns a failed status into a typed exception whose text names the function, the parameter, what it must
// be and what came. Expected outcomes (a miss, an empty list) are values, never errors.
#pragma once

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>

#include "../config.hpp"

namespace pqkv::inline PQKV_MODE {

/// Extents disagree or an extent is out of range.
struct shape_error : std::invalid_argument {
  using std::invalid_argument::invalid_argument;
};

/// A parameter's value is out of range, or the call is made in the wrong state.
struct value_error : std::invalid_argument {
  using std::invalid_argument::invalid_argument;
};

/// The capacity fixed at construction is used up. Nothing was changed.
struct capacity_error : std::length_error {
  using std::length_error::length_error;
};

/// A call of the CUDA runtime failed. A failed launch is reported at once, a failure in enqueued work at sync(). what() names the call and
/// the function that made it.
struct cuda_error : std::runtime_error {
  cuda_error(int code, const std::string& message) : std::runtime_error(message), error(code) {}

  int error;  // a cudaError_t
};

/// The relation in which a parameter must be to what was expected.
enum class relation {
  equal,
  at_least,
  at_most,
  below,
  above,
  multiple_of,
  divisor,  // of the expected number
  stated,   // the rule says it: "between 0 and 1"
  required  // the rule says it, and no number tells what came: "empty: reset() it first"
};

/// A number in a status: whole numbers stay whole, however large.
class status_number {
 public:
  constexpr status_number() = default;
  template <std::integral T>
  constexpr status_number(T x) noexcept
      : whole_(static_cast<std::uint64_t>(x)), kind_(std::is_signed_v<T> && x < T{} ? kind::negative : kind::natural) {}
  constexpr status_number(double x) noexcept : real_(x), kind_(kind::real) {}

  constexpr operator double() const noexcept {
    return kind_ == kind::real       ? real_
           : kind_ == kind::negative ? static_cast<double>(static_cast<std::int64_t>(whole_))
                                     : static_cast<double>(whole_);
  }
  /// Writes it as text that ends with a zero.
  void print(char (&text)[32]) const noexcept {
    if (kind_ == kind::real)
      std::snprintf(text, sizeof text, "%.15g", real_);
    else if (kind_ == kind::negative)
      std::snprintf(text, sizeof text, "%lld", static_cast<long long>(static_cast<std::int64_t>(whole_)));
    else
      std::snprintf(text, sizeof text, "%llu", static_cast<unsigned long long>(whole_));
  }

 private:
  enum class kind : std::uint8_t { natural, negative, real };
  std::uint64_t whole_ = 0;
  double real_ = 0;
  kind kind_ = kind::natural;
};

/// The outcome of a check: `ok`, or what is wrong. All texts are string literals.
struct status {
  enum class code { ok, shape, value, capacity };

  code what = code::ok;
  const char* function = "";   // that refused, e.g. "scan"
  const char* parameter = "";  // e.g. "codes.extent(1)"
  const char* rule = "";       // what the expected number is, e.g. "m, from table"; or the whole rule (relation::stated, required)
  status_number expected = 0;
  status_number got = 0;
  relation must = relation::equal;

  constexpr bool ok() const noexcept { return what == code::ok; }
  constexpr explicit operator bool() const noexcept { return ok(); }

  /// "pqkv::scan: codes.extent(1) must be 2 (m, from table), got 3"
  std::string message() const {
    constexpr const char* relations[] = {"", "at least ", "at most ", "below ", "above ", "a multiple of ", "a divisor of "};
    char wanted[32], came[32], text[400];
    expected.print(wanted);
    got.print(came);
    if (must == relation::required)
      std::snprintf(text, sizeof text, "pqkv::%s: %s must be %s", function, parameter, rule);
    else if (must == relation::stated)
      std::snprintf(text, sizeof text, "pqkv::%s: %s must be %s, got %s", function, parameter, rule, came);
    else
      std::snprintf(text, sizeof text, *rule != 0 ? "pqkv::%s: %s must be %s%s (%s), got %s" : "pqkv::%s: %s must be %s%s%s, got %s",
                    function, parameter, relations[static_cast<int>(must)], wanted, rule, came);
    return text;
  }
};

/// Throws the exception of a failed status; without exceptions calls PQKV_ON_ERROR.
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

/// The first line of a function that checks: returns if the status is ok, else raises.
inline void require_ok(const status& checked) {
  if (!checked.ok()) raise(checked);
}

namespace detail {
/// Keeps the first failure of a list of checks; later checks are skipped.
class checks {
 public:
  constexpr explicit checks(const char* function) noexcept { first_.function = function; }

  constexpr checks& extent(const char* parameter, std::size_t got, std::size_t expected, const char* rule) noexcept {
    return that(got == expected, status::code::shape, parameter, relation::equal, rule, expected, got);
  }
  template <class Got, class Expected>
  constexpr checks& at_least(const char* parameter, Got got, Expected expected, const char* rule) noexcept {
    return that(!is_less(got, expected), status::code::value, parameter, relation::at_least, rule, expected, got);
  }
  template <class Got, class Expected>
  constexpr checks& at_most(const char* parameter, Got got, Expected expected, const char* rule) noexcept {
    return that(!is_less(expected, got), status::code::value, parameter, relation::at_most, rule, expected, got);
  }
  constexpr checks& that(bool holds, status::code what, const char* parameter, relation must, const char* rule, status_number expected,
                         status_number got) noexcept {
    if (!first_.ok() || holds) return *this;
    first_.what = what;
    first_.parameter = parameter;
    first_.must = must;
    first_.rule = rule;
    first_.expected = expected;
    first_.got = got;
    return *this;
  }
  constexpr operator status() const noexcept { return first_; }
  constexpr bool ok() const noexcept { return first_.ok(); }

 private:
  /// Compares numbers of any types. A negative number is below every unsigned one. A NaN is below everything, so that no bound accepts it.
  template <class A, class B>
  static constexpr bool is_less(A a, B b) noexcept {
    if constexpr (std::integral<A> && std::integral<B>)
      return std::cmp_less(a, b);
    else
      return !(static_cast<double>(a) >= static_cast<double>(b));
  }

  status first_{};
};
}  // namespace detail
}  // namespace pqkv
