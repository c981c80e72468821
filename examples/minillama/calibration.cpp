// SPDX-License-Identifier: Apache-2.0
// Prompts repeat all tokens in turn: times of products and tiles do not depend on what they hold, those of clustering hardly.
#include "calibration.hpp"

#include <chrono>
#include <fstream>
#include <map>
#include <utility>
#include <vector>

#include "elapsed.hpp"
#include "json_file.hpp"
#include "load_error.hpp"
#include "prefill.hpp"

namespace minillama {
namespace {
constexpr const char* calibration_option = "--calibration";

/// What the seconds depend on, but for the machine.
nlohmann::json shapes_of(const model_config& config, const pool_runner& runner, const policy_settings& settings) {
  return {{"hidden", config.hidden},
          {"intermediate", config.intermediate},
          {"layers", config.layers},
          {"query_heads", config.query_heads},
          {"kv_heads", config.kv_heads},
          {"head_dim", config.head_dim},
          {"subspaces", settings.quantizer.subspaces},
          {"bits", settings.quantizer.bits},
          {"metric", static_cast<int>(settings.quantizer.metric)},
          {"threads", runner.threads()}};
}

/// The names of the numbers, in the file's order.
struct named_seconds {
  const char* name;
  double pqkv::overlap_model::*value;
};
constexpr named_seconds every_second[] = {{"clustering", &pqkv::overlap_model::a1},
                                          {"clustering_per_row_and_iteration", &pqkv::overlap_model::b1},
                                          {"layer", &pqkv::overlap_model::a2},
                                          {"layer_per_token", &pqkv::overlap_model::b2},
                                          {"layer_per_token_squared", &pqkv::overlap_model::c2}};

[[noreturn]] void refuse(const std::filesystem::path& file, const std::string& why) {
  throw load_error(calibration_option, file.string() + ": " + why);
}

pqkv::overlap_model read_calibration(const std::filesystem::path& file, const nlohmann::json& wanted) {
  const nlohmann::json document = read_object(file);
  const auto part = [&](const char* name) -> const nlohmann::json& {
    if (!document.contains(name) || !document.at(name).is_object()) refuse(file, std::string("no calibration: it has no \"") + name + "\"");
    return document.at(name);
  };
  const nlohmann::json &shapes = part("for"), &seconds = part("seconds");
  for (const auto& [name, value] : wanted.items()) {
    const std::string got = shapes.contains(name) ? shapes.at(name).dump() : "nothing";
    if (got != value.dump()) refuse(file, "a calibration for something else: " + name + " is " + got + ", here " + value.dump());
  }
  pqkv::overlap_model machine;
  for (const named_seconds& one : every_second) {
    const bool is_there = seconds.contains(one.name) && seconds.at(one.name).is_number();
    if (!is_there) refuse(file, std::string("no calibration: seconds.") + one.name + " is no number");
    machine.*one.value = seconds.at(one.name).get<double>();
  }
  if (!(machine.b1 > 0)) refuse(file, "no calibration: seconds.clustering_per_row_and_iteration must be above 0");
  return machine;
}

void write_calibration(const std::filesystem::path& file, const nlohmann::json& shapes, const pqkv::overlap_model& machine) {
  nlohmann::json seconds;
  for (const named_seconds& one : every_second) seconds[one.name] = machine.*one.value;
  std::filesystem::path beside = file;
  beside += ".part";
  std::ofstream out(beside);
  out << nlohmann::json{{"for", shapes}, {"seconds", seconds}}.dump(2) << '\n';
  out.close();
  std::error_code error;
  if (out) std::filesystem::rename(beside, file, error);
  if (out && !error) return;
  std::error_code ignored;
  std::filesystem::remove(beside, ignored);
  refuse(file, "cannot be written");
}
}  // namespace

pqkv::overlap_model calibrate(const model& llama, pool_runner& runner, const policy_settings& settings) {
  const model_config& config = llama.config();
  const pqkv::pq_shape shape{config.kv_heads, config.head_dim, settings.quantizer.subspaces, settings.quantizer.bits,
                             settings.quantizer.metric};
  pqkv::codebook book(shape);
  const host_policy cpu{runner, {}};
  pqkv::overlap_calibration timings;
  std::vector<pqkv::clustering_size> sizes;
  std::map<std::size_t, std::vector<float>> keys;  // of the last layer, by length
  const auto begin = std::chrono::steady_clock::now();
  for (const std::size_t n : {512u, 1024u, 2048u, 4096u}) {
    if (n > config.max_positions || n < 4 * shape.centroids()) continue;
    std::vector<token_id> tokens(n);
    for (std::size_t i = 0; i < n; ++i) tokens[i] = static_cast<token_id>(i * 2654435761u % config.vocabulary);
    const auto start = std::chrono::steady_clock::now();
    prefilled_prompt prompt = prefill(llama, tokens, runner);
    // The last layer attends for its last token alone.
    const double layers = static_cast<double>(config.layers > 1 ? config.layers - 1 : 1);
    timings.add_layer(n, seconds_since(start) / layers);
    keys[n] = std::move(prompt.layers.back().keys);
    sizes.push_back({n, 2}), sizes.push_back({n, 6});
  }
  pqkv::add_clusterings(
      timings, pqkv::as_const(pqkv::make_view(sizes.data(), sizes.size())), [&] { return seconds_since(begin); },
      [&](const pqkv::clustering_size& one) {
        const auto rows = pqkv::make_view(std::as_const(keys[one.rows]).data(), config.kv_heads, one.rows, config.head_dim);
        pqkv::train(cpu, rows, book, {.iterations = one.iterations, .seed = 0, .rows_per_centroid = 0});
      });
  return timings.fit();
}

pqkv::overlap_model kept_calibration(const std::filesystem::path& file, const model& llama, pool_runner& runner,
                                     const policy_settings& settings) {
  const nlohmann::json shapes = shapes_of(llama.config(), runner, settings);
  if (std::filesystem::exists(file)) return read_calibration(file, shapes);
  const pqkv::overlap_model machine = calibrate(llama, runner, settings);
  write_calibration(file, shapes, machine);
  return machine;
}

}  // namespace minillama
