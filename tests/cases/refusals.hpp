// SPDX-License-Identifier: Apache-2.0
// What a function says when it refuses: the exact type, and a text that names function and parameter, what it must be and what came.
#pragma once

#include <cstdio>
#include <exception>
#include <string>
#include <type_traits>

#include <pqkv/core/error.hpp>

namespace pqkv_cases {

/// Calls f, which must throw exactly Error with "pqkv::WHERE must be ...", where EXPECTED is named if the rule is about
/// a number, and at the end ", got GOT" if it says what came. Returns "" or what happened instead.
/// @param where  "scan: codes.extent(1)"
template <class Error, class F>
std::string unless_refused(F&& f, const std::string& where, double expected, double got) {
  const auto number = [](double x) {
    char text[40];
    std::snprintf(text, sizeof text, "%.15g", x);
    return std::string(text);
  };
  const std::string begin = "pqkv::" + where + " must be ", end = ", got " + number(got);
  const auto judge = [&](const std::string& kind, bool right, const std::string& text) {
    bool fits = text.compare(0, begin.size(), begin) == 0;
    const std::string rest = fits ? text.substr(begin.size()) : "";
    const bool says_what_came = rest.find(", got ") != std::string::npos;
    if (says_what_came) fits = fits && rest.size() > end.size() && rest.compare(rest.size() - end.size(), end.size(), end) == 0;
    bool is_about_a_number = false;
    for (const char* relation : {"", "at least ", "at most ", "below ", "above ", "a multiple of ", "a divisor of "}) {
      const std::string wanted = relation + number(expected);
      const bool begins = rest.compare(0, wanted.size(), wanted) == 0;
      is_about_a_number |= begins && (rest[wanted.size()] == ' ' || rest[wanted.size()] == ',');
    }
    const bool is_a_rule_in_words = rest.find(" (") == std::string::npos || !says_what_came;
    return right && fits && (is_about_a_number || is_a_rule_in_words) ? std::string() : kind + ": " + text;
  };
  try {
    f();
  } catch (const pqkv::shape_error& e) {
    return judge("shape_error", std::is_same_v<Error, pqkv::shape_error>, e.what());
  } catch (const pqkv::value_error& e) {
    return judge("value_error", std::is_same_v<Error, pqkv::value_error>, e.what());
  } catch (const pqkv::capacity_error& e) {
    return judge("capacity_error", std::is_same_v<Error, pqkv::capacity_error>, e.what());
  } catch (const std::exception& e) {
    return std::string("another exception: ") + e.what();
  }
  return "accepted";
}

}  // namespace pqkv_cases
