// SPDX-License-Identifier: Apache-2.0
// Byte-pair merging, which every tokenizer here ends in: neighbours that make a token together are joined, the best pair first, until none
// are left. What "best" means, and which neighbours make a token, is the tokenizer's to say.
#pragma once
#include <cstddef>
#include <optional>
#include <queue>
#include <string_view>
#include <vector>

#include "config.hpp"

namespace minillama {

/// A part of a text that is one token.
struct text_part {
  std::size_t start, length;  // bytes
  token_id token;
};

/// What two neighbours make: the smaller the order, the earlier they are joined.
template <class Order>
struct joined_pair {
  Order order;
  token_id token;
};

/// Joins neighbours of the smallest order, the first of equals, until no neighbours make a token.
///
/// @param parts  cover the text from left to right
/// @param join   (left part, right part) -> std::optional<joined_pair<Order>>
/// @cost   n log n
template <class Order, class Join>
std::vector<text_part> merge_pairs(std::vector<text_part> parts, const Join& join) {
  constexpr std::size_t none = static_cast<std::size_t>(-1);
  struct link {
    std::size_t previous, next;
  };
  struct candidate {
    joined_pair<Order> pair;
    std::size_t left, right, length;  // parts, and their bytes together when they were found
    bool operator<(const candidate& other) const {  // the top of a queue is the largest
      return pair.order != other.pair.order ? pair.order > other.pair.order : left > other.left;
    }
  };
  std::vector<link> links;
  links.reserve(parts.size());
  for (std::size_t i = 0; i < parts.size(); ++i) links.push_back({i == 0 ? none : i - 1, i + 1 == parts.size() ? none : i + 1});

  std::priority_queue<candidate> candidates;
  const auto consider = [&](std::size_t left, std::size_t right) {
    if (left == none || right == none) return;
    if (const std::optional<joined_pair<Order>> pair = join(parts[left], parts[right]))
      candidates.push({*pair, left, right, parts[left].length + parts[right].length});
  };
  for (std::size_t i = 0; i + 1 < parts.size(); ++i) consider(i, i + 1);
  while (!candidates.empty()) {
    const candidate best = candidates.top();
    candidates.pop();
    text_part &left = parts[best.left], &right = parts[best.right];
    const bool gone = left.length == 0 || right.length == 0 || links[best.left].next != best.right;
    if (gone || left.length + right.length != best.length) continue;  // one of the two was joined to something else since
    left.length = best.length;
    left.token = best.pair.token;
    right.length = 0;
    links[best.left].next = links[best.right].next;
    if (links[best.left].next != none) links[links[best.left].next].previous = best.left;
    consider(links[best.left].previous, best.left);
    consider(best.left, links[best.left].next);
  }
  std::erase_if(parts, [](const text_part& one) { return one.length == 0; });
  return parts;
}

/// Bytes of the UTF-8 character that a text begins with; 1 for what begins with none. @pre text is not empty
inline std::size_t character_bytes(std::string_view text) {
  const auto continues = [&](std::size_t i) { return i < text.size() && (static_cast<unsigned char>(text[i]) & 0xc0) == 0x80; };
  const auto lead = static_cast<unsigned char>(text[0]);
  const std::size_t wanted = lead >= 0xf0 ? 4 : lead >= 0xe0 ? 3 : lead >= 0xc0 ? 2 : 1;
  std::size_t bytes = 1;
  while (bytes < wanted && continues(bytes)) ++bytes;
  return bytes == wanted ? bytes : 1;
}

}  // namespace minillama
