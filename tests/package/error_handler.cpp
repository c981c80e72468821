// SPDX-License-Identifier: Apache-2.0
// A consumer without exceptions and with an error handler of its own: a call with extents that disagree ends there, with the
// function, the parameter and both numbers, before anything is written.
#include <cstdio>
#include <cstdlib>
#include <cstring>

[[noreturn]] void engine_error(const char* message);
#define PQKV_ON_ERROR(message) engine_error(message)
#include <pqkv/pqkv.hpp>

static std::int32_t indices[2 * 4] = {7, 7, 7, 7, 7, 7, 7, 7};

void engine_error(const char* message) {
  const bool named = std::strstr(message, "pqkv::top_k") && std::strstr(message, "indices.extent(0)") &&
                     std::strstr(message, "must be 1") && std::strstr(message, "got 2");
  bool untouched = true;
  for (const std::int32_t index : indices) untouched = untouched && index == 7;
  if (!named || !untouched) std::printf("error_handler: got \"%s\"\n", message);
  std::exit(named && untouched ? 0 : 1);
}

int main() {
  float scores[8] = {};
  const auto one_row = pqkv::make_view(scores, 1, 8);
  const auto two_rows = pqkv::make_view(indices, 2, 4);
  if (pqkv::can_top_k(one_row, two_rows).ok()) return std::puts("error_handler: can_top_k accepts what top_k must refuse"), 1;
  pqkv::top_k(pqkv::exec::host<>{}, one_row, two_rows);
  return std::puts("error_handler: top_k returned"), 1;
}
