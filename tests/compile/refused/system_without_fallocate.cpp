// SPDX-License-Identifier: Apache-2.0
// macOS cannot reserve room in a file by POSIX, so the header that does says so.
// flags: -D__APPLE__
// expect: pqkv: cache/mapped_file.hpp needs posix_fallocate
#include <pqkv/cache/mapped_file.hpp>

int main() {}
