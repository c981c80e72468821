// SPDX-License-Identifier: Apache-2.0
// A compiler that does not know the attributes of our kernels is refused in one sentence.
// flags: -U__clang__ -D_MSC_VER=1944
// expect: pqkv: MSVC is not supported
// errors: 2
#include <pqkv/pqkv.hpp>

int main() {}
