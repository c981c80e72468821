// SPDX-License-Identifier: Apache-2.0
// The bodies of random_source for programs that do not optimise their own.
#define PQKV_TEST_CASES_BODIES 1
#include "inputs.hpp"
