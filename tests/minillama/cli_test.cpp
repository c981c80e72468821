// SPDX-License-Identifier: Apache-2.0
// Runs the program as a user does. Bad input of every kind: one line on stderr that names what is wrong, exit code 2, nothing on stdout.
// MINILLAMA_PROGRAM and MINILLAMA_ASK_PROGRAM are the paths of the programs, set by the build.
#include <doctest/doctest.h>
#include <sys/wait.h>

#include <algorithm>
#include <cstdlib>
#include <iterator>
#include <limits>

#include "tiny_model.hpp"

using namespace minillama_test;

namespace {

struct outcome {
  int code = -1;
  std::string out, err;
};

std::string contents(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

/// A tiny model on disk, and the program run with it.
class bench {
 public:
  explicit bench(const tiny_shape& shape = {}) : shape_(shape) { write_model(path(), shape_, random_weights(shape_, 1)); }

  const std::filesystem::path& path() const { return folder_.path(); }
  const tiny_shape& shape() const { return shape_; }

  /// The arguments go through a shell; stderr is a file, so no progress bar is drawn.
  outcome run(const std::string& arguments, const char* program = MINILLAMA_PROGRAM) const {
    const auto out = scratch_.path() / "out", err = scratch_.path() / "err";
    const std::string command = "\"" + std::string(program) + "\" " + arguments + " >\"" + out.string() + "\" 2>\"" + err.string() + "\"";
    const int status = std::system(command.c_str());
    return {WIFEXITED(status) ? WEXITSTATUS(status) : -1, contents(out), contents(err)};
  }
  outcome generate(const std::string& arguments) const { return run("-m \"" + path().string() + "\" -t 2 " + arguments); }

 private:
  tiny_shape shape_;
  temporary_directory folder_, scratch_;
};

/// Checks the form that all errors share, and that the line names `what`.
void check_refused(const outcome& got, const std::string& what, const std::string& program = "minillama") {
  CHECK_MESSAGE(got.code == 2, got.err);
  CHECK(got.out == "");
  CHECK_MESSAGE(std::count(got.err.begin(), got.err.end(), '\n') == 1, got.err);
  CHECK_MESSAGE(got.err.rfind(program + ": ", 0) == 0, got.err);
  CHECK_MESSAGE(got.err.find(what) != std::string::npos, got.err);
}

}  // namespace

TEST_CASE("text goes to stdout, figures to stderr, and every policy that attends to all gives the same text") {
  const bench tiny;
  const outcome full = tiny.generate("-p 'once upon' -n 20 --policy full");
  CHECK(full.code == 0);
  CHECK(full.out.size() == 21);
  for (const char* figure : {"time to first token", "prefill", "decode", "KV bytes held", "KV bytes read/token"})
    CHECK_MESSAGE(full.err.find(figure) != std::string::npos, full.err);
  CHECK(full.err.find('\r') == std::string::npos);
  for (const char* policy : {"pq", "oracle", "streaming"})
    CHECK(tiny.generate("-p 'once upon' -n 20 --ratio 1 --policy " + std::string(policy)).out == full.out);
  CHECK(tiny.generate("-p 'once upon' -n 20 --retrieve 100 --policy pq").out == full.out);
  CHECK(tiny.run("-m \"" + tiny.path().string() + "\" -t 1 -p 'once upon' -n 20 --policy full").out == full.out);

  write_text(tiny.path() / "prompt", "once upon");
  const std::string file = "-f \"" + (tiny.path() / "prompt").string() + "\"";
  CHECK(tiny.generate(file + " -n 20 --policy full").out == full.out);
  write_text(tiny.path() / "prompt", "once");
  CHECK(tiny.generate(file + " -p ' upon' -n 20 --policy full").out == full.out);
}

TEST_CASE("bytes above 127 are tokens like any other, and zero tokens may be asked for") {
  const bench tiny;
  write_text(tiny.path() / "prompt", std::string("\xff\x00\x80\xc3", 4));
  CHECK(tiny.generate("-f \"" + (tiny.path() / "prompt").string() + "\" -n 3").code == 0);
  const outcome none = tiny.generate("-p x -n 0");
  CHECK(none.code == 0);
  CHECK(none.out == "\n");
}

TEST_CASE("both paths of the search give the same text") {
  const bench tiny({.max_positions = 1024});
  write_text(tiny.path() / "prompt", std::string(700, 'a') + "bcdefghij klmnop" + std::string(200, 'q'));
  const std::string arguments = "-f \"" + (tiny.path() / "prompt").string() + "\" -n 30 --ratio 0.2 --subspaces 2 --bits 4 --path ";
  const outcome joint = tiny.generate(arguments + "joint"), scan = tiny.generate(arguments + "scan");
  CHECK(joint.code == 0);
  CHECK(joint.out == scan.out);
  CHECK(joint.out == tiny.generate(arguments + "auto").out);
}

TEST_CASE("the context is a limit: text stops there, a longer prompt is refused") {
  const bench tiny;
  const outcome cut = tiny.generate("-p abcdef -n 100 -c 10 --policy full");
  CHECK(cut.code == 0);
  CHECK(cut.out.size() == 4 + 1 + 1);  // four tokens fit behind the prompt, and the last one's successor needs no room
  CHECK(tiny.generate("-p abcdef -n 5 -c 6").code == 0);
  check_refused(tiny.generate("-p abcdefg -c 6"), "-p: prompt: 7 tokens are longer than the context of 6");
  write_text(tiny.path() / "prompt", std::string(513, 'x'));
  check_refused(tiny.generate("-f \"" + (tiny.path() / "prompt").string() + "\""), "prompt: prompt: 513 tokens");
  check_refused(tiny.generate("-p a -c 513"), "-c: 513 is more than the model's 512 positions");
}

TEST_CASE("a prompt that is empty, absent or not readable is refused") {
  const bench tiny;
  check_refused(tiny.generate("-p ''"), "-p: prompt: is empty");
  check_refused(tiny.generate(""), "-p: a prompt is required");
  write_text(tiny.path() / "prompt", "");
  check_refused(tiny.generate("-f \"" + (tiny.path() / "prompt").string() + "\""), "/prompt: prompt: is empty");
  check_refused(tiny.generate("-f \"" + (tiny.path() / "absent").string() + "\""), "/absent: cannot be read");
  check_refused(tiny.generate("-f \"" + tiny.path().string() + "\""), "cannot be read");
}

TEST_CASE("options that make no sense are refused by name") {
  const bench tiny;
  check_refused(tiny.run("-p a"), "--model");
  check_refused(tiny.generate("-p a --policy best"), "--policy");
  check_refused(tiny.generate("-p a --path fast"), "--path");
  check_refused(tiny.generate("-p a --nonsense"), "--nonsense");
  check_refused(tiny.generate("-p a -n many"), "--tokens");
  check_refused(tiny.generate("-p a -n -3"), "--tokens");
  check_refused(tiny.generate("-p a --sink -1"), "--sink");
  check_refused(tiny.run("-m \"" + tiny.path().string() + "\" -p a -t 0"), "--threads");
  check_refused(tiny.generate("-p a --retrieve 5 --ratio 0.1"), "--retrieve");
  check_refused(tiny.generate("-p a --window 0"), "budget.window");
  check_refused(tiny.generate("-p a --ratio 1.5"), "budget.ratio");
  check_refused(tiny.generate("-p a --ratio nan"), "budget.ratio");
  check_refused(tiny.generate("-p a --sink 64"), "sinks + 1");
  check_refused(tiny.generate("-p a --bits 3"), "bits");
  check_refused(tiny.generate("-p a --bits 9"), "bits");
  check_refused(tiny.generate("-p a --subspaces 3"), "subspaces");
  check_refused(tiny.generate("-p a --subspaces 8 --bits 8 --path joint"), "path");
  CHECK(tiny.run("--help").code == 0);
}

TEST_CASE("a model directory with anything missing or wrong in it is refused by file and key") {
  const bench tiny;
  const auto config_file = tiny.path() / "config.json", weights_file = tiny.path() / "model.safetensors";
  check_refused(tiny.run("-m /nowhere -p a"), "/nowhere/config.json: cannot be opened");

  for (const char* key : {"architectures", "hidden_size", "vocab_size", "rms_norm_eps"}) {
    nlohmann::json config = config_of(tiny.shape());
    config.erase(key);
    write_text(config_file, config.dump());
    check_refused(tiny.generate("-p a"), config_file.string() + ": " + key + ": missing key");
  }
  nlohmann::json config = config_of(tiny.shape());
  config["architectures"] = {"GPT2LMHeadModel\nforged line"};
  write_text(config_file, config.dump());
  check_refused(tiny.generate("-p a"), config_file.string() + ": architectures: unsupported");
  write_text(config_file, config_of(tiny.shape()).dump());
  CHECK(tiny.generate("-p a -n 1").code == 0);

  const tensors good = random_weights(tiny.shape(), 1);
  const std::string name = "model.layers.1.mlp.up_proj.weight";
  const auto check_weights = [&](const tensors& weights, const std::string& what) {
    parts_of(weights, "F32").write(weights_file);
    check_refused(tiny.generate("-p a"), weights_file.string() + ": " + name + ": " + what);
  };
  tensors spoiled = good;
  spoiled[name].values[17] = std::numeric_limits<float>::quiet_NaN();
  check_weights(spoiled, "NaN or infinity at element 17");
  spoiled[name].values[17] = -std::numeric_limits<float>::infinity();
  check_weights(spoiled, "NaN or infinity at element 17");
  spoiled.erase(name);
  check_weights(spoiled, "missing tensor");

  auto parts = parts_of(good, "F32");
  parts.header[name]["dtype"] = "F8_E4M3";
  parts.write(weights_file);
  check_refused(tiny.generate("-p a"), name + ": unknown type F8_E4M3");
  parts.header[name]["data_offsets"] = {0, 1u << 30};
  parts.write(weights_file);
  check_refused(tiny.generate("-p a"), name + ": data_offsets");
  write_text(weights_file, std::string("\xff\xff\xff\x7f\0\0\0\0{", 9));
  check_refused(tiny.generate("-p a"), weights_file.string() + ": header: is longer than the file");
  std::filesystem::remove(weights_file);
  check_refused(tiny.generate("-p a"), weights_file.string() + ": cannot be opened");
}

TEST_CASE("minillama-ask runs on any model, and refuses what it cannot ask") {
  const bench tiny({.max_positions = 2048});
  write_text(tiny.path() / "text", std::string(4000, 'e'));
  const auto ask = [&](const std::string& arguments) {
    return tiny.run("-m \"" + tiny.path().string() + "\" -t 2 --text \"" + (tiny.path() / "text").string() + "\" " + arguments,
                    MINILLAMA_ASK_PROGRAM);
  };
  const auto json_file = tiny.path() / "result.json";
  const outcome measured = ask("--questions 4 --contexts 2 --length 1500 --seed 3 --check-paths --json \"" + json_file.string() + "\"");
  CHECK_MESSAGE(measured.code == 0, measured.err);
  CHECK(measured.out.find("pq 4x8 1/40") != std::string::npos);
  const auto result = nlohmann::json::parse(contents(json_file));
  CHECK(result.at("questions").size() == 4);
  CHECK(result.at("policies").size() == 10);  // full, pq twice on two paths and once by scan, oracle and streaming twice
  CHECK(result.at("path_differences") == 0);
  CHECK(result.at("settings").at("seed") == 3);
  CHECK(ask("--demo --length 1500").code == 0);

  const std::string program = "minillama-ask";
  const bench wide({.vocabulary = 257});
  check_refused(wide.run("-m \"" + wide.path().string() + "\" --demo", MINILLAMA_ASK_PROGRAM), "vocab_size: unsupported: 257", program);
  check_refused(wide.generate("-p a"), "tokenizer: a file is needed: the model has 257 tokens");
  check_refused(ask("--questions 3 --contexts 5"), "--questions", program);
  check_refused(ask("--questions 20 --contexts 1 --length 100"), "--length", program);
  check_refused(ask("--questions 2 --contexts 1 --length 2048"), "--length", program);
  check_refused(ask("--json /nowhere/file"), "/nowhere/file: cannot be written", program);
  check_refused(ask("--demo --json x"), "--json", program);
  check_refused(ask("--demo --length 1500 --text /nowhere"), "/nowhere: cannot be read", program);
}
