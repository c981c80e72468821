// SPDX-License-Identifier: Apache-2.0
// The step is written once and either captured or run.
#include "decoder.hpp"

#include <algorithm>
#include <stdexcept>
#include <string>

#include "settings.hpp"

namespace minillama::cuda {
namespace {

// Steps between two visits to the caches when all have a codebook: half of the tail that the library lets an index grow by default. A
// visit waits for the device, so not after every step; the number is a choice, not measured.
constexpr std::size_t maintenance_steps = 128;

}  // namespace

device_session::device_session(const device_model& llama, const policy_settings& settings, const device_prompt& prompt, std::size_t room,
                               session_kind kind, step_launch launch)
    : llama_(llama),
      settings_(settings_for(settings, prompt.tokens, llama.config(), kind == session_kind::forked ? 2 : 1, prompt.tokens + room)),
      rule_(settings_.budget.flat()),
      prompt_tokens_(prompt.tokens),
      last_(settings_.shape.batch - 1),
      has_middle_(settings_.middle == pqkv::selector::coverage::nothing || settings.name == policy_name::pq),
      caches_(llama.on().get(), llama.config().layers, settings_),
      room_(llama.config(), 1),
      token_(1),
      logits_(llama.config().vocabulary),
      token_there_(1),
      position_(1),
      x_(llama.config().hidden),
      queries_(llama.config().query_width()),
      keys_(llama.config().kv_width()),
      values_(keys_.size()),
      attention_(queries_.size()),
      logits_there_(llama.config().vocabulary),
      launch_(launch),
      trained_(llama.config().layers) {
  statistics_.layers = llama.config().layers;
  for (std::size_t layer = 0; layer < prompt.layers.size(); ++layer)
    caches_.prefill(layer, prompt.layers[layer].keys.data(), prompt.layers[layer].values.data(), prompt.tokens);
  if (kind == session_kind::forked) caches_.fork();
  warm_up();
  if (launch_ == step_launch::graph) step_ = graph(llama_.on(), [this] { enqueue_step(); });
  go_to_prompt();
}

void device_session::fork() {
  if (last_ == 0) throw std::logic_error("fork: this session decodes behind its prompt itself");
  caches_.fork();
  go_to_prompt();
}

std::span<const float> device_session::step(token_id token, const step_observer& observe) {
  if (observe) throw std::logic_error("step: there is nothing to observe in a step on the device");
  if (token >= llama_.config().vocabulary)
    throw std::out_of_range("step: token " + std::to_string(token) + " in a vocabulary of " + std::to_string(llama_.config().vocabulary));
  if (at_.n == settings_.shape.capacity)
    throw pqkv::capacity_error("step: the capacity of " + std::to_string(at_.n) + " tokens is used up");
  lap_clock clock;
  *token_.data() = token;
  if (launch_ == step_launch::graph)
    step_.replay(llama_.on());
  else
    enqueue_step();
  llama_.on().wait();
  count_step();
  maintain_when_due();
  statistics_.seconds += clock.lap();
  return {logits_.data(), logits_.size()};
}

void device_session::enqueue_step() {
  const model_config& config = llama_.config();
  copy(llama_.on(), token_there_.data(), token_.data(), 1);
  llama_.embed(token_there_.data(), 1, x_.data());
  split_projection to{};
  to.queries = queries_.data();
  to.keys = keys_.data();
  to.values = values_.data();
  to.head_stride = config.head_dim;
  to.position = position_.data();
  for (std::size_t layer = 0; layer < config.layers; ++layer) {
    llama_.project_qkv(layer, x_.data(), 1, to, room_);
    caches_.append(layer, keys_.data(), values_.data());
    caches_.attend(layer, queries_.data(), attention_.data());
    llama_.finish_layer(layer, attention_.data(), 1, x_.data(), room_);
  }
  llama_.logits(x_.data(), logits_there_.data(), room_);
  copy(llama_.on(), logits_.data(), logits_there_.data(), logits_.size());
  advance(llama_.on(), position_.data());
}

/// Runs every product and kernel of a step that is not the caches' once: what the driver and cuBLAS load on first use must not be loaded
/// while the stream is captured.
void device_session::warm_up() {
  const model_config& config = llama_.config();
  *token_.data() = 0;
  copy(llama_.on(), token_there_.data(), token_.data(), 1);
  const std::uint32_t start = 0;
  copy(llama_.on(), position_.data(), &start, 1);
  llama_.embed(token_there_.data(), 1, x_.data());
  split_projection to{};
  to.queries = queries_.data();
  to.keys = keys_.data();
  to.values = values_.data();
  to.head_stride = config.head_dim;
  to.position = position_.data();
  llama_.project_qkv(0, x_.data(), 1, to, room_);
  llama_.finish_layer(0, queries_.data(), 1, x_.data(), room_);
  llama_.logits(x_.data(), logits_there_.data(), room_);
  advance(llama_.on(), position_.data());
  llama_.on().wait();
}

void device_session::go_to_prompt() {
  const auto next = static_cast<std::uint32_t>(prompt_tokens_);
  at_ = pqkv::sequence{}.grown(next);
  at_.prompt = next;
  maintained_at_ = prompt_tokens_;
  copy(llama_.on(), position_.data(), &next, 1);
  llama_.on().wait();  // the number is the host's
  ask_what_is_trained();
}

void device_session::count_step() {
  at_ = at_.grown(1);
  const pqkv::middle_range middle = at_.middle(rule_);
  const std::size_t ranked = at_.n - middle.size() + middle.selected();
  std::uint64_t attended = 0;
  for (const std::uint8_t with_codebook : trained_) attended += with_codebook ? ranked : at_.n;
  const model_config& config = llama_.config();
  statistics_.tokens_attended += attended;
  statistics_.attended_bytes += attended * 2 * config.kv_width() * sizeof(float);
  ++statistics_.steps;
}

void device_session::maintain_when_due() {
  if (!has_middle_) return;
  // A missing codebook is worth a try as often as the library makes one: after every step of a short sequence.
  const bool all_trained = std::all_of(trained_.begin(), trained_.end(), [](std::uint8_t one) { return one != 0; });
  if (at_.n < maintained_at_ + (all_trained ? maintenance_steps : maintained_at_ / 64 + 1)) return;
  maintained_at_ = at_.n;
  caches_.maintain();
  if (!all_trained) ask_what_is_trained();
}

void device_session::ask_what_is_trained() {
  if (!has_middle_) return;
  for (std::size_t layer = 0; layer < trained_.size(); ++layer) trained_[layer] = caches_.trained(layer) ? 1 : 0;
}

}  // namespace minillama::cuda
