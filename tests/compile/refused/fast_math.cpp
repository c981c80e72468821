// SPDX-License-Identifier: Apache-2.0
// Fast math would let the compiler change canonical results.
// flags: -ffast-math
// expect: pqkv: -ffast-math would change which tokens are selected
#include <pqkv/pqkv.hpp>
