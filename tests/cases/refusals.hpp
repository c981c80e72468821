// SPDX-License-Identifier: Apache-2.0
// What a door says when it refuses: the exact type, and a text that names function and parameter, what was expected and what came.
#pragma once

#include <cstdio>
#include <exception>
#include <string>
#include <type_traits>

#include <pqkv/core/error.hpp>

namespace pqkv_cases {

/// Calls f, which must throw exactly Error with "pqkv::WHERE: expected EXPECTED (rule), got GOT". Returns "" or what happened instead.
/// @param where  "scan: codes.extent(1)"
template <class Error, class F>
std::string unless_refused(F&& f, const std::string& where, double expected, double got) {
  const auto number = [](double x) {
    char text[40];
    std::snprintf(text, sizeof text, "%.15g", x);
    return std::string(text);
  };
  const std::string begin = "pqkv::" + where + ": expected " + number(expected) + " (", end = "), got " + number(got);
  const auto judge = [&](const std::string& kind, bool right, const std::string& text) {
    const bool fits = text.size() > begin.size() + end.size() && text.compare(0, begin.size(), begin) == 0 &&
                      text.compare(text.size() - end.size(), end.size(), end) == 0;
    return right && fits ? std::string() : kind + ": " + text;
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
