// SPDX-License-Identifier: Apache-2.0
// Constants of double precision are part of the canonical arithmetic.
// flags: -fsingle-precision-constant
// expect: pqkv: -fsingle-precision-constant would change which tokens are selected
#include <pqkv/pqkv.hpp>
