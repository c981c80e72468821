// SPDX-License-Identifier: Apache-2.0
// --calibration as a user gives it: the file is written once and read again, and one that says something else is refused.
#include <doctest/doctest.h>

#include <filesystem>
#include <fstream>

#include "program.hpp"

using namespace minillama_test;

TEST_CASE("--calibration keeps what the preset found out, and refuses a file that says something else") {
  const bench tiny({.max_positions = 4096});
  const std::string json = (tiny.path() / "out.json").string(), file = (tiny.path() / "machine.json").string();
  const std::string prompt = "-p '" + std::string(300, 'a') + "bcdefghijklmnopqrstuvwxyz 0123456789" + "' -n 2 --bits 4 ";
  const std::string kept = prompt + "--preset paper --calibration \"" + file + "\" ";
  const auto found = [&](const std::string& arguments) {
    const outcome got = tiny.generate(arguments + "--json \"" + json + "\"");
    CHECK_MESSAGE(got.code == 0, got.err);
    return nlohmann::json::parse(contents(json)).at("overlap");
  };
  const auto first = found(kept);
  CHECK(std::filesystem::exists(file));
  CHECK(!std::filesystem::exists(file + ".part"));
  const std::string written = contents(file);
  CHECK(found(kept) == first);  // timings would differ
  CHECK(contents(file) == written);
  const auto refused = [&](const nlohmann::json& document, const std::string& why) {
    std::ofstream(file) << document.dump();
    check_refused(tiny.generate(kept), "--calibration: " + file + ": " + why);
  };
  const auto whole = nlohmann::json::parse(written);
  auto other = whole;
  other["for"]["kv_heads"] = 77;
  refused(other, "a calibration for something else: kv_heads is 77, here ");
  other = whole, other["for"].erase("threads");
  refused(other, "a calibration for something else: threads is nothing, here ");
  other = whole, other.erase("seconds");
  refused(other, "no calibration: it has no \"seconds\"");
  other = whole, other["seconds"]["layer"] = "soon";
  refused(other, "no calibration: seconds.layer is no number");
  other = whole, other["seconds"]["clustering_per_row_and_iteration"] = 0;
  refused(other, "no calibration: seconds.clustering_per_row_and_iteration must be above 0");
  std::ofstream(file) << "not json";
  check_refused(tiny.generate(kept), file);
  check_refused(tiny.generate(prompt + "--preset paper --calibration /nowhere/at/all"),
                "--calibration: /nowhere/at/all: cannot be written");
  check_refused(tiny.generate(prompt + "--calibration \"" + file + "\""), "--preset");
}
