// SPDX-License-Identifier: Apache-2.0
// Entry point of the doctest executable; `--help` lists its options, `--test-case=` and `--source-file=` choose tests.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <doctest/doctest.h>
