// SPDX-License-Identifier: Apache-2.0
// How this engine includes pqkv: without exceptions, so a check that fails ends in the engine's own handler. Defined before the
// first inclusion and the same in every file.
#pragma once

namespace engine {
[[noreturn]] void fail(const char* message);  // one line on stderr, exit code 2
}

#define PQKV_ON_ERROR(message) ::engine::fail(message)
#include <pqkv/pqkv.hpp>
