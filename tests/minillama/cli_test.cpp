// SPDX-License-Identifier: Apache-2.0
// Runs the program as a user does. Bad input of every kind: one line on stderr that names what is wrong, exit code 2, nothing on stdout.
#include <doctest/doctest.h>

#include <limits>

#include "program.hpp"
#include "../cases/sanitized.hpp"

using namespace minillama_test;

TEST_CASE("--preset paper calibrates on this machine, --metric ip clusters for inner products; unknown names are refused") {
  const bench tiny({.max_positions = 4096});
  const std::string json = (tiny.path() / "out.json").string();
  const std::string prompt = "-p '" + std::string(300, 'a') + "bcdefghijklmnopqrstuvwxyz 0123456789" + "' -n 5 --bits 4 ";
  const outcome paper = tiny.generate(prompt + "--preset paper --metric ip --json \"" + json + "\"");
  CHECK_MESSAGE(paper.code == 0, paper.err);
  CHECK(paper.err.find("by the overlap rule") != std::string::npos);
  const auto document = nlohmann::json::parse(contents(json));
  CHECK(document.at("settings").at("preset") == "paper");
  CHECK(document.at("settings").at("metric") == "ip");
  const auto iterations = document.at("overlap").at("iterations").get<std::size_t>();
  CHECK(iterations >= 3);
  CHECK(iterations <= 300);
  CHECK(document.at("overlap").at("clustering_seconds").at("per_row_and_iteration").get<double>() > 0);
  const outcome refined = tiny.generate(prompt + "--residual 4x4 --shortlist 3 --json \"" + json + "\"");
  CHECK_MESSAGE(refined.code == 0, refined.err);
  CHECK(nlohmann::json::parse(contents(json)).at("settings").at("residual") == "4x4");
  CHECK(nlohmann::json::parse(contents(json)).at("settings").at("shortlist") == 3);
  check_refused(tiny.generate(prompt + "--residual 4"), "--residual");
  check_refused(tiny.generate(prompt + "--residual 4x9"), "selector.residual.bits");
  check_refused(tiny.generate(prompt + "--shortlist 3"), "--residual");
  check_refused(tiny.generate(prompt + "--preset press"), "--preset");
  check_refused(tiny.generate(prompt + "--metric cosine"), "--metric");
  const bench shorter;  // 512 positions: one length determines no parabola
  check_refused(shorter.generate("-p abc --bits 4 --preset paper"), "overlap_calibration::fit: add_layer must be at least 3");
}

TEST_CASE("text goes to stdout, figures to stderr, and every policy that attends to all gives the same text") {
  const bench tiny;
  const outcome full = tiny.generate("-p 'once upon' -n 20 --policy full");
  CHECK(full.code == 0);
  CHECK(full.out.size() == 21);
  for (const char* figure : {"time to first token", "prefill", "decode", "KV bytes held", "KV bytes read/token"})
    CHECK_MESSAGE(full.err.find(figure) != std::string::npos, full.err);
  CHECK(full.err.find('\r') == std::string::npos);
  for (const char* policy : {"pq", "oracle", "streaming", "snapkv", "h2o", "sparq", "quest", "infllm"})
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
  check_refused(tiny.generate("-p ''"), "-p: prompt: is empty, and the tokenizer has no begin token");
  check_refused(tiny.generate(""), "standard input: prompt: is empty");
  check_refused(tiny.generate("-f -"), "standard input: prompt: is empty");
  check_refused(tiny.generate("<&-"), "standard input: cannot be read: Bad file descriptor");
  check_refused(tiny.generate("-f - <\"" + tiny.path().string() + "\""), "standard input: cannot be read: Is a directory");
  check_refused(tiny.generate("-f \"" + (tiny.path() / "config.json").string() + "\" -p ''"), "-p: is empty");
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
  for (const char* count : {"many", "-3"}) check_refused(tiny.generate(std::string("-p a -n ") + count), "--tokens");
  check_refused(tiny.generate("-p a --sink -1"), "--sink");
  check_refused(tiny.run("-m \"" + tiny.path().string() + "\" -p a -t 0"), "--threads");
  check_refused(tiny.generate("-p a --retrieve 5 --ratio 0.1"), "--retrieve");
  check_refused(tiny.generate("-p a --window 0"), "budget.window");
  for (const char* ratio : {"1.5", "nan"}) check_refused(tiny.generate(std::string("-p a --ratio ") + ratio), "budget.ratio");
  for (const char* wrong : {"1.5", "0.5 --window 16"}) check_refused(tiny.generate(std::string("-p a --window-share ") + wrong), "window");
  CHECK(tiny.generate("-p a -n 2 --sink 64").code == 0);
  check_refused(tiny.generate("-p a --sink 64 --min-tokens 64"), "sinks + 1");
  check_refused(tiny.generate("-p a --bits 3"), "bits");
  check_refused(tiny.generate("-p a --bits 9"), "bits");
  check_refused(tiny.generate("-p a --subspaces 3"), "subspaces");
  check_refused(tiny.generate("-p a --subspaces 4 --bits 8 --path joint"), "path");
  const outcome help = tiny.run("--help");
  CHECK(help.code == 0);
  for (const char* group : {"Model:", "Prompt and turns:", "Text that is generated:", "Attention while decoding:", "Measurements:"})
    CHECK_MESSAGE(help.out.find(std::string("\n") + group) != std::string::npos, help.out);
}

TEST_CASE("a model directory with anything missing or wrong in it is refused by file and key") {
  const bench tiny;
  const auto config_file = tiny.path() / "config.json", weights_file = tiny.path() / "model.safetensors";
  check_refused(tiny.run("-m /nowhere -p a"), "/nowhere: does not exist; a model is a directory with a config.json, or");

  for (const char* key : {"architectures", "hidden_size", "vocab_size"}) {
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
  parts.header[name]["dtype"] = "I32";
  parts.write(weights_file);
  check_refused(tiny.generate("-p a"), name + ": type I32 is not read");
  parts.header[name]["data_offsets"] = {0, 1u << 30};
  parts.write(weights_file);
  check_refused(tiny.generate("-p a"), name + ": data_offsets");
  write_text(weights_file, std::string("\xff\xff\xff\x7f\0\0\0\0{", 9));
  check_refused(tiny.generate("-p a"), weights_file.string() + ": header: is longer than the file");
  std::filesystem::remove(weights_file);
  check_refused(tiny.generate("-p a"), weights_file.string() + ": cannot be opened");
}

TEST_CASE("the prompt may come from standard input") {
  const bench tiny;
  write_text(tiny.path() / "prompt", "once upon");
  const outcome wanted = tiny.generate("-p 'once upon' -n 20");
  const std::string redirected = " <\"" + (tiny.path() / "prompt").string() + "\"";
  CHECK(tiny.generate("-n 20" + redirected).out == wanted.out);
  CHECK(tiny.generate("-n 20 -f -" + redirected).out == wanted.out);
  write_text(tiny.path() / "prompt", "once");
  CHECK(tiny.generate("-n 20 --policy full -f - -p ' upon'" + redirected).out == tiny.generate("-p 'once upon' -n 20 --policy full").out);
}

TEST_CASE("sampling repeats with its seed, and flags out of range are refused") {
  const bench tiny;
  const auto sampled = [&](const std::string& flags) { return tiny.generate("-p once -n 40 --policy full " + flags).out; };
  CHECK(sampled("--temp 3 --seed 1") == sampled("--temp 3 --seed 1"));
  CHECK(sampled("--temp 3 --seed 1") != sampled("--temp 3 --seed 2"));
  CHECK(sampled("--temp 3 --top-p 0.0001 --seed 1") == sampled("--temp 0"));
  for (const char* value : {"-1", "nan", "inf", "-nan", "warm"})
    check_refused(tiny.generate("-p a --temp " + std::string(value)), "--temp");
  for (const char* value : {"0", "-0.5", "1.001", "nan", "inf"})
    check_refused(tiny.generate("-p a --top-p " + std::string(value)), "--top-p");
  check_refused(tiny.generate("-p a --seed -1"), "--seed");
}

TEST_CASE("turns follow the prompt, on the command line or in a file; bad ones are refused") {
  const bench tiny;
  const auto turns = tiny.path() / "turns";
  write_text(turns, "one\n\ntwo\\nlines\n");
  const outcome typed = tiny.generate("-p begin -n 4 --turn one --turn 'two\nlines'");
  CHECK(typed.code == 0);
  CHECK(std::count(typed.out.begin(), typed.out.end(), '\n') >= 2);
  CHECK(tiny.generate("-p begin -n 4 --turns \"" + turns.string() + "\"").out == typed.out);
  CHECK(tiny.generate("-p begin -n 4 --turn one").out == typed.out.substr(0, 5));
  const outcome fresh = tiny.generate("-p begin -n 4 --fresh-turns --turn one --turn one");
  CHECK(fresh.out == typed.out.substr(0, 5) + typed.out.substr(0, 5));

  check_refused(tiny.generate("-p a --turn ''"), "--turn: is empty");
  check_refused(tiny.generate("-p a --fresh-turns"), "--fresh-turns: needs --turn or --turns");
  check_refused(tiny.generate("-p a --turn b --turns \"" + turns.string() + "\""), "--turns");
  check_refused(tiny.generate("-p a --turns \"" + (tiny.path() / "absent").string() + "\""), "/absent: cannot be read");
  for (const char* nothing : {"", "\n\n"}) {
    write_text(turns, nothing);
    check_refused(tiny.generate("-p a --turns \"" + turns.string() + "\""), "/turns: holds no turn");
  }
  write_text(turns, "a\\b\n");
  check_refused(tiny.generate("-p a --turns \"" + turns.string() + "\""), "/turns: line 1: after a backslash expected n");
  check_refused(tiny.generate("-p abcde --turn fgh --turn ij -c 10"), "-p: prompt: 11 tokens with the turns are longer than the context");
}

TEST_CASE("the JSON document has everything about a run, and its text on stdout is not touched by it") {
  const bench tiny;
  const auto file = tiny.path() / "run.json";
  const std::string arguments = "-p 'once upon a time' --turn x --turn yz -n 6 --policy full --temp 2 --seed 5 ";
  const outcome plain = tiny.generate(arguments);
  const outcome got = tiny.generate(arguments + "--quality --compare full --json \"" + file.string() + "\"");
  CHECK_MESSAGE(got.code == 0, got.err);
  CHECK(got.out == plain.out);
  const auto document = nlohmann::json::parse(contents(file));
  CHECK(document.at("settings").at("seed") == 5);
  CHECK(document.at("settings").at("temperature") == 2);
  CHECK(document.at("settings").at("policy") == "full");
  CHECK(document.at("model").at("layers") == tiny.shape().layers);
  CHECK(document.at("prompt").at("tokens") == 16);
  CHECK(document.at("memory").at("capacity_tokens") == 16 + 3 + 12);
  for (const char* time : {"prefill_seconds", "first_token_seconds", "decode_tokens_per_second"})
    CHECK(document.at("times").at(time).get<double>() > 0);
  CHECK(document.at("statistics").at("steps") == 3 + 11);  // both turns, both replies but for the last token
  CHECK(document.at("statistics").at("quality").at("measured_steps") == 12);
  CHECK(document.at("statistics").at("quality").at("attention_mass").at("mean").get<double>() == doctest::Approx(1));
  REQUIRE(document.at("turns").size() == 2);
  std::string bytes;
  for (const auto& turn : document.at("turns")) {
    for (const auto& token : turn.at("reply").at("tokens")) bytes += static_cast<char>(token.get<int>());
    bytes += '\n';
    CHECK(turn.at("reply").at("ended") == "token limit");
    CHECK(turn.at("comparison").at("departs_at") == nullptr);  // full against full
    REQUIRE(turn.at("comparison").at("logit_differences").size() == 6);
    for (const auto& step : turn.at("comparison").at("logit_differences")) CHECK(step.at("largest") == 0);
  }
  CHECK(bytes == got.out);
  CHECK(got.err.find("turn 2: the same text as full, 6 tokens") != std::string::npos);

  CHECK(tiny.generate(arguments + "--json \"" + file.string() + "\"").code == 0);  // replaced, nothing else is left beside it
  CHECK_FALSE(nlohmann::json::parse(contents(file)).at("turns").at(0).contains("comparison"));
  CHECK(std::distance(std::filesystem::directory_iterator(tiny.path()), {}) == 3);
  std::filesystem::create_symlink("run.json", tiny.path() / "link");
  CHECK(tiny.generate(arguments + "--fresh-turns --json \"" + (tiny.path() / "link").string() + "\"").code == 0);
  CHECK(std::filesystem::is_symlink(tiny.path() / "link"));
  CHECK(nlohmann::json::parse(contents(file)).at("settings").at("fresh_turns") == true);
}

TEST_CASE("a policy that misses what it needs departs from full, and logits differ from the first decoded token on") {
  const bench tiny;
  const auto file = tiny.path() / "run.json";
  write_text(tiny.path() / "prompt", std::string(200, 'a') + "bcdefghij klmnop" + std::string(200, 'q'));
  const outcome got = tiny.generate("-f \"" + (tiny.path() / "prompt").string() +
                                    "\" -p xyz -n 60 --policy streaming --ratio 0 --compare full --json \"" + file.string() + "\"");
  CHECK_MESSAGE(got.code == 0, got.err);
  const auto document = nlohmann::json::parse(contents(file));
  const auto& turn = document.at("turns").at(0);
  const auto departs = turn.at("comparison").at("departs_at").get<std::size_t>();
  const auto &ours = turn.at("reply").at("tokens"), &full = turn.at("comparison").at("full").at("tokens");
  for (std::size_t i = 0; i < departs; ++i) CHECK(ours.at(i) == full.at(i));
  CHECK(ours.at(departs) != full.at(departs));
  CHECK(turn.at("comparison").at("logit_differences").size() == departs + 1);
  CHECK(turn.at("comparison").at("logit_differences").at(0).at("largest").get<double>() > 0);
  CHECK(got.err.find("departs from full's text at token " + std::to_string(departs + 1)) != std::string::npos);
}

TEST_CASE("an output file that cannot be written is refused before the work, and nothing is left of it") {
  const bench tiny;
  const auto refused = [&](const std::filesystem::path& file, const std::string& what) {
    check_refused(tiny.generate("-p a --json \"" + file.string() + "\""), file.string() + ": cannot be written: " + what);
  };
  refused(tiny.path() / "absent" / "run.json", "No such file or directory");
  refused(tiny.path(), "is a directory");
  refused(tiny.path() / "config.json" / "run.json", "Not a directory");
  refused("/dev/null", "is no plain file");
  const std::string json = " --json \"" + (tiny.path() / "run.json").string() + "\"";
  check_refused(tiny.generate("-p ''" + json), "prompt: is empty");
  check_refused(tiny.generate("-p a --bits 3" + json), "bits");
  check_refused(tiny.generate("-p a -c 513" + json), "-c: 513");
  check_refused(tiny.generate("-p a --compare pq" + json), "--compare");
  check_refused(tiny.generate("-p a --compare ''" + json), "--compare");
  CHECK(std::distance(std::filesystem::directory_iterator(tiny.path()), {}) == 2);  // the model's files alone
  const outcome full_disk = tiny.run("-m \"" + tiny.path().string() + "\" -p a >/dev/full 2>/dev/null; test $? = 2 && echo refused");
  CHECK(full_disk.out == "refused\n");
}

TEST_CASE("perplexity of a file's last tokens; a file that does not serve is refused") {
  const bench tiny;
  const auto text = tiny.path() / "text", file = tiny.path() / "run.json";
  write_text(text, std::string(300, 'a') + "bcdefghijklmnop" + std::string(100, 'q'));
  const std::string scored = "--perplexity \"" + text.string() + "\" ";
  const outcome got = tiny.generate(scored + "--perplexity-tokens 50 --policy streaming --ratio 0 --quality --compare full --json \"" +
                                    file.string() + "\"");
  CHECK_MESSAGE(got.code == 0, got.err);
  CHECK(got.out == "");
  const auto perplexity = nlohmann::json::parse(contents(file)).at("perplexity");
  CHECK(perplexity.at("full").at("tokens") == 50);
  CHECK(perplexity.at("full").at("perplexity") != perplexity.at("policy").at("perplexity"));
  CHECK(perplexity.at("policy").at("divergence_from_full").get<double>() > 0);
  const outcome full = tiny.generate(scored + "--perplexity-tokens 50 --policy full --json \"" + file.string() + "\"");
  CHECK(nlohmann::json::parse(contents(file)).at("perplexity").at("policy") == perplexity.at("full"));
  CHECK(full.err.find("of the last 50 tokens") != std::string::npos);
  CHECK(tiny.generate(scored + "--perplexity-tokens 414").code == 0);

  check_refused(tiny.generate(scored + "--perplexity-tokens 415"), "/text: has 415 tokens; expected at least one before the 415");
  check_refused(tiny.generate(scored), "/text: has 415 tokens; expected at least one before the 512");
  check_refused(tiny.generate(scored + "--perplexity-tokens 0"), "--perplexity-tokens");
  check_refused(tiny.generate(scored + "--perplexity-tokens 50 -c 414"), "/text: 415 tokens are longer than the context of 414");
  check_refused(tiny.generate(scored + "-p a"), "--perplexity: generates no text: not with --prompt");
  check_refused(tiny.generate("-p a --perplexity-tokens 5"), "--perplexity");
  check_refused(tiny.generate("--perplexity \"" + (tiny.path() / "absent").string() + "\""), "/absent: cannot be read");
  write_text(text, "");
  check_refused(tiny.generate(scored), "/text: has 0 tokens");
}

TEST_CASE("a dry run prints the memory of a run without reading a weight") {
  const bench tiny;
  const outcome real = tiny.generate("-p " + std::string(100, 'a') + " -n 1000 --json \"" + (tiny.path() / "real.json").string() + "\"");
  CHECK(real.code == 0);
  std::filesystem::remove(tiny.path() / "model.safetensors");
  const outcome dry = tiny.generate("--dry-run --json \"" + (tiny.path() / "dry.json").string() + "\"");
  CHECK_MESSAGE(dry.code == 0, dry.err);
  CHECK(dry.out == "");
  const auto planned = nlohmann::json::parse(contents(tiny.path() / "dry.json")).at("memory");
  const auto held = nlohmann::json::parse(contents(tiny.path() / "real.json")).at("memory");
  for (const char* part : {"capacity_tokens", "slots", "weight_bytes", "kv_bytes", "index_bytes", "scratch_bytes"})
    CHECK(planned.at(part) == held.at(part));
  CHECK(real.err.find(std::to_string(planned.at("kv_bytes").get<std::size_t>()) + " (index") != std::string::npos);
  for (const char* part : {"weights", "KV cache", "index", "scratch", "prefilled rows", "prefill scratch"})
    CHECK_MESSAGE(dry.err.find(part) != std::string::npos, dry.err);
  CHECK(dry.err.find("512 tokens") != std::string::npos);
  CHECK(tiny.generate("--dry-run -c 100").err.find("100 tokens") != std::string::npos);
  check_refused(tiny.generate("--dry-run -c 513"), "-c: 513 is more than the model's 512 positions");
  check_refused(tiny.generate("--dry-run --bits 3"), "bits");
}

TEST_CASE("minillama-ask runs on any model, and refuses what it cannot ask") {
  const bench tiny({.max_positions = 2048});
  write_text(tiny.path() / "text", std::string(4000, 'e'));
  const auto ask = [&](const std::string& arguments) {
    return tiny.run("-m \"" + tiny.path().string() + "\" -t 2 --text \"" + (tiny.path() / "text").string() + "\" " + arguments,
                    MINILLAMA_ASK_PROGRAM);
  };
  const auto json_file = tiny.path() / "result.json";
  const std::string length = pqkv_cases::under_sanitizers ? " --length 700 " : " --length 1500 ";
  const outcome measured = ask("--questions 4 --contexts 2" + length + "--seed 3 --check-paths --json \"" + json_file.string() + "\"");
  CHECK_MESSAGE(measured.code == 0, measured.err);
  CHECK(measured.out.find("pq 4x8 1/40") != std::string::npos);
  const auto result = nlohmann::json::parse(contents(json_file));
  CHECK(result.at("questions").size() == 4);
  CHECK(result.at("policies").size() == 10);  // full, pq once on two paths and three times by scan, oracle and streaming twice
  CHECK(result.at("path_differences") == 0);
  CHECK(result.at("settings").at("seed") == 3);
  CHECK(ask("--demo" + length).code == 0);
  const outcome chosen =
      ask("--questions 2 --contexts 2" + length + "--ratios 20 10 20 --policy pq streaming --json \"" + json_file.string() + "\"");
  CHECK_MESSAGE(chosen.code == 0, chosen.err);
  const auto by_ratio = nlohmann::json::parse(contents(json_file));
  std::string labels;
  for (const auto& policy : by_ratio.at("policies")) labels += policy.at("label").get<std::string>() + ";";
  CHECK(labels == "full;pq 4x8 1/10;pq 4x8 1/20;streaming 1/10;streaming 1/20;");
  const outcome by_codes = ask("--questions 2 --contexts 1" + length +
                               "--ratios 10 --codes 2x6 2x5+4x4 --policy pq quest infllm --json \"" + json_file.string() + "\"");
  CHECK_MESSAGE(by_codes.code == 0, by_codes.err);
  const auto compared = nlohmann::json::parse(contents(json_file)).at("policies");
  CHECK(compared.size() == 5);  // full, pq twice, quest, infllm
  CHECK(compared.at(2).at("label") == "pq 2x5+4x4 1/10");
  CHECK(compared.at(2).at("residual").at("subspaces") == 4);
  const std::string program = "minillama-ask";
  const bench wide({.vocabulary = 257});
  check_refused(wide.run("-m \"" + wide.path().string() + "\" --demo", MINILLAMA_ASK_PROGRAM), "the model has 257 tokens", program);
  check_refused(wide.generate("-p a"), "tokenizer: a file is needed: the model has 257 tokens");
  check_refused(ask("--questions 3 --contexts 5"), "--questions", program);
  check_refused(ask("--questions 20 --contexts 1 --length 100"), "--length", program);
  check_refused(ask("--questions 2 --contexts 1 --length 2048"), "--length", program);
  check_refused(ask("--json /nowhere/file"), "/nowhere/file: cannot be written", program);
  check_refused(ask("--demo --json x"), "--json", program);
  check_refused(ask("--ratios 0"), "--ratios", program);
  check_refused(ask("--demo --ratios 10"), "--ratios", program);
  for (const char* codes : {"2", "2x", "2x6+", "2x6+0x8", "2x6+4x8+1x4", "-2x6", "2X6"})
    check_refused(ask(std::string("--ratios 10 --codes=") + codes), "--codes", program);
  check_refused(ask("--codes 2x6"), "--codes", program);
  check_refused(ask("--demo --length 1500 --text /nowhere"), "/nowhere: cannot be read", program);
}
