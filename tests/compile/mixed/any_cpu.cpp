// SPDX-License-Identifier: Apache-2.0
// A program of two files, one for every CPU and one for new ones. The first works on every CPU, whatever order the linker sees them in; the
// second is called where the CPU has what it was built for.
#include <cstdio>

#include "life.hpp"

int new_cpu_part();

int main() {
  const int wanted = attended_tokens();
  if (wanted == 0) return 2;
  if (pqkv::isa::detected() < pqkv::isa::level::avx512) return std::puts("equal: the CPU is for one of the files alone"), 0;
  if (new_cpu_part() != wanted) return 3;
  std::puts("equal: both files ran");
}
