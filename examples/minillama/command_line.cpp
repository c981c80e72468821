// SPDX-License-Identifier: Apache-2.0
// One line for every error; the bar is drawn at most once a percent.
#include "command_line.hpp"

#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <iterator>

namespace minillama {
namespace {

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

}  // namespace

int run_program(CLI::App& arguments, int argc, char** argv, const std::function<int()>& body) {
  try {
    arguments.parse(argc, argv);
    return body();
  } catch (const CLI::CallForHelp&) {
    std::fputs(arguments.help().c_str(), stdout);
    return 0;
  } catch (const std::bad_alloc&) {
    return bad_input(arguments, "not enough memory");
  } catch (const std::exception& error) {
    return bad_input(arguments, error.what());
  }
}

std::string read_file(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file || std::filesystem::is_directory(path)) throw load_error(path.string(), "cannot be read");
  std::string bytes{std::istreambuf_iterator<char>(file), {}};
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
      bytes.append(part, static_cast<std::size_t>(got));
    else if (errno != EINTR)
      throw load_error("standard input", std::string("cannot be read: ") + std::strerror(errno));
  }
}

void finish_standard_output() {
  if (std::fflush(stdout) != 0 || std::ferror(stdout)) throw load_error("standard output", "cannot be written");
}

progress_bar::progress_bar(std::string label) : label_(std::move(label)), terminal_(::isatty(STDERR_FILENO) == 1) {}

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
  if (shown_percent_ >= 0) std::fputs("\r\x1b[K", stderr);
}

}  // namespace minillama
