// SPDX-License-Identifier: Apache-2.0
// One line for every error; the bar is drawn at most once a percent.
#include "command_line.hpp"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <limits>
#include <memory>
#include <numeric>
#include <pqkv/version.hpp>
#include <string_view>
#include <utility>
#include <vector>

#include "help_format.hpp"

namespace minillama {
namespace {

constexpr char clear_line[] = "\r\x1b[K";

/// What is wrong with the text of a whole number, or nothing.
std::string refused_number(const std::string& text, std::uint64_t least, std::uint64_t most) {
  std::uint64_t value = 0;
  const char* const end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data(), end, value);
  if (error == std::errc() && stop == end && value >= least && value <= most) return "";
  return "expected a whole number, " + std::to_string(least) + " to " + std::to_string(most) + ", got " + text;
}

/// Whether stderr is a terminal that clears a line when it is told so.
bool has_clearing_terminal() {
  const char* const kind = std::getenv("TERM");
  return ::isatty(STDERR_FILENO) == 1 && kind != nullptr && std::string_view(kind) != "dumb";
}

/// Far above any context: 16 M tokens of 16 bytes. A device or a pipe has no end of its own.
constexpr std::size_t most_text_bytes = std::size_t{256} << 20;

void append_text(std::string& text, std::string_view part, const std::string& source) {
  if (part.size() > most_text_bytes - text.size())
    throw load_error(source, "has more than " + std::to_string(most_text_bytes) + " bytes, which is too much for a text");
  text += part;
}

volatile std::sig_atomic_t is_noted = 0;

/// Of a signal that is answered as before by now: the program ends by it.
void clear_line_and_end(int signal) {
  [[maybe_unused]] const ssize_t written = ::write(STDERR_FILENO, clear_line, sizeof clear_line - 1);
  ::raise(signal);
}

/// Names in files are the file's: a line feed or an escape sequence in one must not reach the terminal.
std::string one_line(std::string text) {
  for (char& c : text)
    if (static_cast<unsigned char>(c) < ' ' || c == 0x7f) c = ' ';
  return text;
}

int bad_input(const CLI::App& arguments, const std::string& what) {
  std::fprintf(stderr, "%s: %s\n", arguments.get_name().c_str(), one_line(what).c_str());
  return 2;
}

/// An option of llama.cpp or llama2.c, and what does the same here.
struct foreign_option {
  std::string_view name, ours;
};
constexpr foreign_option foreign_options[] = {{"--n-predict", "--tokens"},
                                              {"--predict", "--tokens"},
                                              {"--ctx-size", "--context"},
                                              {"-s", "--seed"},
                                              {"-ngl", "--device cuda"},
                                              {"--n-gpu-layers", "--device cuda"},
                                              {"--gpu-layers", "--device cuda"},
                                              {"-dev", "--device"},
                                              {"--temperature", "--temp"},
                                              {"-i", "--prompt"},
                                              {"-z", "--tokenizer"}};

/// How many letters must be put in, taken out or replaced to make one word of the other.
std::size_t letters_between(std::string_view a, std::string_view b) {
  std::vector<std::size_t> row(b.size() + 1);
  std::iota(row.begin(), row.end(), std::size_t{0});
  for (std::size_t i = 0; i < a.size(); ++i) {
    std::size_t before = std::exchange(row[0], i + 1);
    for (std::size_t j = 0; j < b.size(); ++j) {
      const std::size_t replaced = before + (a[i] != b[j]);
      before = row[j + 1];
      row[j + 1] = std::min({replaced, row[j] + 1, row[j + 1] + 1});
    }
  }
  return row.back();
}

/// "; perhaps --tokens is meant" for an option that is not known, or nothing where no option comes near.
std::string perhaps_meant(const CLI::App& arguments, std::string_view unknown) {
  if (!unknown.starts_with('-')) return "";
  unknown = unknown.substr(0, unknown.find('='));
  const auto sentence = [](const std::string& meant) { return "; perhaps " + meant + " is meant"; };
  for (const auto& [name, ours] : foreign_options)
    if (name == unknown && arguments.get_option_no_throw(std::string(ours.substr(0, ours.find(' '))))) return sentence(std::string(ours));
  std::string spelled = (unknown.starts_with("--") ? "" : "-") + std::string(unknown), nearest;
  std::replace(spelled.begin(), spelled.end(), '_', '-');
  std::size_t letters = spelled.size() < 6 ? 1 : 3;  // so many make another word
  for (const CLI::Option* option : arguments.get_options())
    for (const std::string& one : option->get_lnames()) {
      const std::string name = "--" + one;
      const std::size_t apart = letters_between(spelled, name);
      if (apart >= letters) continue;
      // Two letters of a short word make another word, as --temp and --demo, unless they changed places.
      if (apart == 2 && spelled.size() < 8 && !std::is_permutation(spelled.begin(), spelled.end(), name.begin(), name.end())) continue;
      letters = apart, nearest = name;
    }
  return nearest.empty() ? "" : sentence(nearest);
}

/// Refuses -temp and the like, which CLI11 would read as -t with the value "emp". What follows an option that takes a value is that
/// value, whatever it looks like.
void refuse_words_of_one_dash(const CLI::App& arguments, int argc, char** argv) {
  for (int i = 1; i < argc; ++i) {
    const std::string_view argument = argv[i];
    if (argument == "--") return;
    if (argument.size() < 2 || argument[0] != '-') continue;
    const bool is_long = argument[1] == '-';
    const std::size_t name_size = is_long ? std::min(argument.find('='), argument.size()) : 2;
    const CLI::Option* option = arguments.get_option_no_throw(std::string(argument.substr(0, name_size)));
    const bool takes_value = option && option->get_items_expected_max() > 0;
    const bool has_value = name_size < argument.size();
    if (!is_long && has_value) {
      const bool is_number = argument.find_first_not_of("0123456789", name_size) == std::string_view::npos;
      if (!takes_value || !is_number) throw usage_error(std::string(argument), "unknown option" + perhaps_meant(arguments, argument));
    }
    if (takes_value && !has_value) ++i;
  }
}

void refuse_extras(const CLI::App& arguments) {
  const std::vector<std::string> unknown = arguments.remaining();
  if (unknown.empty()) return;
  std::string all, meant;
  for (const std::string& one : unknown) {
    all += " " + one;
    if (meant.empty()) meant = perhaps_meant(arguments, one);
  }
  throw std::invalid_argument((unknown.size() == 1 ? "unknown argument:" : "unknown arguments:") + all + meant);
}

int parse_and_run(CLI::App& arguments, int argc, char** argv, const std::function<int()>& body) {
  int code = 0;
  try {
    refuse_words_of_one_dash(arguments, argc, argv);
    try {
      arguments.parse(argc, argv);
    } catch (const CLI::RequiredError&) {
      refuse_extras(arguments);  // a required option may be there, misspelled
      throw;
    }
    refuse_extras(arguments);
    code = body();
  } catch (const CLI::CallForHelp&) {
    std::string help = arguments.help();
    for (std::size_t at; (at = help.find("\n\n\n")) != std::string::npos;) help.erase(at, 1);  // one empty line between groups
    std::fputs(help.c_str(), stdout);
  } catch (const CLI::CallForVersion& version) {
    std::printf("%s\n", version.what());
  }
  finish_standard_output();
  return code;
}

}  // namespace

CLI::Validator count_range(std::size_t least, std::size_t most) {
  const std::string from = std::to_string(least);
  return CLI::Validator([least, most](const std::string& text) { return refused_number(text, least, most); },
                        most != std::size_t{1} << 31 ? from + " to " + std::to_string(most)
                        : least != 0                 ? from + " or more"
                                                     : "");
}

CLI::Validator seed_number() {
  return CLI::Validator([](const std::string& text) { return refused_number(text, 0, std::numeric_limits<std::uint64_t>::max()); },
                        "0 to 2^64 - 1");
}

int run_program(CLI::App& arguments, int argc, char** argv, const std::function<int()>& body) {
  const std::string version =
      std::to_string(pqkv::version_major) + "." + std::to_string(pqkv::version_minor) + "." + std::to_string(pqkv::version_patch);
  arguments.set_version_flag("--version", arguments.get_name() + " of pqkv " + version, "print the version and end");
  arguments.set_help_flag("-h,--help", "print this help and end");
  arguments.formatter(std::make_shared<help_format>(columns_of_standard_output()));
  arguments.allow_extras();  // refuse_extras() names them in the order in which they were given
  try {
    return parse_and_run(arguments, argc, argv, body);
  } catch (const interrupted& ended) {
    bad_input(arguments, ended.what());
    return 130;
  } catch (const std::bad_alloc&) {
    return bad_input(arguments, "not enough memory");
  } catch (const std::exception& error) {
    return bad_input(arguments, error.what());
  }
}

std::string read_file(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file || std::filesystem::is_directory(path)) throw load_error(path.string(), "cannot be read");
  std::string bytes;
  for (std::array<char, 1 << 16> part; file.read(part.data(), part.size()) || file.gcount() > 0;)
    append_text(bytes, {part.data(), static_cast<std::size_t>(file.gcount())}, path.string());
  if (file.bad()) throw load_error(path.string(), "cannot be read");
  return bytes;
}

std::string read_standard_input() {
  if (::isatty(STDIN_FILENO) == 1) std::fputs("the prompt is read from the terminal; Ctrl-D ends it\n", stderr);
  std::string bytes;
  char part[4096];
  while (true) {
    const ssize_t got = ::read(STDIN_FILENO, part, sizeof part);
    if (got == 0) return bytes;
    if (got > 0)
      append_text(bytes, {part, static_cast<std::size_t>(got)}, "standard input");
    else if (errno != EINTR)
      throw load_error("standard input", std::string("cannot be read: ") + std::strerror(errno));
  }
}

void finish_standard_output() {
  if (std::fflush(stdout) != 0 || std::ferror(stdout)) throw load_error("standard output", "cannot be written");
}

interrupt_handler* interrupt_handler::innermost_ = nullptr;

interrupt_handler::interrupt_handler(void (*answer)(int)) : outer_(innermost_), answer_(answer) {
  ::sigaction(SIGINT, nullptr, &before_);
  innermost_ = this;
  if (before_.sa_handler == SIG_IGN) return;
  struct sigaction wanted {};
  wanted.sa_handler = step_back_and_answer;
  wanted.sa_flags = SA_RESTART;
  ::sigaction(SIGINT, &wanted, nullptr);
}

interrupt_handler::~interrupt_handler() {
  ::sigaction(SIGINT, &before_, nullptr);
  innermost_ = outer_;
}

void interrupt_handler::step_back_and_answer(int signal) {
  const interrupt_handler& answering = *innermost_;
  innermost_ = answering.outer_;
  ::sigaction(SIGINT, &answering.before_, nullptr);
  answering.answer_(signal);
}

interrupt_watch::interrupt_watch() : handler_([](int) { is_noted = 1; }) { is_noted = 0; }

bool interrupt_watch::is_interrupted() noexcept { return is_noted != 0; }

progress_bar::progress_bar(std::string label) : label_(std::move(label)), terminal_(has_clearing_terminal()) {
  if (terminal_) clearing_.emplace(clear_line_and_end);
}

progress_report progress_bar::report() {
  if (!terminal_) return {};
  return [this](double share) {
    const int percent = static_cast<int>(share * 100);
    if (percent == shown_percent_) return;
    shown_percent_ = percent;
    const std::string bar(static_cast<std::size_t>(percent / 4), '#');
    std::fprintf(stderr, "\r%s [%-25s] %3d %%", label_.c_str(), bar.c_str(), percent);
    std::fflush(stderr);
  };
}

progress_bar::~progress_bar() {
  if (shown_percent_ >= 0) std::fputs(clear_line, stderr);
}

}  // namespace minillama
