// SPDX-License-Identifier: Apache-2.0
// Sampling against a plain oracle: which tokens are in the nucleus, how often each is drawn, and that a seed decides everything.
#include "sampling.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <numeric>
#include <random>
#include <stdexcept>
#include <string>

namespace {

using namespace minillama;

/// Probabilities of the nucleus, by sorting: the smallest prefix of (weight descending, id ascending) that reaches the share.
std::map<token_id, long double> plain_nucleus(const std::vector<float>& logits, double temperature, double top_p) {
  const float largest = *std::max_element(logits.begin(), logits.end());
  std::vector<long double> weights;
  for (const float logit : logits)
    weights.push_back(
        std::exp((static_cast<long double>(logit) - static_cast<long double>(largest)) / static_cast<long double>(temperature)));
  std::vector<token_id> order(logits.size());
  std::iota(order.begin(), order.end(), 0u);
  std::stable_sort(order.begin(), order.end(), [&](token_id a, token_id b) { return weights[a] > weights[b]; });
  const long double total = std::accumulate(weights.begin(), weights.end(), 0.0L);
  std::map<token_id, long double> nucleus;
  long double kept = 0;
  for (const token_id token : order) {
    nucleus[token] = weights[token];
    kept += weights[token];
    if (top_p < 1 && kept >= static_cast<long double>(top_p) * total) break;
  }
  for (auto& [token, weight] : nucleus) weight /= kept;
  return nucleus;
}

std::vector<token_id> picks(const std::vector<float>& logits, const sampling_settings& settings, std::size_t count) {
  sampler one(settings);
  std::vector<token_id> tokens;
  for (std::size_t i = 0; i < count; ++i) tokens.push_back(one.pick(logits));
  return tokens;
}

std::vector<float> random_logits(std::size_t count, std::uint64_t seed) {
  std::mt19937_64 bits(seed);
  std::vector<float> logits(count);
  for (float& logit : logits) logit = static_cast<float>(bits() >> 40) * 0x1p-22f;  // 0 to 4
  return logits;
}

}  // namespace

TEST_CASE("draws are from the nucleus alone, as often as their probability says") {
  constexpr std::size_t draws = 40000;
  for (const double temperature : {0.3, 1.0, 2.5}) {
    for (const double top_p : {0.05, 0.5, 0.9, 1.0}) {
      CAPTURE(temperature);
      CAPTURE(top_p);
      const auto logits = random_logits(23, 7);
      const auto nucleus = plain_nucleus(logits, temperature, top_p);
      std::map<token_id, std::size_t> counts;
      for (const token_id token : picks(logits, {temperature, top_p, 11}, draws)) ++counts[token];
      for (const auto& [token, count] : counts) CHECK(nucleus.count(token) == 1);
      for (const auto& [token, probability] : nucleus) {
        const auto p = static_cast<double>(probability);
        const double wanted = p * draws, deviation = std::sqrt(wanted * (1 - p)) + 1;
        CHECK(std::abs(static_cast<double>(counts[token]) - wanted) < 5 * deviation);
      }
    }
  }
}

TEST_CASE("of equal tokens the lower ids enter the nucleus, and a share met exactly ends it") {
  const std::vector<float> equal(8, 1.5f);
  for (const auto& share : {std::pair{0.125, 1u}, {0.126, 2u}, {0.5, 4u}, {0.51, 5u}, {1.0, 8u}}) {
    const auto top_p = share.first;  // no structured binding: clang 14 cannot name those in a lambda
    const auto size = share.second;
    const auto drawn = picks(equal, {1.0, top_p, 3}, 2000);
    CAPTURE(top_p);
    CHECK(*std::max_element(drawn.begin(), drawn.end()) == size - 1);
    CHECK(*std::min_element(drawn.begin(), drawn.end()) == 0);
  }
  const std::vector<float> tied{0.0f, 2.0f, 1.0f, 2.0f, 2.0f};  // the nucleus of one is the first of the three
  for (const token_id token : picks(tied, {1.0, 0.01, 5}, 100)) CHECK(token == 1);
}

TEST_CASE("the smallest nucleus is the likeliest token, on every size of vocabulary") {
  for (const std::size_t count : {1u, 2u, 3u, 256u, 1000u}) {
    const auto logits = random_logits(count, count);
    const auto best = static_cast<token_id>(std::max_element(logits.begin(), logits.end()) - logits.begin());
    CHECK(picks(logits, {0, 1, 9}, 1).front() == best);
    for (const token_id token : picks(logits, {5.0, 1e-9, 9}, 20)) CHECK(token == best);
    for (const token_id token : picks(logits, {std::numeric_limits<double>::denorm_min(), 1, 9}, 20)) CHECK(token == best);
  }
}

TEST_CASE("a seed decides the draws, another seed draws otherwise") {
  const auto logits = random_logits(256, 1);
  CHECK(picks(logits, {1, 0.9, 5}, 100) == picks(logits, {1, 0.9, 5}, 100));
  CHECK(picks(logits, {1, 0.9, 5}, 100) != picks(logits, {1, 0.9, 6}, 100));
}

TEST_CASE("logits far apart or without bound below are no trouble; NaN and +infinity are refused by token") {
  constexpr float infinity = std::numeric_limits<float>::infinity();
  for (const token_id token : picks({-3e38f, 3e38f, -infinity}, {1, 1, 0}, 20)) CHECK(token == 1);
  CHECK(picks({-infinity, 3e38f, -3e38f}, {0, 1, 0}, 1).front() == 1);
  const float nan = std::numeric_limits<float>::quiet_NaN();
  for (const double temperature : {0.0, 1.0}) {
    const auto refused = [&](const std::vector<float>& logits) {
      try {
        picks(logits, {temperature, 1, 0}, 1);
      } catch (const std::domain_error& error) {
        return std::string(error.what());
      }
      return std::string();
    };
    CAPTURE(temperature);
    CHECK(refused({0, nan}).find("token 1") != std::string::npos);
    CHECK(refused({nan, 0}).find("token 0") != std::string::npos);
    CHECK(refused({0, 1, infinity}).find("token 2") != std::string::npos);
    CHECK(refused({-infinity, -infinity}) != "");
  }
}

TEST_CASE("settings out of range are refused") {
  constexpr double nan = std::numeric_limits<double>::quiet_NaN(), infinity = std::numeric_limits<double>::infinity();
  for (const double temperature : {-0.1, nan, infinity}) CHECK_THROWS_AS(sampler({temperature, 1, 0}), std::invalid_argument);
  for (const double top_p : {0.0, -1.0, 1.5, nan}) CHECK_THROWS_AS(sampler({1, top_p, 0}), std::invalid_argument);
}
