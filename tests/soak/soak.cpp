// SPDX-License-Identifier: Apache-2.0
// Lets caches live random lives for hours and looks at what the process takes: soak.sh builds and starts it.
//
//   pqkv_soak --hours H | --minutes M | --seconds S [--seed N] [--folder DIR] [--line SECONDS]
//             [--settling ROUNDS] [--plant difference|leak|file|memory] [--replay KIND SEED]
//
// A round is one new life of every kind, and some events in the life of those that stay. Prints a line a minute and a report; Ctrl-C ends
// it with the report. Exits with 1 at the first difference, or when the process has more than it should (watch.hpp says when), with 2 for
// arguments it does not know. --plant makes the program do wrong, so that a test sees it noticed; --replay lives one life again.
#define DOCTEST_CONFIG_IMPLEMENT
#include <doctest/doctest.h>

#include <chrono>
#include <csignal>
#include <cstring>

#include "soak/lives.hpp"
#include "soak/watch.hpp"

namespace {
using namespace pqkv_soak;
using clock_type = std::chrono::steady_clock;

volatile std::sig_atomic_t interrupted = 0;

struct settings {
  double seconds = 0, line_seconds = 60;
  std::size_t settling = 5;
  std::uint64_t seed = 1;
  std::string folder = "/tmp", plant, replayed;
};

/// Something is not as it must be; says which life showed it.
struct finding {
  std::string text;
};

double megabytes(std::size_t bytes) { return static_cast<double>(bytes) / 1e6; }

class soak {
 public:
  explicit soak(const settings& s) : settings_(s), random_(s.seed), watch_(s.settling) {}

  /// @return what was found; empty: nothing
  std::string run() {
    std::string found;
    try {
      for (const kind& one : every_kind)
        if (one.stays) stay(one);
      while (goes_on()) round();
    } catch (const finding& what) {
      found = what.text;
    } catch (const std::exception& error) {
      found = std::string("an exception: ") + error.what();
    }
    report(found);
    return found;
  }
  /// One life until the time is over.
  void replay(const kind& of, std::uint64_t seed) {
    const auto one = of.make(seed, settings_.folder.c_str());
    for (one->begin(); goes_on();) one->event();
    done_.add(one->counts());
    report("");
  }

  static inline std::string where;  // the life that is at it, for the assert handler

 private:
  double seconds() const { return std::chrono::duration<double>(clock_type::now() - begin_).count(); }
  bool goes_on() const { return interrupted == 0 && seconds() < settings_.seconds; }

  void stay(const kind& of) {
    const std::uint64_t seed = random_.bits();
    name(of, seed);
    residents_.push_back({of.make(seed, settings_.folder.c_str()), &of, seed});
    planned_bytes_ += residents_.back().life->planned_bytes;
    residents_.back().life->begin();
  }
  void round() {
    for (const kind& of : every_kind) {
      if (!goes_on()) return;
      const std::uint64_t seed = random_.bits();
      name(of, seed);
      const auto one = of.make(seed, settings_.folder.c_str());
      planned_bytes_ += one->planned_bytes;
      one->begin();
      for (int event = 0; event < 40 && goes_on(); ++event) one->event();
      expect(watch_.during(planned_bytes_));
      planned_bytes_ -= one->planned_bytes;
      done_.add(one->counts());
      say_line();
    }
    do_wrong();
    for (const resident& one : residents_) {
      name(*one.of, one.seed);
      for (int event = 0; event < 20 && goes_on(); ++event) one.life->event();
      expect(watch_.during(planned_bytes_));
    }
    expect(watch_.after_round());
  }
  void name(const kind& of, std::uint64_t seed) const { where = std::string(of.name) + " " + std::to_string(seed); }
  static void expect(const std::string& why) {
    if (!why.empty()) throw finding{why};
  }

  /// What --plant asks for, once the first rounds are over.
  void do_wrong() {
    if (settings_.plant.empty() || watch_.rounds() < settings_.settling) return;
    if (settings_.plant == "leak") lost_.push_back(std::make_unique<char[]>(300000));
    if (settings_.plant == "file") lost_files_.push_back(::open("/dev/null", O_RDONLY));
    if (settings_.plant == "difference") REQUIRE(watch_.rounds() == 0);
    if (settings_.plant == "memory") {
      constexpr std::size_t bytes = 3 * watch::allowance;
      lost_.push_back(std::make_unique<char[]>(bytes));
      std::memset(lost_.back().get(), 1, bytes);
    }
  }

  life_counts all() const {
    life_counts sum = done_;
    for (const resident& one : residents_) sum.add(one.life->counts());
    return sum;
  }
  void say_line() {
    if (seconds() < next_line_) return;
    next_line_ += settings_.line_seconds;
    const life_counts sum = all();
    const process_figures now = process_figures::now();
    std::printf(
        "%7.1f min: lives %zu, steps %zu, tokens %zu, compared %zu, with a ranked list %zu; resident %.1f MB of which planned %.1f, "
        "heap %.1f MB, open files %zu, mapped regions %zu\n",
        seconds() / 60, sum.lives, sum.events, sum.tokens, sum.compared, sum.ranked, megabytes(now.resident_bytes),
        megabytes(planned_bytes_), megabytes(now.heap_bytes), now.files, now.regions);
    std::fflush(stdout);
  }
  void report(const std::string& found) const {
    const life_counts sum = all();
    const process_figures &high = watch_.highest(), &mark = watch_.mark();
    std::printf("%.1f minutes%s, %zu rounds: lives %zu, steps %zu, tokens %zu, compared %zu, with a ranked list %zu\n", seconds() / 60,
                interrupted != 0 ? " (interrupted)" : "", watch_.rounds(), sum.lives, sum.events, sum.tokens, sum.compared, sum.ranked);
    std::printf("highest: resident %.1f MB, heap %.1f MB, open files %zu, mapped regions %zu\n", megabytes(high.resident_bytes),
                megabytes(high.heap_bytes), high.files, high.regions);
    std::printf("after the first %zu rounds, with those that stay: resident %.1f MB, heap %.2f MB, open files %zu, mapped regions %zu\n",
                settings_.settling, megabytes(mark.resident_bytes), megabytes(mark.heap_bytes), mark.files, mark.regions);
    const process_figures now = process_figures::now();
    std::printf("at the end: resident %.1f MB, heap %.2f MB, open files %zu, mapped regions %zu\n", megabytes(now.resident_bytes),
                megabytes(now.heap_bytes), now.files, now.regions);
    if (found.empty())
      std::printf("no difference, nothing lost\n");
    else
      std::printf("FOUND %s\n  in or after the life: %s (--replay lives it again), --seed %llu\n", found.c_str(), where.c_str(),
                  static_cast<unsigned long long>(settings_.seed));
  }

  struct resident {
    std::unique_ptr<inhabitant> life;
    const kind* of;
    std::uint64_t seed;
  };

  settings settings_;
  random_source random_;
  clock_type::time_point begin_ = clock_type::now();
  double next_line_ = 0;
  std::vector<std::unique_ptr<char[]>> lost_;
  std::vector<int> lost_files_;
  life_counts done_;
  watch watch_;
  std::size_t planned_bytes_ = 0;
  std::vector<resident> residents_;
};

[[noreturn]] void refuse(const std::string& why) {
  std::fprintf(stderr, "pqkv_soak: %s; the head of tests/soak/soak.cpp lists the options\n", why.c_str());
  std::exit(2);
}

double number(const char* option, const char* text) {
  char* end = nullptr;
  const double value = std::strtod(text, &end);
  if (end == text || *end != '\0' || !(value > 0)) refuse(std::string(option) + ": expected a number above 0, got " + text);
  return value;
}

settings read(int count, char** words) {
  settings s;
  for (int i = 1; i < count; ++i) {
    const std::string word = words[i];
    const char* const next = i + 1 < count ? words[++i] : nullptr;
    if (next == nullptr) refuse(word + ": expected a value behind it");
    if (word == "--hours" || word == "--minutes" || word == "--seconds")
      s.seconds = number(word.c_str(), next) * (word == "--hours" ? 3600 : word == "--minutes" ? 60 : 1);
    else if (word == "--line")
      s.line_seconds = number("--line", next);
    else if (word == "--settling")
      s.settling = static_cast<std::size_t>(number("--settling", next));
    else if (word == "--seed")
      s.seed = std::strtoull(next, nullptr, 10);
    else if (word == "--folder")
      s.folder = next;
    else if (word == "--plant" &&
             (!std::strcmp(next, "difference") || !std::strcmp(next, "leak") || !std::strcmp(next, "file") || !std::strcmp(next, "memory")))
      s.plant = next;
    else if (word == "--replay" && i + 1 < count) {
      s.replayed = next;
      s.seed = std::strtoull(words[++i], nullptr, 10);
    } else
      refuse("not known: " + word + " " + next);
  }
  if (s.seconds == 0) refuse("say how long: --hours, --minutes or --seconds");
  return s;
}
}  // namespace

int main(int count, char** words) {
  const settings s = read(count, words);
  doctest::Context asserts;
  asserts.setAsDefaultForAssertsOutOfTestCases();
  asserts.setAssertHandler([](const doctest::AssertData& failed) {
    throw finding{std::string(failed.m_file) + ":" + std::to_string(failed.m_line) + ": " + failed.m_expr + " is " +
                  failed.m_decomp.c_str()};
  });
  std::signal(SIGINT, [](int) { interrupted = 1; });
  std::signal(SIGTERM, [](int) { interrupted = 1; });
  soak one(s);
  try {
    if (s.replayed.empty()) return one.run().empty() ? 0 : 1;
    for (const kind& of : every_kind)
      if (s.replayed == of.name) return one.replay(of, s.seed), 0;
    refuse("--replay: no kind " + s.replayed);
  } catch (const finding& what) {
    std::printf("FOUND %s\n", what.text.c_str());
  }
  return 1;
}
