// SPDX-License-Identifier: Apache-2.0
// An older standard is refused by name instead of by a page of syntax errors: the sentence, and the end of the compilation.
// flags: -std=c++17
// expect: pqkv: needs C++20
// errors: 2
#include <pqkv/pqkv.hpp>
