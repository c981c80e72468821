// SPDX-License-Identifier: Apache-2.0
// Files that fail while a step reads them. Reads of selected rows, of copies and of blocks that enter are errors of attend(): nothing
// half-filled is left in fast memory, and the slot can be used again. Only attention itself reads through the mapping, where a file that is
// shortened meanwhile ends the process by a signal; it never gives a wrong answer.
#include <doctest/doctest.h>

#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <string>

#include <pqkv/pqkv.hpp>

#include "cases/inputs.hpp"
#include "cases/sanitized.hpp"

namespace {
using namespace pqkv_cases;
using tiered_cache = pqkv::pqcache<pqkv::tiered_rows<pqkv::file_rows<float>>>;
using dense_cache = pqkv::pqcache<pqkv::dense_rows<float>>;

/// An open file with a name.
struct named_file {
  std::string path = (std::filesystem::temp_directory_path() / "pqkv_tiered_file.XXXXXX").string();
  int descriptor = ::mkstemp(path.data());
  named_file() { REQUIRE(descriptor >= 0); }
  ~named_file() {
    ::close(descriptor);
    std::filesystem::remove(path);
  }
};

/// What happens to the file before the k-th run() of a call.
struct file_event {
  void (*happen)(const named_file&) = nullptr;
  const named_file* file = nullptr;
  std::size_t until = 0, runs = 0;  // 0: never
};
struct runner_beside_events {
  file_event* event;
  template <class F>
  void run(std::size_t count, F&& f) const {
    ++event->runs;
    if (event->until != 0 && --event->until == 0) event->happen(*event->file);
    for (std::size_t i = 0; i < count; ++i) f(i);
  }
};

template <class Cache>
typename Cache::params shape() {
  typename Cache::params p;
  p.kv_heads = 2, p.query_heads = 4, p.head_dim = 128, p.capacity = 2048;
  p.budget.sinks = 4, p.budget.window = 32, p.budget.retrieve = 64;
  p.selector.bits = 4, p.selector.train.iterations = 2;
  return p;
}

/// A cache over a file, after a prompt and some steps; and one in memory that was given the same.
struct twins {
  static constexpr std::size_t n = 1500, hq = 4, d = 128;
  named_file file;
  file_event event{};
  const pqkv::exec::host<pqkv::isa::best, runner_beside_events> cpu{{&event}, {}};
  tiered_cache tiered;
  dense_cache dense{shape<dense_cache>()};
  std::vector<std::byte> saved;  // the slot
  std::size_t asked = 0;

  explicit twins(pqkv::missing_rows missing) : tiered(params(file, missing)) {
    const auto keys = make_rows<float>(content::clustered, 2, n, d, 1), values = make_rows<float>(content::gaussian, 2, n, d, 2);
    tiered.prefill(cpu, 0, keys.view(), values.view());
    dense.prefill(cpu, 0, keys.view(), values.view());
    for (int i = 0; i < 3; ++i) REQUIRE(answers_are_equal());
    tiered.save(cpu, 0, [&](const std::byte* bytes, std::size_t count) { saved.insert(saved.end(), bytes, bytes + count); });
  }
  static tiered_cache::params params(const named_file& file, pqkv::missing_rows missing) {
    auto p = shape<tiered_cache>();
    p.rows.slow.file = file.descriptor, p.rows.missing = missing;
    p.rows.cache_tokens = 128, p.rows.block_tokens = 4, p.rows.recent_tokens = 32, p.rows.sink_tokens = 4;
    return p;
  }
  rows<float> query() { return make_rows<float>(content::gaussian, 1, hq, d, 100 + asked++); }
  bool answers_are_equal() {
    const auto q = query();
    std::vector<float> out(hq * d), wanted(hq * d);
    const auto asking = q.view();
    tiered.attend(cpu, asking, pqkv::make_view(out.data(), 1, hq, d));
    dense.attend(cpu, asking, pqkv::make_view(wanted.data(), 1, hq, d));
    return out == wanted;
  }
  bool nothing_is_half_filled() {
    const auto blocks = tiered.rows().tiers().cache.one(0);
    for (std::size_t i = 0; i < blocks.capacity; ++i)
      if (blocks.states[i] == pqkv::block_state::filling) return false;
    return blocks.progress->touched == 0;
  }
  void load_again() {
    tiered.reset(0);
    std::size_t at = 0;
    tiered.load(cpu, 0, [&](std::byte* bytes, std::size_t count) {
      std::memcpy(bytes, saved.data() + at, count);
      at += count;
      return count;
    });
  }
};

void shorten(const named_file& file) {
  if (::ftruncate(file.descriptor, 4096) != 0) std::abort();
}
void remove_name(const named_file& file) { std::filesystem::remove(file.path); }
}  // namespace

TEST_CASE("mapped_file: a file that is shortened while a read is under way is an error of waiting and of reading") {
  const named_file named;
  pqkv::mapped_file file("test", {nullptr, named.descriptor}, 1 << 20);
  std::memset(file.data(), 7, file.size());
  std::byte row[512]{};
  CHECK(file.read(row, file.data() + 70000, sizeof row) == 0);
  CHECK(std::to_integer<int>(row[511]) == 7);
  file.read_ahead(file.data() + 70000, sizeof row);
  REQUIRE(::ftruncate(named.descriptor, 4096 + 100) == 0);
  CHECK(file.wait_for(file.data() + 70000, sizeof row) == EFAULT);
  CHECK(file.wait_for(file.data() + 100, sizeof row) == 0);
  CHECK(file.read(row, file.data() + 70000, sizeof row) == pqkv::mapped_file::short_read);
  CHECK(file.read(row, file.data() + 4096 - 300, sizeof row) == pqkv::mapped_file::short_read);  // it ends inside
  CHECK(file.read(row, file.data() + 4096 - 412, sizeof row) == 0);
  const auto message = [&](int error) {
    try {
      file.fail_reading("attend", error);
    } catch (const pqkv::storage_error& failed) {
      return std::string(failed.what());
    }
  };
  CHECK(message(EFAULT) == "pqkv::attend: the file must have 1048576 bytes, got 4196: somebody has shortened it");
  REQUIRE(::ftruncate(named.descriptor, 1 << 20) == 0);
  CHECK(file.wait_for(file.data() + 70000, sizeof row) == 0);
  CHECK(message(EIO) == "pqkv::attend: the file could not be read: " + std::string(std::strerror(EIO)));
}

TEST_CASE("tiered_rows: a file whose name goes amid a step changes nothing") {
  for (const auto missing : {pqkv::missing_rows::touched, pqkv::missing_rows::asked_for, pqkv::missing_rows::waited_for}) {
    twins all(missing);
    all.event.runs = 0;
    REQUIRE(all.answers_are_equal());
    all.event.happen = remove_name, all.event.file = &all.file, all.event.until = 1 + all.event.runs / 4;  // two caches were asked
    for (int i = 0; i < 20; ++i) REQUIRE(all.answers_are_equal());
    CHECK(all.event.until == 0);
    CHECK(!std::filesystem::exists(all.file.path));
  }
}

TEST_CASE("tiered_rows: a read of new rows that fails leaves no wrong copy of old ones") {
  const named_file named;
  pqkv::cache_shape shape;
  shape.kv_heads = 2, shape.query_heads = 2, shape.head_dim = 128, shape.capacity = 64;  // a head's rows are 64 KiB
  pqkv::tiered_rows<pqkv::file_rows<float>>::params p;
  p.slow.file = named.descriptor, p.sink_tokens = 2, p.recent_tokens = 16, p.cache_tokens = 0;
  const pqkv::exec::host<> cpu;
  const pqkv::tiered_rows<pqkv::file_rows<float>> rows(cpu, shape, p);
  for (std::size_t head = 0; head < 2; ++head)
    for (std::size_t t = 0; t < 64; ++t)
      for (std::size_t i = 0; i < 128; ++i)
        rows.view().keys(head, t, i) = rows.view().values(head, t, i) = static_cast<float>(head * 64 + t);
  const auto fetch = [&](std::uint32_t length) {
    std::uint32_t slot = 0, counts[] = {0, 0};
    pqkv::token_span spans[] = {{0, length - 1, length}, {0, length - 1, length}};
    const std::int32_t indices[] = {-1, -1};
    pqkv::fetched_tokens<pqkv::space::host> wanted{};
    wanted.plan.slots = pqkv::make_view(&slot, 1), wanted.plan.counts = pqkv::make_view(counts, 2),
    wanted.plan.spans = pqkv::make_view(spans, 2);
    wanted.indices = pqkv::make_view(indices, 2, 1);
    rows.fetch(cpu, wanted);
  };
  const auto copies = [&](std::size_t head, std::size_t tokens) {  // how many, or 1000 if one is wrong
    std::size_t count = 0;
    for (std::size_t t = 0; t < tokens; ++t) {
      if (!rows.tiers().has_copy(head, t)) continue;
      const bool is_right = rows.tiers().key(head, t).data[5] == static_cast<float>(head * 64 + t);
      count = is_right ? count + 1 : 1000;
    }
    return count;
  };
  fetch(30);
  CHECK(copies(0, 30) == 2 + 16);
  REQUIRE(::ftruncate(named.descriptor, 65536 + 4096) == 0);  // all rows of the first head
  CHECK_THROWS_AS(fetch(38), pqkv::storage_error);
  CHECK(copies(0, 38) == 2 + 8);
  CHECK(copies(1, 38) == 2 + 8);
  REQUIRE(::ftruncate(named.descriptor, 131072) == 0);
  fetch(38);
  CHECK(copies(0, 38) == 2 + 16);
}

#if !defined(PQKV_TEST_SANITIZED)  // sanitizers handle the signal themselves
TEST_CASE("tiered_rows: a file that is shortened anywhere amid a step is an error or ends the process, and the slot can be used again") {
  enum outcome { refused = 10, answered, wrong };
  std::size_t errors = 0, signals = 0, after_attention = 0, k = 1;
  for (bool ended = false; !ended; ++k) {
    CAPTURE(k);
    REQUIRE(k < 100);
    const pid_t child = ::fork();
    if (child == 0) {
      twins all(pqkv::missing_rows::waited_for);
      std::filesystem::remove(all.file.path);  // no destructor runs in this process
      const auto size = static_cast<off_t>(all.tiered.rows().slow().file().size());
      all.event = {shorten, &all.file, k, 0};
      const auto q = all.query();
      std::vector<float> out(twins::hq * twins::d);
      int code = answered;
      try {
        all.tiered.attend(all.cpu, q.view(), pqkv::make_view(out.data(), 1, twins::hq, twins::d));
      } catch (const pqkv::storage_error&) {
        code = refused;
      }
      const bool happened = all.event.until == 0;
      all.event.until = 0;
      if (!all.nothing_is_half_filled()) code = wrong;
      if (happened && ::ftruncate(all.file.descriptor, size) != 0) code = wrong;
      if (happened) all.load_again();
      for (int i = 0; i < 10; ++i) code = all.answers_are_equal() ? code : wrong;
      ::_exit(code == answered && happened ? wrong : code);
    }
    int how = 0;
    ::waitpid(child, &how, 0);
    if (WIFSIGNALED(how)) {
      CHECK(WTERMSIG(how) == SIGBUS);
      ++signals;
      continue;
    }
    REQUIRE(WEXITSTATUS(how) != wrong);
    ended = WEXITSTATUS(how) == answered;  // k is behind the last run of the step
    errors += ended ? 0 : 1;
    after_attention += !ended && signals != 0 ? 1 : 0;
  }
  MESSAGE("errors ", errors, ", of them after attention ", after_attention, ", signals ", signals);
  CHECK(errors >= 3);
  CHECK(after_attention >= 2);  // blocks are chosen; their rows are copied
  CHECK(signals == 1);          // attention
}
#endif
