// SPDX-License-Identifier: Apache-2.0
// What an engine would have anyway: its own way to device memory, behind plain C++.
#pragma once

#include <cstddef>

bool has_device();
void* to_device(const void* from, std::size_t bytes);  // null when it fails
bool to_host(void* to, const void* from, std::size_t bytes);
