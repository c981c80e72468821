// SPDX-License-Identifier: Apache-2.0
// Rotary frequencies, plain and scaled as Llama 3.1's, against figures of transformers 5.23 (float32, so to a few roundings).
#include "rotary.hpp"

#include <doctest/doctest.h>

#include <array>
#include <cmath>

namespace {

minillama::model_config config_for(double theta) {
  minillama::model_config config;
  config.set_head_dim(16);
  config.rope_theta = theta;
  return config;
}

}  // namespace

TEST_CASE("plain frequencies are powers of the base") {
  const auto frequencies = minillama::rotary_frequencies(config_for(10000.0));
  REQUIRE(frequencies.size() == 8);
  for (std::size_t i = 0; i < 8; ++i) CHECK(frequencies[i] == doctest::Approx(std::pow(10.0, -0.5 * static_cast<double>(i))).epsilon(1e-6));
}

TEST_CASE("llama3 scaling keeps fast pairs, slows the slow ones by the factor, and goes over between") {
  auto config = config_for(500000.0);
  config.rope_scaling = minillama::llama3_scaling{.factor = 32, .low_freq_factor = 1, .high_freq_factor = 4, .original_positions = 8192};
  const auto frequencies = minillama::rotary_frequencies(config);
  // ROPE_INIT_FUNCTIONS["llama3"] of a LlamaConfig with these values: four kept, one between, three slowed.
  const std::array wanted{1.0,
                          0.193922758102417,
                          0.03760603070259094,
                          0.00729266507551074,
                          0.000429556705057621,
                          8.570255886297673e-06,
                          1.6619674170215148e-06,
                          3.2229328894572973e-07};
  REQUIRE(frequencies.size() == wanted.size());
  for (std::size_t i = 0; i < wanted.size(); ++i) CHECK(static_cast<double>(frequencies[i]) == doctest::Approx(wanted[i]).epsilon(1e-6));

  std::get<minillama::llama3_scaling>(config.rope_scaling).factor = 1;  // nothing slows
  const auto plain = minillama::rotary_frequencies(config_for(500000.0)), same = minillama::rotary_frequencies(config);
  for (std::size_t i = 0; i < wanted.size(); ++i) CHECK(same[i] == doctest::Approx(plain[i]).epsilon(1e-6));
}

TEST_CASE("linear scaling slows every pair, and pairs that pad a head do not turn") {
  auto config = config_for(10000.0);
  config.rope_scaling = minillama::linear_scaling{4};
  config.set_head_dim(10);
  const auto frequencies = minillama::rotary_frequencies(config);
  REQUIRE(frequencies.size() == 8);
  for (std::size_t i = 0; i < 5; ++i)
    CHECK(frequencies[i] == doctest::Approx(0.25 * std::pow(10000.0, -0.2 * static_cast<double>(i))).epsilon(1e-6));
  for (std::size_t i = 5; i < 8; ++i) CHECK(frequencies[i] == 0.0f);
}

TEST_CASE("yarn goes over from one speed to the other in the number of the pair") {
  const auto near = [](const std::vector<float>& got, const std::array<double, 8>& wanted) {
    for (std::size_t i = 0; i < wanted.size(); ++i) CHECK(static_cast<double>(got[i]) == doctest::Approx(wanted[i]).epsilon(1e-6));
  };
  // _compute_yarn_parameters, in double, of a head of 16 dimensions.
  auto config = config_for(10000.0);
  config.rope_scaling = minillama::yarn_scaling{.factor = 4, .original_positions = 512};
  near(minillama::rotary_frequencies(config),
       {1.0, 0.2569350598886808, 0.0625, 0.01383496476323666, 0.0025, 0.000790569415042095, 0.00025, 7.905694150420948e-05});
  config = config_for(500000.0);
  config.rope_scaling =
      minillama::yarn_scaling{.factor = 32, .beta_fast = 16, .beta_slow = 2, .original_positions = 4096, .whole_pairs = false};
  near(minillama::rotary_frequencies(config), {1.0, 0.19392274474868576, 0.03760603093086393, 0.0031695846946752987, 4.419417382415922e-05,
                                               8.570255489881478e-06, 1.661967467795309e-06, 3.2229329303788936e-07});
}

TEST_CASE("a head's pairs are half a head apart, and every head turns alike") {
  std::array<float, 8> heads{1, 0, 0, 2, 3, 0, 0, 4};
  const std::array cosines{0.0f, 1.0f}, sines{1.0f, 0.0f};
  minillama::rotate(heads, cosines, sines);
  CHECK(heads == std::array<float, 8>{0, 0, 1, 2, 0, 0, 3, 4});
}
