// SPDX-License-Identifier: Apache-2.0
// Some systems and test frameworks have function-like macros of these names; the headers must not meet them.
#define check(...) a macro of somebody else
#define verify(...) a macro of somebody else
#define require(...) a macro of somebody else
#define Check(...) a macro of somebody else
#include <pqkv/pqkv.hpp>

int main() { return static_cast<int>(pqkv::token_set<>{}.spans.extent(0)); }
