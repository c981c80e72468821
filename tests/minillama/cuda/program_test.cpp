// SPDX-License-Identifier: Apache-2.0
// The program with --device cuda, as a user runs it: full attention gives the host's text, whatever the turns; reports name the device
// and leave out what is not measured there.
#include "../program.hpp"

using namespace minillama_test;

namespace {

nlohmann::json json_of(const std::filesystem::path& path) { return nlohmann::json::parse(contents(path)); }

}  // namespace

TEST_CASE("text, turns and sampling are the host's under full attention") {
  const bench tiny;
  write_text(tiny.path() / "prompt", std::string(200, 'a') + "bcdefghij klmnop" + std::string(60, 'q'));
  const std::string file = "-f \"" + (tiny.path() / "prompt").string() + "\" ";
  for (const std::string arguments :
       {"-p 'once upon' -n 20 --policy full", "-p 'once upon' -n 20 --ratio 1", "-p 'once upon' -n 20 --policy streaming --ratio 1 -c 29",
        "-p begin -n 4 --policy full --turn one --turn two", "-p begin -n 4 --policy full --fresh-turns --turn one --turn one",
        "-p once -n 30 --policy full --temp 2 --top-p 0.9 --seed 3", "-p abcdef -n 100 -c 10 --policy full", "-p x -n 0"}) {
    CAPTURE(arguments);
    const outcome host = tiny.generate(arguments), device = tiny.generate(arguments + std::string(" --device cuda"));
    CHECK_MESSAGE(device.code == 0, device.err);
    CHECK(device.out == host.out);
  }
  CHECK(tiny.generate(file + "-p xyz -n 60 --bits 4 --device cuda").code == 0);
}

TEST_CASE("a model with a window has the host's text under every policy") {
  const bench tiny(tiny_shape{.sliding_window = 40});
  for (const std::string policy : {"full", "pq", "streaming"})
    for (const std::string& arguments :
         {std::string("-p abc -n 100"), "-p '" + std::string(100, 'e') + "' -n 20 --turn fgh", std::string("-p abc -n 20 --ratio 1")}) {
      CAPTURE(policy + " " + arguments);
      const outcome host = tiny.generate(arguments + " --policy " + policy);
      const outcome device = tiny.generate(arguments + " --device cuda --policy " + policy);
      CHECK_MESSAGE(device.code == 0, device.err);
      CHECK(device.out == host.out);
      const bool outgrown = arguments.find("ratio") == std::string::npos;
      CHECK((device.err.find("window                        40 tokens") != std::string::npos) == outgrown);
    }
}

TEST_CASE("reports name the device, count what was attended to, and have null for what is not measured") {
  const bench tiny;
  const auto there = tiny.path() / "there.json", here = tiny.path() / "here.json";
  const std::string arguments = "-p '" + std::string(300, 'a') + "bcd' --turn x -n 6 --policy full --compare full --json ";
  const outcome got = tiny.generate(arguments + "\"" + there.string() + "\" --device cuda");
  REQUIRE_MESSAGE(got.code == 0, got.err);
  REQUIRE(tiny.generate(arguments + "\"" + here.string() + "\"").code == 0);
  CHECK(got.err.rfind("device                ", 0) == 0);
  CHECK(got.err.find("not measured on the device") != std::string::npos);
  const auto device = json_of(there), host = json_of(here);
  CHECK(host.at("device") == "host");
  CHECK(device.at("device") != "host");
  CHECK(device.at("settings").at("device") == "cuda");
  CHECK(device.at("times").at("prefill_shares").is_null());
  CHECK(device.at("statistics").at("decode_shares").is_null());
  CHECK(device.at("statistics").at("bytes_per_token").at("index").is_null());
  CHECK(device.at("statistics").at("tokens_attended") == host.at("statistics").at("tokens_attended"));
  CHECK(device.at("statistics").at("bytes_per_token").at("rows") == host.at("statistics").at("bytes_per_token").at("rows"));
  CHECK(device.at("statistics").at("steps") == host.at("statistics").at("steps"));
  CHECK(device.at("memory").at("kv_bytes") == host.at("memory").at("kv_bytes"));
  CHECK(device.at("turns").at(0).at("reply") == host.at("turns").at(0).at("reply"));
  for (const auto& step : device.at("turns").at(0).at("comparison").at("logit_differences")) CHECK(step.at("largest") == 0);
}

TEST_CASE("perplexity on the device is the host's") {
  const bench tiny;
  const auto text = tiny.path() / "text", file = tiny.path() / "run.json";
  write_text(text, std::string(300, 'a') + "bcdefghijklmnop" + std::string(100, 'q'));
  const auto scored = [&](const std::string& device) {
    const outcome got = tiny.generate("--perplexity \"" + text.string() + "\" --perplexity-tokens 50 --policy full --json \"" +
                                      file.string() + "\" --device " + device);
    REQUIRE_MESSAGE(got.code == 0, got.err);
    return json_of(file).at("perplexity").at("policy").at("negative_log_likelihood").get<double>();
  };
  CHECK(scored("cuda") == doctest::Approx(scored("host")).epsilon(1e-5));
}
