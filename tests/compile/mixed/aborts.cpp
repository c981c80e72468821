// SPDX-License-Identifier: Apache-2.0
// Without exceptions: a failed check would abort here, and here alone.
#include "parts.hpp"

bool aborting_part() { return select_largest(1); }
