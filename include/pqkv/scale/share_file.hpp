// SPDX-License-Identifier: Apache-2.0
// A rank's share of a saved slot: a header that says whose share of what it is, then the parts as in cache/slot_file.hpp, then a checksum.
// Any number of ranks can read the shares of all ranks: each keeps the tokens that are its own. Shares in host memory and on devices have
// the same files.
//
//   bytes 0..7     "pqkvpart"
//   8..39          version, ranks, rank, 4 zeros, block, run
//   40..143        slot_file_header: the whole sequence; payload_bytes are this file's
//   144..          codebooks, the codes of the share's middle, the share's rows
//   last 4         CRC-32 of everything before
#pragma once

#include <algorithm>
#include <cstring>
#include <iterator>

#include "../cache/slot_file.hpp"
#include "token_layout.hpp"

namespace pqkv::inline PQKV_MODE::scale {

/// The header of a rank's file, 144 bytes.
struct share_file_header {
  static constexpr char the_magic[8] = {'p', 'q', 'k', 'v', 'p', 'a', 'r', 't'};
  static constexpr std::uint32_t the_version = 1;

  char magic[8] = {'p', 'q', 'k', 'v', 'p', 'a', 'r', 't'};
  std::uint32_t version = the_version;
  std::uint32_t ranks = 0, rank = 0, zero = 0;
  std::uint64_t block = 0, run = 0;  // of token_layout
  slot_file_header slot{};

  token_layout layout() const { return {ranks, block, run}; }
  void layout(const token_layout& of) { ranks = static_cast<std::uint32_t>(of.ranks), block = of.block, run = of.run; }
};
static_assert(sizeof(share_file_header) == 144);

/// The tokens of a part that a file holds, by their places in its share. Only the middle's codes are saved.
inline middle_range saved_places(const share_file_header& header, const slot_part& part) {
  const auto held = [&](std::size_t n) { return static_cast<std::uint32_t>(header.layout().held(header.rank, n)); };
  if (part.token_bytes == 0) return {};
  return part.limit != 0 ? middle_range{held(header.slot.middle_begin), held(header.slot.middle_end)}
                         : middle_range{0, held(header.slot.at.n)};
}
/// Bytes between header and checksum.
inline std::uint64_t payload_bytes(const share_file_header& header, const slot_parts& parts) {
  std::uint64_t all = 0;
  for (std::size_t i = 0; i < parts.count; ++i)
    all += parts.part[i].segments * parts.part[i].bytes(saved_places(header, parts.part[i]).size());
  return all;
}

/// Writes a share. @param parts  of this rank's memory
template <class P, class Sink>
void write_share(const P& policy, Sink& sink, const share_file_header& header, const slot_parts& parts, std::size_t slot) {
  pqkv::detail::slot_writer<std::remove_reference_t<Sink>> file(sink);
  file.write(&header, sizeof header);
  const buffer<std::byte> piece(pqkv::detail::slot_file_piece);
  for (std::size_t i = 0; i < parts.count; ++i) {
    const slot_part& part = parts.part[i];
    const middle_range places = saved_places(header, part);
    for (std::size_t run = 0; run < part.segments; ++run)
      file.write_run(policy, part.segment(slot, run) + places.begin * part.token_bytes, part.bytes(places.size()), piece);
  }
  file.finish();
}

/// Reads shares into one rank's memory, in the policy's space.
struct share_reader {
  token_layout layout;       // of the reading cache
  std::size_t rank;          // that reads
  share_file_header wanted;  // of an empty slot of the reading cache
  flat_budget_rule rule;
  std::size_t capacity;  // tokens of a slot

  /// @param sources   one source, or those of all ranks that wrote
  /// @param parts_of  parts_of(slot_file_header) -> slot_parts of this rank's memory
  /// @param books     gets the bytes of the codebooks
  /// @return the last file's header
  /// @throws value_error, capacity_error; on a device cuda_error. What the slot's memory holds is then unspecified
  template <class P, class Sources, class PartsOf>
  share_file_header read(const P& policy, Sources& sources, const PartsOf& parts_of, std::size_t slot, crc32& books) const {
    const std::size_t files = static_cast<std::size_t>(std::distance(std::begin(sources), std::end(sources)));
    require_ok(pqkv::detail::checks("load").at_least("sources", files, 1, "files"));
    const buffer<std::byte> piece(pqkv::detail::slot_file_piece);
    share_file_header first, header;
    std::size_t at = 0;
    for (auto& source : sources) {
      pqkv::detail::slot_reader<std::remove_reference_t<decltype(source)>> file(source);
      file.read(&header, sizeof header);
      if (at == 0) first = header;
      check(header, first, files, at);
      const slot_parts parts = parts_of(header.slot);
      require_ok(pqkv::detail::checks("load").that(header.slot.payload_bytes == payload_bytes(header, parts), status::code::value,
                                                   "file.payload_bytes", relation::equal, "bytes of such a share",
                                                   payload_bytes(header, parts), header.slot.payload_bytes));
      crc32 own_books;
      for (std::size_t i = 0; i < parts.count; ++i)
        for (std::size_t run = 0; run < parts.part[i].segments; ++run) {
          read_fixed(policy, file, parts.part[i], parts.part[i].segment(slot, run), at == 0, piece, own_books);
          read_tokens(policy, file, header, parts.part[i], parts.part[i].segment(slot, run), piece);
        }
      if (at == 0) books = own_books;
      refuse_unless(own_books.value() == books.value(), "with the codebooks of the first");
      file.finish();
      ++at;
    }
    return header;
  }

 private:
  void check(const share_file_header& header, const share_file_header& first, std::size_t files, std::size_t at) const {
    pqkv::detail::checks all("load");
    all.that(std::memcmp(header.magic, share_file_header::the_magic, 8) == 0, status::code::value, "file", relation::required,
             "a rank's share: it does not begin with \"pqkvpart\"", 0, 0)
        .that(header.version == share_file_header::the_version, status::code::value, "file.version", relation::equal, "of this library",
              share_file_header::the_version, header.version);
    if (all.ok()) require_ok(can_lay_out(header.layout(), "load"));
    require_ok(
        all.that(header.rank < header.ranks, status::code::value, "file.rank", relation::below, "file.ranks", header.ranks, header.rank));
    slot_file_header as_first = header.slot;
    as_first.payload_bytes = first.slot.payload_bytes;
    if (files == 1 && header.ranks != 1)  // one file of several; where one rank wrote, its file is all there are
      all.that(header.layout() == layout && header.rank == rank, status::code::value, "sources", relation::required,
               "the files of all ranks that wrote, in order, where this cache shares tokens otherwise", 0, 0);
    else
      all.that(files == header.ranks, status::code::value, "sources", relation::equal, "files, of all ranks that wrote", header.ranks,
               files)
          .that(header.rank == at, status::code::value, "file.rank", relation::equal, "in the order of ranks", at, header.rank)
          .that(header.layout() == first.layout() && std::memcmp(&as_first, &first.slot, sizeof as_first) == 0, status::code::value, "file",
                relation::required, "of the same save as the first", 0, 0);
    require_ok(all);
    require_ok(pqkv::detail::can_load_header(header.slot, wanted.slot, rule, capacity));
  }

  static void refuse_unless(bool holds, const char* what) {
    require_ok(pqkv::detail::checks("load").that(holds, status::code::value, "file", relation::required, what, 0, 0));
  }
  /// Reads `bytes` bytes of a part into the piece.
  template <class File>
  static void read_piece(File& file, const slot_part& part, const buffer<std::byte>& piece, std::size_t bytes, const char* what) {
    file.read(piece.data(), bytes);
    for (std::size_t i = 0; part.limit != 0 && i < bytes; ++i) refuse_unless(std::to_integer<std::size_t>(piece[i]) < part.limit, what);
  }

  /// Reads what does not grow with tokens of a run. All files have the same, so it is taken from the first one.
  template <class P, class File>
  static void read_fixed(const P& policy, File& file, const slot_part& part, std::byte* to, bool is_first, const buffer<std::byte>& piece,
                         crc32& books) {
    for (std::size_t done = 0; done < part.fixed_bytes; done += piece.size()) {
      const std::size_t bytes = std::min(part.fixed_bytes - done, piece.size());
      read_piece(file, part, piece, bytes, "with numbers below their limit");
      books.add(piece.data(), bytes);
      if (!is_first) continue;
      copy_bytes(policy, to + done, piece.data(), bytes);
      sync(policy);
    }
  }

  /// Reads the tokens of a run, and keeps those of this rank.
  template <class P, class File>
  void read_tokens(const P& policy, File& file, const share_file_header& header, const slot_part& part, std::byte* to,
                   const buffer<std::byte>& piece) const {
    if (part.token_bytes == 0) return;
    const middle_range places = saved_places(header, part);
    const std::size_t at_once = std::max<std::size_t>(1, piece.size() / part.token_bytes);
    for (std::size_t begin = places.begin; begin < places.end; begin += at_once) {
      const std::size_t count = std::min<std::size_t>(at_once, places.end - begin);
      read_piece(file, part, piece, count * part.token_bytes, "with codes below c");
      for (std::size_t i = 0; i < count;) {
        const kept_tokens kept = tokens_from(header, begin + i, begin + count);
        if (kept.is_own)
          copy_bytes(policy, to + kept.place * part.token_bytes, piece.data() + i * part.token_bytes, kept.count * part.token_bytes);
        i += kept.count;
      }
      sync(policy);
    }
  }

  /// Consecutive tokens of a file: this rank's, from `place` of its share on; or those of other ranks.
  struct kept_tokens {
    std::size_t count, place;
    bool is_own;
  };
  /// The longest such tokens among those at places [from, end) of a file's share.
  kept_tokens tokens_from(const share_file_header& header, std::size_t from, std::size_t end) const {
    const token_layout written = header.layout();
    const auto place_of = [&](std::size_t at) {
      const std::size_t position = written.position(header.rank, at);
      return layout.owner(position) == rank ? layout.held(rank, position) : nowhere;
    };
    const std::size_t place = place_of(from);
    std::size_t count = 1;
    while (from + count < end && place_of(from + count) == (place == nowhere ? nowhere : place + count)) ++count;
    return {count, place, place != nowhere};
  }
  static constexpr std::size_t nowhere = static_cast<std::size_t>(-1);
};

}  // namespace pqkv::scale
