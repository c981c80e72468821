// SPDX-License-Identifier: Apache-2.0
// Errors: what a failed check says, which type it becomes, and that a list of checks keeps the first failure.
#include <pqkv/core/error.hpp>

#include <doctest/doctest.h>

#include <limits>
#include <stdexcept>
#include <string>
#include <type_traits>

using pqkv::status;

static_assert(std::is_base_of_v<std::invalid_argument, pqkv::shape_error>);
static_assert(std::is_base_of_v<std::invalid_argument, pqkv::value_error>);
static_assert(std::is_base_of_v<std::length_error, pqkv::capacity_error>);
static_assert(!std::is_base_of_v<pqkv::shape_error, pqkv::value_error> && !std::is_base_of_v<pqkv::value_error, pqkv::shape_error>);
static_assert(std::is_trivially_copyable_v<status>);
static_assert(status{}.ok() && static_cast<bool>(status{}), "a fresh status is a success");
static_assert(!std::is_convertible_v<status, bool>, "a status does not turn into a number by accident");

TEST_CASE("a failed status names function, parameter, expected, rule and got") {
  const status failed{status::code::shape, "scan", "codes.extent(1)", "m, from table", 2, 3};
  CHECK(failed.message() == "pqkv::scan: codes.extent(1) must be 2 (m, from table), got 3");
  CHECK_FALSE(failed.ok());
  CHECK_FALSE(static_cast<bool>(failed));
}

TEST_CASE("numbers are written in full, whatever their size or sign") {
  CHECK(status{status::code::value, "f", "p", "r", 4294967295.0, 123456789012345.0}.message() ==
        "pqkv::f: p must be 4294967295 (r), got 123456789012345");
  CHECK(status{status::code::value, "f", "p", "r", 0.1, -2.5}.message() == "pqkv::f: p must be 0.1 (r), got -2.5");
  const double nan = std::numeric_limits<double>::quiet_NaN();
  CHECK(status{status::code::value, "f", "p", "r", 1, nan}.message().find("got nan") != std::string::npos);
}

TEST_CASE("every relation reads as English") {
  using pqkv::relation;
  const auto text = [](relation must, const char* rule) { return status{status::code::value, "f", "p", rule, 8, 20, must}.message(); };
  CHECK(text(relation::equal, "m") == "pqkv::f: p must be 8 (m), got 20");
  CHECK(text(relation::at_least, "m") == "pqkv::f: p must be at least 8 (m), got 20");
  CHECK(text(relation::at_most, "") == "pqkv::f: p must be at most 8, got 20");
  CHECK(text(relation::below, "batch") == "pqkv::f: p must be below 8 (batch), got 20");
  CHECK(text(relation::above, "") == "pqkv::f: p must be above 8, got 20");
  CHECK(text(relation::multiple_of, "") == "pqkv::f: p must be a multiple of 8, got 20");
  CHECK(text(relation::divisor, "h") == "pqkv::f: p must be a divisor of 8 (h), got 20");
  CHECK(text(relation::stated, "between 0 and 1") == "pqkv::f: p must be between 0 and 1, got 20");
  CHECK(text(relation::required, "empty: reset() it first") == "pqkv::f: p must be empty: reset() it first");
}

TEST_CASE("whole numbers stay whole, and are compared as what they are") {
  const std::uint64_t large = 18446744073709551615u;
  CHECK(status{status::code::value, "f", "p", "", large, large - 1}.message() ==
        "pqkv::f: p must be 18446744073709551615, got 18446744073709551614");
  CHECK(status{status::code::value, "f", "p", "", 0, -7}.message() == "pqkv::f: p must be 0, got -7");
  CHECK(static_cast<double>(pqkv::status_number(-7)) == -7.0);
  CHECK(static_cast<double>(pqkv::status_number(2.5)) == 2.5);
  using pqkv::detail::checks;
  CHECK_FALSE(status(checks("f").at_least("p", -1, std::size_t{1}, "")).ok());
  CHECK(status(checks("f").at_most("p", -1, std::size_t{1}, "")).ok());
  CHECK_FALSE(status(checks("f").at_most("p", large, large - 1, "")).ok());  // as doubles they are the same
}

TEST_CASE("a text of any length is cut, not overrun") {
  const std::string rule(1000, 'x');
  const std::string message = status{status::code::value, "f", "p", rule.c_str(), 1, 2}.message();
  CHECK(message.size() < 1000);
  CHECK(message.starts_with("pqkv::f: p must be 1 (xxx"));
}

TEST_CASE("each kind of failure is thrown as its own type, with the status's text") {
  status failed{status::code::shape, "scan", "codes.extent(1)", "m, from table", 2, 3};
  const std::string text = failed.message();
  CHECK_THROWS_WITH_AS(pqkv::raise(failed), text.c_str(), pqkv::shape_error);
  failed.what = status::code::value;
  CHECK_THROWS_WITH_AS(pqkv::raise(failed), text.c_str(), pqkv::value_error);
  failed.what = status::code::capacity;
  CHECK_THROWS_WITH_AS(pqkv::raise(failed), text.c_str(), pqkv::capacity_error);
  CHECK_THROWS_WITH_AS(pqkv::require_ok(failed), text.c_str(), pqkv::capacity_error);
  CHECK_NOTHROW(pqkv::require_ok(status{}));
}

TEST_CASE("a list of checks keeps its first failure") {
  const status first = pqkv::detail::checks("train")
                           .extent("keys.extent(0)", 8, 8, "h")
                           .at_least("params.iterations", 1, 1, "L")
                           .at_most("d", 256, 256, "d")
                           .extent("keys.extent(2)", 24, 16, "d, from codebook")
                           .at_least("params.iterations", 0, 1, "L");
  CHECK(first.what == status::code::shape);
  CHECK(first.message() == "pqkv::train: keys.extent(2) must be 16 (d, from codebook), got 24");
}

TEST_CASE("every check fails on its own, with its own kind") {
  const auto kind = [](const pqkv::detail::checks& list) { return status(list).what; };
  using pqkv::detail::checks;
  CHECK(kind(checks("f")) == status::code::ok);
  CHECK(kind(checks("f").extent("p", 1, 2, "r")) == status::code::shape);
  CHECK(kind(checks("f").at_least("p", 1, 2, "r")) == status::code::value);
  CHECK(kind(checks("f").at_most("p", 2, 1, "r")) == status::code::value);
  CHECK(kind(checks("f").that(false, status::code::capacity, "p", pqkv::relation::equal, "r", 1, 2)) == status::code::capacity);
  CHECK(kind(checks("f").that(true, status::code::capacity, "p", pqkv::relation::equal, "r", 1, 2)) == status::code::ok);
  const double nan = std::numeric_limits<double>::quiet_NaN();
  CHECK(kind(checks("f").at_least("p", nan, 2, "r")) == status::code::value);
  CHECK(kind(checks("f").at_most("p", nan, 2, "r")) == status::code::value);
}

TEST_CASE("checks can be asked at compile time") {
  constexpr status failed = pqkv::detail::checks("f").extent("p", 3, 2, "r");
  static_assert(!failed.ok());
  static_assert(pqkv::detail::checks("f").extent("p", 2, 2, "r").ok());
  CHECK(failed.message() == "pqkv::f: p must be 2 (r), got 3");
}
