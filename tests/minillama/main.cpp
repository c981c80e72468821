// SPDX-License-Identifier: Apache-2.0
// The test program's entry: doctest runs what the other files registered.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <doctest/doctest.h>
