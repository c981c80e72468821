// SPDX-License-Identifier: Apache-2.0
// Plain prose to hide facts in: the same bytes on every machine, from word lists of our own and a fixed seed.
#pragma once
#include <string>

namespace minillama {

/// 512 KiB of ASCII: chapters, paragraphs and lines of at most 78 columns. Each chapter is about one of twelve trades and uses a pattern of
/// a sentence once. No word of the facts' keys (questions.cpp) occurs in it.
///
/// @cost it is made at the first call, in some milliseconds, and kept
const std::string& prose();

}  // namespace minillama
