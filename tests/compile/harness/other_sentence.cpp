// SPDX-License-Identifier: Apache-2.0
// Is refused, for another reason than it says: the harness has to notice.
// expect: pqkv: a sentence that no compiler prints
static_assert(sizeof(int) == 0, "pqkv: another sentence");
int main() {}
