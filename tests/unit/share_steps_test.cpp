// SPDX-License-Identifier: Apache-2.0
// Messages and sizes of scale/share_steps.hpp. Its operations run in property/queued_context_parallel_test.cpp, and on devices in
// cuda/ranks/context_parallel.cu.
#include <doctest/doctest.h>

#include <pqkv/pqkv.hpp>
#include <pqkv/scale/share_steps.hpp>

#include <cstdint>
#include <vector>

using pqkv::scale::gathered_mail;
using merged = pqkv::scale::merged_shares<pqkv::space::device>;
using ranking = pqkv::scale::ranked_share<pqkv::space::device>;

TEST_CASE("share_steps: a gathered message is a vote, then its body, of every rank") {
  std::vector<std::uint64_t> own(3), all{7, 0x4000000040400000u, 1, 8, 0x3f80000000000000u, 2};
  const gathered_mail mail{own.data(), all.data(), 3, 2, 1};
  CHECK(mail.open(5).word(0, 0) == 7);
  CHECK(mail.word(1, 0) == 8);
  CHECK(mail.word(1, 2) == 2);
  CHECK(mail.value(0, 0) == 3.0f);
  CHECK(mail.value(0, 1) == 2.0f);
  CHECK(mail.value(1, 0) == 0.0f);
  CHECK(mail.value(1, 1) == 1.0f);
}

TEST_CASE("share_steps: words of messages") {
  CHECK(ranking::sum_words(32) == 64);
  CHECK(ranking::centred_words(32) == 32);
  CHECK(ranking::candidate_words(8, 2048) == 8 * 2049);
  CHECK(ranking::count_words(8, 4096) == 32768);
  CHECK(merged::words(3, 16) == 26);  // 3 * 17 floats, two in a word
  CHECK(merged::kernel_words(3, 16) == 51);
}

TEST_CASE("share_steps: the parts of a message of a list that is ranked by tokens follow one another") {
  using pqkv::scale::token_message;
  const token_message message = token_message::of(4, 1 << 20, 2048);
  CHECK(message.totals(0) == 0);
  CHECK(message.totals(1) == 16 * 4 * 2);  // 64 bits for each query head of each CTA
  CHECK(message.sample() == 3 * 128);
  CHECK(message.counts() == message.sample() + 4096);
  CHECK(message.keys() == message.counts() + 5);
  CHECK(message.words() == message.keys() + message.kept);
  CHECK(token_message{}.kept == 0);
}

TEST_CASE("share_steps: room for tokens inside a bracket") {
  using pqkv::scale::token_message;
  CHECK(token_message::of(4, 500, 100).samples == 0);  // all tokens have room
  CHECK(token_message::of(4, 500, 100).kept == 500);
  CHECK(token_message::of(4, 4096, 4096).samples == 0);
  CHECK(token_message::of(4, 4096, 4096).kept == 4096);
  CHECK(token_message::of(4, 4097, 1).samples == 4096);
  CHECK(token_message::of(4, 4097, 1).kept == 4096);
  CHECK(token_message::of(4, std::size_t{1} << 23, 1 << 20).kept == token_message::most_kept);
  std::uint32_t before = 0;
  for (std::size_t k = 1; k <= 1 << 20; k *= 2) {  // more for more retrieved tokens, up to half of all
    const std::uint32_t kept = token_message::of(4, 1 << 20, k).kept;
    CHECK(kept >= before);
    before = kept;
  }
  // At 1 M tokens and k = 2048 a sample's eighth key is looked for, with a deviation of 2.8: 13.3 on each side: 3405 tokens, 0.4 of the
  // room.
  CHECK(token_message::of(4, 1 << 20, 2048).kept == 8513);
}

TEST_CASE("share_steps: a share's places are those of its layout") {
  const pqkv::scale::token_layout layout{3, 4, 10};
  for (std::size_t rank = 0; rank < 3; ++rank) {
    const pqkv::scale::token_share share{layout, rank};
    std::uint32_t held = 0;
    for (std::uint32_t t = 0; t < 100; ++t) {
      CHECK(share.local(t) == held);
      held += share.owns(t) ? 1 : 0;
    }
    const pqkv::middle_range range = share.local(pqkv::middle_range{5, 90, 7});
    CHECK(range.begin == share.local(5u));
    CHECK(range.end == share.local(90u));
    CHECK(range.retrieve == 7);
    CHECK(share.local(pqkv::token_span{2, 50, 60}).window_begin == share.local(50u));
    CHECK(share.local(pqkv::leaving_tokens{1, 20, 30}).last == share.local(30u));
  }
}
