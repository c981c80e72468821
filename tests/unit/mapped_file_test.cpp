// SPDX-License-Identifier: Apache-2.0
// A file as memory: what is written is there, a file without a name leaves nothing behind however the process ends, a full disk is an error
// of the constructor, a shortened file one of check().
#include <doctest/doctest.h>

#include <sys/resource.h>
#include <sys/wait.h>

#include <algorithm>
#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <string>

#include <pqkv/cache/mapped_file.hpp>

namespace {
namespace fs = std::filesystem;

/// An empty folder, removed at the end.
struct temporary_folder {
  std::string path = (fs::temp_directory_path() / "pqkv_mapped_file.XXXXXX").string();
  temporary_folder() { REQUIRE(::mkdtemp(path.data()) != nullptr); }
  ~temporary_folder() { fs::remove_all(path); }
  std::size_t entries() const { return static_cast<std::size_t>(std::distance(fs::directory_iterator(path), fs::directory_iterator())); }
};

std::size_t open_files() {
  return static_cast<std::size_t>(std::distance(fs::directory_iterator("/proc/self/fd"), fs::directory_iterator()));
}

/// What a call says when it fails; "" when it does not.
template <class F>
std::string message_of(F&& f) {
  try {
    f();
  } catch (const pqkv::storage_error& error) {
    return error.what();
  }
  return "";
}

/// The exit code of a child that runs f; 100 and more: the signal that ended it.
template <class F>
int in_child(F&& f) {
  const pid_t child = ::fork();
  if (child == 0) ::_exit(f());
  int how = 0;
  ::waitpid(child, &how, 0);
  return WIFSIGNALED(how) ? 100 + WTERMSIG(how) : WEXITSTATUS(how);
}
}  // namespace

TEST_CASE("mapped_file: zero at first, as large as asked, without a name") {
  const temporary_folder folder;
  const std::size_t before = open_files(), size = 1000003;
  {
    pqkv::mapped_file file("test", {.folder = folder.path.c_str()}, size);
    CHECK(folder.entries() == 0);
    CHECK(file.size() == size);
    CHECK(std::all_of(file.data(), file.data() + size, [](std::byte b) { return b == std::byte{0}; }));
    file.data()[size - 1] = std::byte{7};
    pqkv::mapped_file moved(std::move(file));
    CHECK(file.data() == nullptr);
    CHECK(moved.data()[size - 1] == std::byte{7});
    moved.ensure_readable("test");
    std::byte last{};
    CHECK(::pread(moved.descriptor(), &last, 1, static_cast<off_t>(size - 1)) == 1);
    CHECK(last == std::byte{7});
    const pqkv::mapped_file none("test", {.folder = folder.path.c_str()}, 0);
    none.ensure_readable("test");
  }
  CHECK(open_files() == before);
}

TEST_CASE("mapped_file: an open file of the caller grows, never shrinks, and keeps what others see of it") {
  const temporary_folder folder;
  const std::string name = folder.path + "/rows";
  const int caller = ::open(name.c_str(), O_RDWR | O_CREAT, 0600);
  REQUIRE(::ftruncate(caller, 5000) == 0);
  {
    const pqkv::mapped_file file("test", {.file = caller}, 3000);
    CHECK(fs::file_size(name) == 5000);
    const pqkv::mapped_file larger("test", {.file = caller}, 9000);
    CHECK(fs::file_size(name) == 9000);
    ::close(caller);
    larger.data()[8999] = std::byte{3};
    fs::remove(name);  // the name goes, the file stays
    larger.ensure_readable("test");
    CHECK(larger.data()[8999] == std::byte{3});
  }
  CHECK(folder.entries() == 0);
}

TEST_CASE("mapped_file: bytes that are read ahead come into memory without being touched") {
  const temporary_folder folder;
  const std::size_t page = static_cast<std::size_t>(::sysconf(_SC_PAGESIZE)), size = 64 * page;
  const pqkv::mapped_file file("test", {.folder = folder.path.c_str()}, size);
  std::fill(file.data(), file.data() + size, std::byte{7});
  const auto resident = [&](std::size_t at) {
    unsigned char in_memory = 0;
    REQUIRE(::mincore(file.data() + at * page, page, &in_memory) == 0);
    return (in_memory & 1) != 0;
  };
  // The system forgets pages that have reached the disk, but need not; where the folder is memory there is nothing to see.
  REQUIRE(::msync(file.data(), size, MS_SYNC) == 0);
  REQUIRE(::madvise(file.data(), size, MADV_DONTNEED) == 0);
  REQUIRE(::posix_fadvise(file.descriptor(), 0, 0, POSIX_FADV_DONTNEED) == 0);
  const bool forgotten = !resident(20) && !resident(40);
  file.read_ahead(file.data() + 20 * page + 100, page);  // two pages
  for (int wait = 0; wait < 500 && !(resident(20) && resident(21)); ++wait) ::usleep(10000);
  CHECK(resident(20));
  CHECK(resident(21));
  if (forgotten) CHECK(!resident(40));
  CHECK(file.data()[21 * page] == std::byte{7});
}

TEST_CASE("mapped_file: a file that somebody shortened is found before it is touched") {
  const temporary_folder folder;
  const pqkv::mapped_file file("test", {.folder = folder.path.c_str()}, 100000);
  REQUIRE(::ftruncate(file.descriptor(), 4096) == 0);
  CHECK(message_of([&] { file.ensure_readable("attend"); }) ==
        "pqkv::attend: the file must have 100000 bytes, got 4096: somebody has shortened it");
  REQUIRE(::ftruncate(file.descriptor(), 100000) == 0);
  file.ensure_readable("attend");
}

TEST_CASE("mapped_file: what cannot be made says why, and leaves nothing behind") {
  const temporary_folder folder;
  const std::size_t before = open_files();
  const std::string missing = folder.path + "/missing";
  CHECK(message_of([&] { pqkv::mapped_file("pqcache", {.folder = missing.c_str()}, 10); }) ==
        "pqkv::pqcache: " + missing + ": No such file or directory");
  CHECK(message_of([&] { pqkv::mapped_file("pqcache", {.file = 100000}, 10); }) == "pqkv::pqcache: fcntl: Bad file descriptor");
  // A file system that is full, as far as this process is concerned.
  const int code = in_child([&] {
    std::signal(SIGXFSZ, SIG_IGN);
    const rlimit limit{1 << 20, 1 << 20};
    ::setrlimit(RLIMIT_FSIZE, &limit);
    const std::string said = message_of([&] { pqkv::mapped_file("pqcache", {.folder = folder.path.c_str()}, 2 << 20); });
    const bool right = said == "pqkv::pqcache: no file of 2097152 bytes: File too large";
    pqkv::mapped_file("pqcache", {.folder = folder.path.c_str()}, 1 << 20).ensure_readable("pqcache");  // what fits does
    return right && open_files() == before ? 0 : 1;
  });
  CHECK(code == 0);
  CHECK(folder.entries() == 0);
  CHECK(open_files() == before);
}

TEST_CASE("mapped_file: a process that is killed leaves no file") {
  const temporary_folder folder;
  const int code = in_child([&] {
    const pqkv::mapped_file file("test", {.folder = folder.path.c_str()}, 1 << 20);
    file.data()[12345] = std::byte{1};
    ::kill(::getpid(), SIGKILL);
    return 0;
  });
  CHECK(code == 100 + SIGKILL);
  CHECK(folder.entries() == 0);
}
