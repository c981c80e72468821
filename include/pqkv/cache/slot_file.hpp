// SPDX-License-Identifier: Apache-2.0
// How a saved slot is laid out: a header, the parts of the slot, a checksum. It is little-endian, and read only on machines that are; the
// header has a mark to check this. The id lists of a joint-code index are not in the file: they are rebuilt from the codes. The file says
// which cache it fits. A file that is truncated, altered or of another cache is refused before the slot changes.
//
//   bytes 0..7    "pqkvslot"
//   8..103        slot_file_header, the rest of it: format, byte order, contents, shape, sequence
//   104..         codebooks and the middle's codes, in the order of pq_index_view::learnt_parts(), then rows [h, n, row] if
//                 the file has them
//   last 4        CRC-32 of everything before
#pragma once

#include <cstdint>
#include <cstring>

#include "../core/checksum.hpp"
#include "../core/slot_parts.hpp"
#include "../exec/memory.hpp"
#include "../exec/sync.hpp"
#include "sequence.hpp"

namespace pqkv::inline PQKV_MODE {

/// What save() writes.
enum class slot_contents : std::uint32_t {
  index = 0,          // codebooks and codes; the rows come from elsewhere, e.g. the engine's own pages
  index_and_rows = 1  // keys and values too
};

/// Where a sequence's index fits: the same numbers, the same selector.
struct selector_signature {
  std::uint32_t kind = 0;  // 0: keeps no index, 1: product quantization, 2: quest, whose page_tokens stand in `subspaces`
  std::uint32_t subspaces = 0, bits = 0, metric = 0, fine_subspaces = 0, fine_bits = 0, axes = 0;
  bool operator==(const selector_signature&) const = default;
};

/// The header of a saved slot, 104 bytes.
struct slot_file_header {
  static constexpr char the_magic[8] = {'p', 'q', 'k', 'v', 's', 'l', 'o', 't'};
  static constexpr std::uint32_t the_version = 2, the_byte_order = 0x01020304u;

  char magic[8] = {'p', 'q', 'k', 'v', 's', 'l', 'o', 't'};
  std::uint32_t version = the_version;
  std::uint32_t byte_order = the_byte_order;
  slot_contents contents = slot_contents::index;
  std::uint32_t kv_heads = 0, head_dim = 0;
  std::uint32_t element = 0;                       // of a row: 0 float, 1 half, 2 bfloat16
  std::uint32_t row_bytes = 0;                     // of a token and head in the file, 0 without rows
  std::uint32_t middle_begin = 0, middle_end = 0;  // the tokens that have codes; they depend on the budget
  selector_signature selector{};
  sequence at{};
  std::uint64_t payload_bytes = 0;  // between header and checksum
};
static_assert(sizeof(slot_file_header) == 104);

namespace detail {

template <class T>
constexpr std::uint32_t element_number() {
  return std::is_same_v<T, float> ? 0 : std::is_same_v<T, half> ? 1 : std::is_same_v<T, scaled_int8> ? 3 : 2;
}

/// Whether a file's header is what a cache expects.
/// @param rule  the cache's budget
/// @param room  tokens of a slot
inline status can_load_header(const slot_file_header& file, const slot_file_header& wanted, const flat_budget_rule& rule,
                              std::size_t room) noexcept {
  const auto same = [](checks& all, const char* name, std::uint32_t got, std::uint32_t expected) {
    all.that(got == expected, status::code::value, name, relation::equal, "of the cache", expected, got);
  };
  checks all("load");
  all.that(std::memcmp(file.magic, slot_file_header::the_magic, 8) == 0, status::code::value, "file", relation::required,
           "a saved slot: it does not begin with \"pqkvslot\"", 8, 0);
  same(all, "file.byte_order", file.byte_order, slot_file_header::the_byte_order);
  same(all, "file.version", file.version, slot_file_header::the_version);
  same(all, "file.kv_heads", file.kv_heads, wanted.kv_heads);
  same(all, "file.head_dim", file.head_dim, wanted.head_dim);
  same(all, "file.selector.kind", file.selector.kind, wanted.selector.kind);
  same(all, "file.selector.subspaces", file.selector.subspaces, wanted.selector.subspaces);
  same(all, "file.selector.bits", file.selector.bits, wanted.selector.bits);
  same(all, "file.selector.metric", file.selector.metric, wanted.selector.metric);
  same(all, "file.selector.axes", file.selector.axes, wanted.selector.axes);
  same(all, "file.selector.fine_subspaces", file.selector.fine_subspaces, wanted.selector.fine_subspaces);
  same(all, "file.selector.fine_bits", file.selector.fine_bits, wanted.selector.fine_bits);
  same(all, "file.contents", static_cast<std::uint32_t>(file.contents), static_cast<std::uint32_t>(wanted.contents));
  if (file.contents == slot_contents::index_and_rows) {
    same(all, "file.element", file.element, wanted.element);
    same(all, "file.row_bytes", file.row_bytes, wanted.row_bytes);
  }
  all.that(file.at.n <= room, status::code::capacity, "file.at.n", relation::at_most, "tokens of a slot", room, file.at.n)
      .that(file.at.prompt <= file.at.n && file.at.learned <= 1 && file.at.prefilling == 0, status::code::value, "file.at",
            relation::required, "a sequence that can be", 1, 0);
  if (all.ok() && file.at.learned != 0) {
    const middle_range middle = file.at.middle(rule);
    same(all, "file.middle_begin", file.middle_begin, middle.begin);
    same(all, "file.middle_end", file.middle_end, middle.end);
  }
  return all;
}

/// The largest piece of a file that is read or written at once, through host memory if the slot is elsewhere.
inline constexpr std::size_t slot_file_piece = std::size_t{1} << 20;

/// Writes pieces to a sink(const std::byte*, std::size_t) and computes their checksum.
template <class Sink>
class slot_writer {
 public:
  explicit slot_writer(Sink& sink) : sink_(sink) {}
  void write(const void* data, std::size_t bytes) {
    sum_.add(data, bytes);
    sink_(static_cast<const std::byte*>(data), bytes);
  }
  /// Writes a run of a slot's bytes, in any memory.
  template <class P>
  void write_run(const P& policy, const std::byte* from, std::size_t bytes, const buffer<std::byte>& piece) {
    for (std::size_t done = 0; done < bytes; done += piece.size()) {
      const std::size_t count = bytes - done < piece.size() ? bytes - done : piece.size();
      copy_bytes(policy, piece.data(), from + done, count);
      sync(policy);
      write(piece.data(), count);
    }
  }
  /// Writes the checksum, which ends the file.
  void finish() {
    const std::uint32_t sum = sum_.value();
    sink_(reinterpret_cast<const std::byte*>(&sum), sizeof sum);
  }

 private:
  Sink& sink_;
  crc32 sum_;
};

/// Reads pieces from a source(std::byte*, std::size_t) -> std::size_t, which returns how many bytes it gave.
template <class Source>
class slot_reader {
 public:
  explicit slot_reader(Source& source) : source_(source) {}
  /// @throws value_error when the file ends early
  void read(void* data, std::size_t bytes) {
    take(data, bytes);
    sum_.add(data, bytes);
  }
  /// Reads a run of a slot's bytes, each of which must be below `limit`; 0: any byte.
  template <class P>
  void read_run(const P& policy, std::byte* to, std::size_t bytes, const buffer<std::byte>& piece, std::size_t limit) {
    for (std::size_t done = 0; done < bytes; done += piece.size()) {
      const std::size_t count = bytes - done < piece.size() ? bytes - done : piece.size();
      read(piece.data(), count);
      for (std::size_t i = 0; limit != 0 && i < count; ++i)
        require_ok(checks("load").that(static_cast<std::size_t>(piece[i]) < limit, status::code::value, "file.codes", relation::below, "c",
                                       limit, std::to_integer<unsigned>(piece[i])));
      copy_bytes(policy, to + done, piece.data(), count);
      sync(policy);
    }
  }
  /// @throws value_error when the checksum differs
  void finish() {
    const std::uint32_t sum = sum_.value();
    std::uint32_t read = 0;
    take(&read, sizeof read);
    require_ok(checks("load").that(read == sum, status::code::value, "file.checksum", relation::equal, "of what was read", sum, read));
  }

 private:
  void take(void* data, std::size_t bytes) {
    std::size_t got = 0;
    while (got < bytes) {
      const std::size_t more = source_(static_cast<std::byte*>(data) + got, bytes - got);
      require_ok(checks("load")
                     .that(more != 0, status::code::value, "file", relation::required, "whole: it ends early", bytes - got, 0)
                     .at_most("source(data, bytes)", more, bytes - got, "bytes, as many as it was asked for"));
      got += more;
    }
  }

  Source& source_;
  crc32 sum_;
};

}  // namespace detail
}  // namespace pqkv
