// SPDX-License-Identifier: Apache-2.0
// Compiles although it says that it must not: the harness has to notice.
// expect: pqkv: a sentence that no compiler prints
int main() {}
