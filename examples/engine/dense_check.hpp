// SPDX-License-Identifier: Apache-2.0
// The engine's own dense attention in double, and how far the policy's output is from it: the share of the softmax weight that the
// attended tokens hold, and the distance of the outputs. Shares no code with pqkv.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "kv_pages.hpp"

namespace engine {

class dense_check {
 public:
  /// One query token of one layer; query and out [hq, d], lse [hq].
  /// @param attended  tokens that the policy attended to
  void compare(const slot_rows& store, pqkv::view<const float, 2> query, pqkv::view<const float, 2> out, pqkv::view<const float, 1> lse,
               std::size_t attended) {
    const std::size_t hq = query.extent(0), group = hq / store.h;
    for (std::size_t q = 0; q < hq; ++q) {
      const double dense_lse = attend(store, q / group, &query(q, 0));
      double difference = 0, length = 0;
      for (std::size_t i = 0; i < store.d; ++i) {
        difference += (out(q, i) - sum_[i]) * (out(q, i) - sum_[i]);
        length += sum_[i] * sum_[i];
      }
      const double mass = std::exp(lse(q) - dense_lse), error = std::sqrt(difference / length);
      finite_ = finite_ && std::isfinite(mass) && std::isfinite(error);
      largest_mass_ = std::max(largest_mass_, mass);
      if (attended == store.n) {
        dense_error_ = std::max(dense_error_, error);
        ++compared_whole_;
        continue;
      }
      mass_ += mass, error_ += error, recent_mass_ += recent(store.n, attended, dense_lse);
      attended_ += static_cast<double>(attended), tokens_ += static_cast<double>(store.n);
      ++compared_;
    }
  }

  /// Nothing spoiled, and both kinds of step were seen: those that select and those that attend to everything.
  bool complete() const { return finite_ && compared_ > 0 && compared_whole_ > 0; }

  // Means over the steps that select:
  double tokens() const { return attended_ / tokens_; }          // share of the tokens attended
  double mass() const { return mass_ / count(); }                // share of the weight that they hold
  double recent_mass() const { return recent_mass_ / count(); }  // share that as many first and last tokens hold
  double error() const { return error_ / count(); }              // |out - dense| / |dense|

  double largest_mass() const { return largest_mass_; }  // of all steps; 1 where nothing is left out
  double dense_error() const { return dense_error_; }    // largest error where all tokens are attended

 private:
  double count() const { return static_cast<double>(compared_); }
  double attend(const slot_rows& store, std::size_t head, const float* query) {
    logit_.assign(store.n, 0);
    sum_.assign(store.d, 0);
    for (std::size_t t = 0; t < store.n; ++t) {
      const bfloat16* key = store.key(head, t);
      for (std::size_t i = 0; i < store.d; ++i)
        logit_[t] += static_cast<double>(query[i]) * static_cast<double>(static_cast<float>(key[i]));
      logit_[t] /= std::sqrt(static_cast<double>(store.d));
    }
    const double top = *std::max_element(logit_.begin(), logit_.end());
    double total = 0;
    for (std::size_t t = 0; t < store.n; ++t) {
      const double weight = std::exp(logit_[t] - top);
      const bfloat16* value = store.value(head, t);
      for (std::size_t i = 0; i < store.d; ++i) sum_[i] += weight * static_cast<double>(static_cast<float>(value[i]));
      total += weight;
    }
    for (double& x : sum_) x /= total;
    return top + std::log(total);
  }
  double recent(std::size_t n, std::size_t attended, double dense_lse) const {
    const std::size_t sinks = std::min<std::size_t>(attended, 16);
    double mass = 0;
    for (std::size_t t = 0; t < n; ++t)
      if (t < sinks || t + (attended - sinks) >= n) mass += std::exp(logit_[t] - dense_lse);
    return mass;
  }

  std::vector<double> logit_, sum_;
  double mass_ = 0, largest_mass_ = 0, recent_mass_ = 0, error_ = 0, dense_error_ = 0, attended_ = 0, tokens_ = 0;
  std::size_t compared_ = 0, compared_whole_ = 0;
  bool finite_ = true;
};

}  // namespace engine
