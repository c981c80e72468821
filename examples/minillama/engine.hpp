// SPDX-License-Identifier: Apache-2.0
// Where a model computes, chosen at run time: on the host's threads, or on a GPU. A prompt stays where it was computed, and sessions
// start from it there; what talks to a session need not know.
#pragma once
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "footprint.hpp"
#include "model.hpp"
#include "policy.hpp"
#include "prefill.hpp"
#include "session.hpp"

namespace minillama {

enum class device_name { host, cuda };

inline const std::map<std::string, device_name>& device_names() {
  static const std::map<std::string, device_name> names{{"host", device_name::host}, {"cuda", device_name::cuda}};
  return names;
}

/// A prompt that was computed; sessions of any policy start at its end. Its engine outlives it.
class held_prompt {
 public:
  virtual ~held_prompt() = default;

  /// [vocabulary] of the last position, in host memory.
  virtual std::span<const float> logits() const = 0;
  /// Of the time that prefill took; none where it is not told apart.
  virtual std::optional<part_seconds> parts() const = 0;
  /// Moves the prompt into caches and builds the selector's indexes; waits until they are there. The prompt outlives the session.
  ///
  /// @param room  tokens that may follow the prompt
  /// @throws pqkv::shape_error, pqkv::value_error when model and settings do not fit; std::logic_error when start_last() took the rows
  virtual std::unique_ptr<session> start(const policy_settings& settings, std::size_t room, session_kind kind) const = 0;
  /// The same for the last session of the prompt, which may take its rows: no other can start afterwards, even where this one throws.
  /// logits() stay.
  virtual std::unique_ptr<session> start_last(const policy_settings& settings, std::size_t room, session_kind kind) {
    return start(settings, room, kind);
  }
};

/// A session at the end of a prompt that no other session starts from.
struct started_session {
  std::unique_ptr<held_prompt> prompt;  // null where the session has taken everything
  std::unique_ptr<session> at;
  std::vector<float> logits;          // [vocabulary] of the prompt's last position
  std::optional<part_seconds> parts;  // of the prefill; none where it is not told apart
  double index_seconds = 0;           // of work: making caches, moving rows into them and building indexes; not in `parts`
  double waited_seconds = 0;          // of these, those in which nothing else was done
};

class engine {
 public:
  virtual ~engine() = default;

  /// Runs all layers over the prompt with exact causal attention. @pre tokens is not empty
  /// @param kept_queries  of how many last tokens sessions will want queries (policy_settings::shown_queries); the host's alone keeps them
  virtual std::unique_ptr<held_prompt> prefill(std::span<const token_id> tokens, const progress_report& report = {},
                                               std::size_t kept_queries = 0) = 0;
  /// The same with its only session. The host's engine makes the caches first, so that a full disk is found before anything is computed,
  /// and gives each its rows as soon as the layer has attended: no more than one layer's rows are in memory beside them.
  ///
  /// @throws as prefill() and held_prompt::start()
  virtual started_session start(std::span<const token_id> tokens, const policy_settings& settings, std::size_t room, session_kind kind,
                                const progress_report& report = {});
  /// What it computes on, for reports: "host", or a GPU's name.
  virtual std::string description() const = 0;
};

/// @param llama   outlives the engine of the host; one of a GPU has copied the weights
/// @param runner  outlives the engine
/// @throws usage_error as require_device() does
std::unique_ptr<engine> make_engine(device_name device, const model& llama, pool_runner& runner);

/// Nothing where the program can compute on the device; to be asked before weights are read.
/// @throws usage_error when the program was built without CUDA, or there is no GPU
void require_device(device_name device);

/// Whether a policy has everything it needs on the device. @throws usage_error that names the option
void require_on_device(device_name device, const policy_settings& settings);

}  // namespace minillama
