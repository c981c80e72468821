// SPDX-License-Identifier: Apache-2.0
// The engine of the host, and the choice between engines.
#include "engine.hpp"

#include "command_line.hpp"
#include "cuda/engine.hpp"
#include "cuda/settings.hpp"
#include "decoder.hpp"
#include "index_worker.hpp"
#include "process_memory.hpp"
#include "window.hpp"

namespace minillama {
namespace {

class host_prompt final : public held_prompt {
 public:
  host_prompt(const model& llama, pool_runner& runner, prefilled_prompt prompt)
      : llama_(llama), runner_(runner), prompt_(std::move(prompt)) {}

  std::span<const float> logits() const override { return prompt_.logits; }
  std::optional<part_seconds> parts() const override { return prompt_.parts; }
  std::unique_ptr<session> start(const policy_settings& settings, std::size_t room, session_kind kind) const override {
    return std::make_unique<host_session>(llama_, runner_, settings, prompt_, room, kind);
  }
  std::unique_ptr<session> start_last(const policy_settings& settings, std::size_t room, session_kind kind) override {
    return std::make_unique<host_session>(llama_, runner_, settings, std::move(prompt_), room, kind);
  }

 private:
  const model& llama_;
  pool_runner& runner_;
  prefilled_prompt prompt_;
};

class host_engine final : public engine {
 public:
  host_engine(const model& llama, pool_runner& runner) : llama_(llama), runner_(runner) {}

  std::unique_ptr<held_prompt> prefill(std::span<const token_id> tokens, const progress_report& report, std::size_t kept_queries) override {
    auto made = std::make_unique<host_prompt>(llama_, runner_, minillama::prefill(llama_, tokens, runner_, report, kept_queries));
    return_free_memory();  // what prefill worked with is gone before the first cache comes
    return made;
  }
  started_session start(std::span<const token_id> tokens, const policy_settings& settings, std::size_t room, session_kind kind,
                        const progress_report& report) override {
    started_session made;
    lap_clock clock;
    auto session = std::make_unique<host_session>(llama_, runner_, settings, tokens.size(), room, kind);
    std::optional<index_worker> worker;
    if (settings.index_threads != 0) worker.emplace(*session, settings.index_threads);
    made.waited_seconds += clock.lap();
    const host_policy cpu{runner_, {}};
    const std::size_t shown = settings_of_layers(settings, llama_.config(), tokens.size() + room).shown_queries();
    prefilled_prompt prompt =
        minillama::prefill(llama_, tokens, runner_, report, shown, [&](std::size_t layer, prefilled_prompt::layer&& rows) {
          clock.lap();
          if (worker) {
            worker->take(layer, std::move(rows));
          } else {
            session->take_layer(cpu, layer, rows);
            rows = {};
            return_free_memory();
          }
          made.waited_seconds += clock.lap();
        });
    return_free_memory();
    clock.lap();
    if (worker) worker->finish();
    session->begin();
    made.waited_seconds += clock.lap();
    made.index_seconds = worker ? worker->seconds() : made.waited_seconds;
    made.logits = std::move(prompt.logits);
    made.parts = prompt.parts;
    made.at = std::move(session);
    return made;
  }
  std::string description() const override { return "host"; }

 private:
  const model& llama_;
  pool_runner& runner_;
};

}  // namespace

started_session engine::start(std::span<const token_id> tokens, const policy_settings& settings, std::size_t room, session_kind kind,
                              const progress_report& report) {
  started_session made;
  made.prompt = prefill(tokens, report, settings.shown_queries());
  const std::span<const float> logits = made.prompt->logits();
  made.logits.assign(logits.begin(), logits.end());
  made.parts = made.prompt->parts();
  lap_clock clock;
  made.at = made.prompt->start_last(settings, room, kind);
  made.index_seconds = made.waited_seconds = clock.lap();
  return made;
}

std::unique_ptr<engine> make_engine(device_name device, const model& llama, pool_runner& runner) {
  if (device == device_name::host) return std::make_unique<host_engine>(llama, runner);
  return cuda::make_engine(llama);
}

void require_device(device_name device) {
  if (device == device_name::cuda) cuda::require_gpu();
}

void require_on_device(device_name device, const policy_settings& settings) {
  if (device == device_name::cuda) cuda::require_offered(settings);
}

}  // namespace minillama
