// SPDX-License-Identifier: Apache-2.0
// One program of files that are built otherwise: this one with exceptions, its neighbours without. Each must have the checks that it was
// built with, whatever order the linker sees them in.
#include <cstdio>
#include <cstring>
#include <string>

#include "parts.hpp"

#define TEXT_OF_NAME(name) #name
#define TEXT_OF(name) TEXT_OF_NAME(name)

int main() {
  const std::string version = "v" + std::to_string(pqkv::version_major) + "_" + std::to_string(pqkv::version_minor) + "_" +
                              std::to_string(pqkv::version_patch) + "_";
  if (std::strncmp(TEXT_OF(PQKV_MODE), version.c_str(), version.size()) != 0) return 2;  // config.hpp names the version too
  if (!aborting_part() || !select_largest(1)) return 3;
  try {
    select_largest(2);
    return 4;
  } catch (const pqkv::shape_error& error) {
    std::printf("caught: %s\n", error.what());
  }
  std::fflush(stdout);
  handling_part();  // does not come back
  return 5;
}
