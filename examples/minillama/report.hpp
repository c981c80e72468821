// SPDX-License-Identifier: Apache-2.0
// What a run says about itself: lines on stderr, and the same and more as JSON.
#pragma once
#include <nlohmann/json.hpp>
#include <optional>
#include <span>
#include <vector>

#include "comparison.hpp"
#include "footprint.hpp"
#include "options.hpp"
#include "perplexity.hpp"
#include "quality.hpp"

namespace minillama {

/// What one session cost and found; what is kept of it when its memory goes.
struct session_record {
  session_statistics statistics;
  pqkv::memory_plan memory;
  double index_seconds = 0;                // of work: making the caches and the selectors' indexes
  std::optional<quality_summary> quality;  // on request
};

/// Seconds since the start of the run's prefill.
struct run_times {
  double prefill = 0;     // without what it waited for caches and indexes
  double index_wait = 0;  // that
  std::optional<part_seconds> prefill_parts;
  std::vector<double> tokens;  // when each token of the replies was picked

  std::optional<double> first_token() const { return tokens.empty() ? std::nullopt : std::optional(tokens.front()); }
  std::optional<double> second_token() const { return tokens.size() < 2 ? std::nullopt : std::optional(tokens[1]); }
  /// From one token to the next, from the second on: the median.
  std::optional<double> output_token() const;
};

/// Collects a session's record. @param meter  null: quality was not asked for
session_record record_of(const session& of, double index_seconds, const quality_meter* meter);

/// @param description  of the engine
void print_device(device_name device, const std::string& description);
void print_statistics(const session_record& record, const run_times& times, std::size_t prefilled);
void print_quality(const quality_summary& quality);
/// A line where tokens of a sequence of so many leave the model's window.
void print_window(const model_config& config, std::size_t capacity);
/// What the overlap rule found out about this machine, and came to for the prompt.
void print_overlap(const pqkv::overlap_model& machine, std::size_t iterations);
void print_comparison(std::span<const reply_comparison> compared, const session_record& full);

// Parts of the JSON document.
nlohmann::json settings_of(const options& o);
nlohmann::json overlap_of(const pqkv::overlap_model& machine, std::size_t iterations);
nlohmann::json model_of(const options& o, const model_config& config);
nlohmann::json memory_of(const footprint& planned, const run_shape& shape);
nlohmann::json record_of(const session_record& record);
nlohmann::json times_of(const session_record& record, const run_times& times, std::size_t prefilled);
nlohmann::json reply_of(const reply& given);
nlohmann::json comparison_of(const reply_comparison& compared, const reply& full);
/// Shares of a time that its parts took; null where there was none, or nobody told them apart.
nlohmann::json shares_of(const std::optional<part_seconds>& parts, double seconds);
/// Bytes of keys, values and indexes that a step read; null where nobody counted.
nlohmann::json bytes_per_token_of(const session_statistics& s);
nlohmann::json score_of(const text_score& score);

/// The document's text. Text that is no UTF-8 gets U+FFFD in it; the tokens beside it are exact.
std::string text_of(const nlohmann::json& document);

}  // namespace minillama
