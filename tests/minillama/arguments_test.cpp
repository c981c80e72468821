// SPDX-License-Identifier: Apache-2.0
// Habits of a terminal: the version, options that are mistyped as other programs spell them, names that are numbers, what becomes of
// output that nobody takes or that the disk has no room for, texts without an end, and models that have no answer.
#include <doctest/doctest.h>

#include <chrono>
#include <pqkv/version.hpp>
#include <sstream>
#include <string>

#include "../cases/sanitized.hpp"
#include "program.hpp"

using namespace minillama_test;

namespace {
constexpr const char* ask_name = "minillama-ask";

/// minillama-ask on a tiny model and a text.
struct asker {
  asker() { write_text(tiny.path() / "text", std::string(4000, 'e')); }
  std::string arguments(const std::string& more) const {
    const std::string length = pqkv_cases::under_sanitizers ? "700" : "1500";
    return "-m \"" + tiny.path().string() + "\" -t 1 --length " + length + " --text \"" + (tiny.path() / "text").string() + "\" " + more;
  }
  outcome operator()(const std::string& more) const { return tiny.run(arguments(more), MINILLAMA_ASK_PROGRAM); }
  std::size_t files() const {
    return static_cast<std::size_t>(std::distance(std::filesystem::directory_iterator(tiny.path()), std::filesystem::directory_iterator()));
  }

  bench tiny{tiny_shape{.max_positions = 2048}};
};

std::string quoted(const std::filesystem::path& path) { return "\"" + path.string() + "\""; }
}  // namespace

TEST_CASE("--version is one line on standard output, without a model") {
  const bench tiny;
  const std::string version =
      std::to_string(pqkv::version_major) + "." + std::to_string(pqkv::version_minor) + "." + std::to_string(pqkv::version_patch);
  CHECK(tiny.run("--version").out == "minillama of pqkv " + version + "\n");
  CHECK(tiny.run("--version", MINILLAMA_ASK_PROGRAM).out == "minillama-ask of pqkv " + version + "\n");
  CHECK(tiny.run("--version").code == 0);
}

TEST_CASE("--help has at most 80 columns where standard output is no terminal, and breaks between words") {
  const bench tiny;
  for (const char* program : {MINILLAMA_PROGRAM, MINILLAMA_ASK_PROGRAM}) {
    const outcome help = tiny.run("--help", program);
    CHECK(help.code == 0);
    std::size_t longest = 0;
    std::istringstream lines(help.out);
    for (std::string line; std::getline(lines, line);) longest = std::max(longest, line.size());
    CHECK(longest <= 80);
    CHECK(longest > 70);
    CHECK(help.out.find("\n  -m, --model TEXT           Hugging Face directory") != std::string::npos);
    CHECK(help.out.find("\n  -t, --threads N            threads of the host (1 to 1024; default ") != std::string::npos);
  }
  CHECK(tiny.run("--help").out.find("file of token numbers, separated by blanks, in\n" + std::string(29, ' ') +
                                    "place of the prompt's text (not with --chat,\n") != std::string::npos);
}

TEST_CASE("a word behind one dash is an unknown option, not a bundle of short ones") {
  const bench tiny;
  check_refused(tiny.generate("-p a -temp 0.5"), "-temp: unknown option; perhaps --temp is meant");
  check_refused(tiny.generate("-p a -ngl 99"), "-ngl: unknown option; perhaps --device cuda is meant");
  check_refused(tiny.generate("-p a -no-cnv"), "-no-cnv: unknown option");
  check_refused(tiny.generate("-prompt a"), "-prompt: unknown option; perhaps --prompt is meant");
  check_refused(tiny.run("-model x", MINILLAMA_ASK_PROGRAM), "-model: unknown option; perhaps --model is meant", ask_name);
  check_refused(tiny.run("-hm x"), "-hm: unknown option");

  const outcome apart = tiny.generate("-p abc -n 7");
  CHECK(apart.code == 0);
  CHECK(tiny.generate("-p abc -n7").out == apart.out);
  CHECK(tiny.generate("--prompt=abc --tokens=7").out == apart.out);
  // What stands behind an option that takes a value is its value.
  CHECK(tiny.generate("-p -temp -n 3").code == 0);
  CHECK(tiny.generate("--prompt -ngl -n 3").code == 0);
  CHECK(tiny.generate("--prompt=x --turn -temp -n 3").code == 0);
}

TEST_CASE("progress is drawn on terminals that can clear a line, and nowhere else") {
  const bench tiny;
  if (tiny.shell("script -qec true /dev/null").code != 0) return;  // it gives a program a terminal, where the system has one to give
  const std::string command = "\"" MINILLAMA_PROGRAM "\" -m " + tiny.path().string() + " -t 1 -p abcdefgh -n 1";
  const auto on_terminal = [&](const std::string& kind) {
    const outcome got = tiny.shell("TERM=" + kind + " script -qec '" + command + "' /dev/null </dev/null");
    CHECK(got.code == 0);
    CHECK(got.out.find("time to first token") != std::string::npos);
    return got.out.find("prefill [") != std::string::npos || got.out.find('\x1b') != std::string::npos;
  };
  CHECK(on_terminal("xterm"));
  CHECK_FALSE(on_terminal("dumb"));
  CHECK(tiny.generate("-p abcdefgh -n 1").err.find("prefill [") == std::string::npos);
}

TEST_CASE("unknown arguments are named in the order in which they were given") {
  const bench tiny;
  check_refused(tiny.generate("-p a --first 1 --second two"), "unknown arguments: --first 1 --second two");
  check_refused(tiny.generate("-p a --only"), "unknown argument: --only");
  check_refused(tiny.run("-m x one two", MINILLAMA_ASK_PROGRAM), "unknown arguments: one two", ask_name);
}

TEST_CASE("an unknown option's message names the one that is probably meant, and comes before what is missing") {
  const bench tiny;
  const auto ends_with = [&](const std::string& given, const std::string& end, const char* program = MINILLAMA_PROGRAM) {
    const outcome got = tiny.run(given, program);
    CHECK(got.code == 2);
    CHECK_MESSAGE(got.err.ends_with(end + "\n"), got.err);
  };
  ends_with("--hlep", "unknown argument: --hlep; perhaps --help is meant");
  ends_with("--modle x", "unknown arguments: --modle x; perhaps --model is meant");
  ends_with("-m x --n-predict 5", "unknown arguments: --n-predict 5; perhaps --tokens is meant");
  ends_with("-m x --ctx-size=512", "unknown argument: --ctx-size=512; perhaps --context is meant");
  ends_with("-m x --n-gpu-layers 9", "unknown arguments: --n-gpu-layers 9; perhaps --device cuda is meant");
  ends_with("-m x -s 3", "unknown arguments: -s 3; perhaps --seed is meant");
  ends_with("-m x --top_p 1", "unknown arguments: --top_p 1; perhaps --top-p is meant");
  ends_with("-m x --repeat-penalty 1", "unknown arguments: --repeat-penalty 1");  // nothing like it is here
  ends_with("-m x word", "unknown argument: word");
  ends_with("-m x --other 2", "unknown arguments: --other 2");  // and not --over
  ends_with("-m x -temp 1", "-temp: unknown option", MINILLAMA_ASK_PROGRAM);  // and not --demo
  ends_with("-m x --n-predict 5", "unknown arguments: --n-predict 5", MINILLAMA_ASK_PROGRAM);
  ends_with("-m x --question 5", "unknown arguments: --question 5; perhaps --questions is meant", MINILLAMA_ASK_PROGRAM);
}

TEST_CASE("a count that is none, and a file in its place") {
  const bench tiny;
  check_refused(tiny.generate("-p a -n -1"), "--tokens: expected a whole number, 0 to 2147483648, got -1");
  check_refused(tiny.generate("-p a -c 0"), "--context: expected a whole number, 1 to 2147483648, got 0");
  check_refused(tiny.generate("-p a -t 1025"), "--threads: expected a whole number, 1 to 1024, got 1025");
  write_text(tiny.path() / "ids", "1 2 3");
  check_refused(tiny.generate("--tokens " + quoted(tiny.path() / "ids")), "ids; --token-ids takes a file");
}

TEST_CASE("names are names: the number behind one is refused") {
  const bench tiny;
  check_refused(tiny.generate("-p a --policy 2"), "--policy: expected full|pq|oracle|streaming|snapkv|h2o|sparq|quest|infllm, got 2");
  check_refused(tiny.generate("-p a --path 1"), "--path: expected auto|joint|scan, got 1");
  check_refused(tiny.generate("-p a --rows 1"), "--rows: expected float|int8, got 1");
  check_refused(tiny.generate("-p a --axes 0"), "--axes: expected contiguous|rotary|weighted, got 0");
  check_refused(tiny.generate("-p a --metric 0"), "--metric: expected l2|ip, got 0");
  check_refused(tiny.generate("-p a --device 0"), "--device: expected host|cuda, got 0");
  const asker ask;
  check_refused(ask("--policy pq 2"), "--policy: expected full|pq|oracle|streaming|snapkv|h2o|sparq|quest|infllm, got 2", ask_name);
}

TEST_CASE("a seed is a whole number of 64 bits, and the message says so in one line") {
  const bench tiny;
  const asker ask;
  for (const std::string value : {"-1", "1.5", "1e3", "18446744073709551616", "many", "''", "' 1'"}) {
    const outcome got = tiny.generate("-p a --seed " + value);
    check_refused(got, "--seed: expected a whole number, 0 to 18446744073709551615, got");
    CHECK(got.err.size() < 120);
  }
  check_refused(ask("--seed -1"), "--seed: expected a whole number", ask_name);
  CHECK(tiny.generate("-p a -n 2 --temp 1 --seed 18446744073709551615").code == 0);
}

TEST_CASE("--json -: standard output has the text, so it is refused, and a file of that name is ./-") {
  const asker ask;
  check_refused(ask.tiny.generate("-p a --json -"), "-: cannot be written: standard output has the text; a file of that name is ./-");
  check_refused(ask("--questions 2 --contexts 1 --json -"), "-: cannot be written: standard output has the text", ask_name);
  const outcome inside = ask.tiny.shell("cd " + quoted(ask.tiny.path()) + " && \"" MINILLAMA_PROGRAM "\" -m . -t 1 -p a -n 1 --json ./-");
  CHECK(inside.code == 0);
  CHECK(nlohmann::json::parse(contents(ask.tiny.path() / "-")).contains("settings"));
}

TEST_CASE("minillama-ask --json: a full disk and signals that end the program are told, and none touches the file that was there") {
  const asker ask;
  const auto file = ask.tiny.path() / "result.json";
  const std::string json = " --json " + quoted(file);
  write_text(file, "old");
  const std::size_t before = ask.files();

  // A limit of 4 blocks on what the program may write is a disk that takes a part of the file.
  const std::string command = "\"" MINILLAMA_ASK_PROGRAM "\" " + ask.arguments("--questions 2 --contexts 1" + json);
  const outcome full = ask.tiny.shell("trap '' XFSZ; ulimit -f 4; exec " + command);
  CHECK(full.code == 2);
  CHECK_MESSAGE(full.err.find("result.json: cannot be written: File too large") != std::string::npos, full.err);
  CHECK(contents(file) == "old");
  CHECK(ask.files() == before);

  // Without that trap the limit is a signal that comes while the file is half written.
  const auto ended_by = [&](const std::string& signal, const outcome& got) {
    const std::string line = "\nminillama-ask: ended by " + signal + "; " + file.string() + ": nothing was written\n";
    CHECK_MESSAGE(got.err.find(line) != std::string::npos, got.err);  // a shell may have a word behind it
    CHECK(contents(file) == "old");
    CHECK(ask.files() == before);
  };
  ended_by("SIGXFSZ", ask.tiny.shell("(ulimit -c 0; ulimit -f 4; exec " + command + ")"));

  const auto start = std::chrono::steady_clock::now();
  const std::string endless = "\"" MINILLAMA_ASK_PROGRAM "\" " + ask.arguments("--questions 100000 --contexts 100000" + json);
  const std::string seconds = pqkv_cases::under_sanitizers ? " 3 " : " 1 ";
  for (const auto& [signal, code] : {std::pair("INT", 130), std::pair("TERM", 143)}) {
    const outcome got = ask.tiny.shell("timeout --preserve-status -s " + std::string(signal) + seconds + endless);
    CHECK(got.code == code);  // as a shell has it: 128 + the signal
    ended_by("SIG" + std::string(signal), got);
  }
  CHECK(std::chrono::steady_clock::now() - start < std::chrono::seconds(30));

  CHECK(ask("--questions 2 --contexts 1" + json).code == 0);
  CHECK(nlohmann::json::parse(contents(file)).at("questions").size() == 2);
  CHECK(ask.files() == before);
}

TEST_CASE("--answers-only leaves recall and mass out, and gives the same answers and bytes of rows") {
  const asker ask;
  const auto run = [&](const std::string& more) {
    const auto file = ask.tiny.path() / "result.json";
    const outcome got = ask("--questions 2 --contexts 2 --policy pq --ratios 4 --json " + quoted(file) + more);
    CHECK_MESSAGE(got.code == 0, got.err);
    return nlohmann::json::parse(contents(file));
  };
  const auto whole = run(""), answers = run(" --answers-only");
  CHECK(answers.at("questions") == whole.at("questions"));
  for (std::size_t i = 0; i < 2; ++i) {
    const auto &one = answers.at("policies").at(i), &other = whole.at("policies").at(i);
    CHECK(one.at("bytes_per_token").at("rows") == other.at("bytes_per_token").at("rows"));
    CHECK(other.at("recall").is_object());
    CHECK(one.at("recall").is_null());
    CHECK(one.at("attention_mass").is_null());
    CHECK(one.at("measured_steps") == 0);
  }
  check_refused(ask("--demo --answers-only"), "--answers-only", ask_name);
}

TEST_CASE("standard output that takes nothing is an error, and a closed pipe ends the program at once") {
  const asker ask;
  const auto code_of = [&](const std::string& program, const std::string& arguments) {
    return ask.tiny.shell("\"" + program + "\" " + arguments + " >/dev/full 2>/dev/null; echo $?").out;
  };
  CHECK(code_of(MINILLAMA_PROGRAM, "--help") == "2\n");
  CHECK(code_of(MINILLAMA_PROGRAM, "--version") == "2\n");
  CHECK(code_of(MINILLAMA_ASK_PROGRAM, ask.arguments("--questions 2 --contexts 1")) == "2\n");
  CHECK(code_of(MINILLAMA_ASK_PROGRAM, ask.arguments("--demo")) == "2\n");

  // 1900 tokens, and a reader that goes after one byte: the program is ended by SIGPIPE, or where that is ignored says why it ends.
  const std::string writes = "\"" MINILLAMA_PROGRAM "\" -m " + quoted(ask.tiny.path()) + " -t 1 -p a -n 1900";
  const auto to_closed_pipe = [&](const std::string& first) {
    return ask.tiny.shell("{ " + first + "(" + writes + "; echo $? >&2) } | head -c 1");
  };
  const outcome ended = to_closed_pipe("");
  CHECK(ended.out.size() == 1);
  CHECK(ended.err == "141\n");  // 128 + SIGPIPE, and not a word
  const outcome ignored = to_closed_pipe("trap '' PIPE; ");
  CHECK(ignored.err == "minillama: standard output: cannot be written\n2\n");
}

TEST_CASE("demo.sh --help answers at once: it needs nothing that the repository builds or installs") {
  const temporary_directory folder;
  std::filesystem::create_directories(folder.path() / "examples");
  std::filesystem::copy_file(std::filesystem::path(MINILLAMA_REPOSITORY) / "examples/demo.sh", folder.path() / "examples/demo.sh");
  const bench tiny;
  for (const char* asked : {"--help", "-h", "--length 4096 --help"}) {
    const outcome got = tiny.shell("bash " + quoted(folder.path() / "examples/demo.sh") + " " + asked);
    CHECK(got.code == 0);
    CHECK(got.err == "");
    CHECK_MESSAGE(got.out.find("examples/demo.sh [--length TOKENS]") != std::string::npos, got.out);
    CHECK(got.out.find("set -euo") == std::string::npos);
  }
  CHECK(std::distance(std::filesystem::directory_iterator(folder.path()), {}) == 1);
}

TEST_CASE("a text without an end is refused, from a file or from standard input") {
  const bench tiny;
  const std::string too_much = ": has more than 268435456 bytes, which is too much for a text";
  check_refused(tiny.generate("-f /dev/zero"), "/dev/zero" + too_much);
  check_refused(tiny.generate("-f - </dev/zero"), "standard input" + too_much);
}

TEST_CASE("weights whose sums overflow are an error, not a text") {
  const bench tiny;
  tensors huge = random_weights(tiny.shape(), 1);
  for (auto& [name, entry] : huge)
    for (float& weight : entry.values) weight *= 1e30f;
  write_model(tiny.path(), tiny.shape(), huge);
  for (const char* how : {"", "--policy full", "--temp 1"})
    check_refused(tiny.generate(std::string("-p 'once upon' -n 4 ") + how), "the model's logit of token 0 is ");
  write_text(tiny.path() / "text", "once upon a time");
  check_refused(tiny.generate("--perplexity \"" + (tiny.path() / "text").string() + "\" --perplexity-tokens 4"),
                "the model's logit of token 0 is ");
}
