// SPDX-License-Identifier: Apache-2.0
// Prompts and sessions of one model on one GPU, all on one stream.
#include "engine.hpp"

#include "../command_line.hpp"
#include "decoder.hpp"
#include "prefill.hpp"

namespace minillama::cuda {
namespace {

class prompt_there final : public held_prompt {
 public:
  prompt_there(const device_model& llama, device_prompt prompt) : llama_(llama), prompt_(std::move(prompt)) {}

  std::span<const float> logits() const override { return prompt_.logits; }
  std::optional<part_seconds> parts() const override { return std::nullopt; }
  std::unique_ptr<session> start(const policy_settings& settings, std::size_t room, session_kind kind) const override {
    return std::make_unique<device_session>(llama_, settings, prompt_, room, kind);
  }

 private:
  const device_model& llama_;
  device_prompt prompt_;
};

class device_engine final : public engine {
 public:
  explicit device_engine(const model& llama) : llama_(llama) {}

  std::unique_ptr<held_prompt> prefill(std::span<const token_id> tokens, const progress_report& report, prompt_queries) override {
    return std::make_unique<prompt_there>(llama_, cuda::prefill(llama_, tokens, report));
  }
  std::string description() const override {
    int device = 0;
    cudaDeviceProp properties{};
    check(cudaGetDevice(&device), "cudaGetDevice");
    check(cudaGetDeviceProperties(&properties, device), "cudaGetDeviceProperties");
    return properties.name;
  }

 private:
  device_model llama_;
};

}  // namespace

void require_gpu() {
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error != cudaSuccess) throw usage_error("--device", std::string("cuda: no GPU: ") + cudaGetErrorString(error));
  if (count == 0) throw usage_error("--device", "cuda: no GPU");
}

std::unique_ptr<engine> make_engine(const model& llama) {
  require_gpu();
  return std::make_unique<device_engine>(llama);
}

}  // namespace minillama::cuda
