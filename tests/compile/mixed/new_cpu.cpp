// SPDX-License-Identifier: Apache-2.0
// Built with instructions that not every CPU has.
#include "life.hpp"

int new_cpu_part();
int new_cpu_part() { return attended_tokens(); }
