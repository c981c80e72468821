// SPDX-License-Identifier: Apache-2.0
#include "engine.hpp"

#include <algorithm>
#include <cstdio>

namespace llama_example {

std::atomic<bool> stop_asked{false};

namespace {
void log_errors_alone(ggml_log_level level, const char* text, void*) {
  if (level == GGML_LOG_LEVEL_ERROR && !stop_asked) std::fputs(text, stderr);  // a stop is no error
}

/// What the hook would not see, or see wrongly, by what the model says of itself.
void check_model(const llama_model* m) {
  const auto refuse = [](const std::string& what) {
    throw std::invalid_argument("the model " + what + "; --policy none runs it without pqkv");
  };
  if (llama_model_has_encoder(m)) refuse("has an encoder");
  if (llama_model_is_recurrent(m) || llama_model_is_hybrid(m)) refuse("has recurrent layers, which keep no keys and values");
  if (llama_model_is_diffusion(m)) refuse("is a diffusion model: its attention is not causal");
  if (llama_model_n_swa(m) > 0)
    refuse("has layers with a sliding window of " + std::to_string(llama_model_n_swa(m)) +
           " tokens, which this example cannot tell from the others");
}
}  // namespace

model::model(const std::string& path) {
  static const bool started = [] {
    llama_log_set(log_errors_alone, nullptr);
    llama_backend_init();
    return true;
  }();
  static_cast<void>(started);
  llama_model_params params = llama_model_default_params();
  params.n_gpu_layers = 0;
  model_.reset(llama_model_load_from_file(path.c_str(), params));
  if (!model_) throw std::runtime_error("llama.cpp cannot load the model " + path);
}

void model::write_as_floats(const std::string& from, const std::string& to) {
  llama_log_set(log_errors_alone, nullptr);
  llama_model_quantize_params params = llama_model_quantize_default_params();
  params.ftype = LLAMA_FTYPE_ALL_F32;
  params.allow_requantize = true;
  if (llama_model_quantize(from.c_str(), to.c_str(), &params) != 0)
    throw std::runtime_error("llama.cpp cannot write " + from + " as " + to);
}

std::vector<llama_token> model::tokens_of(const std::string& text, bool begins_sequence) const {
  std::vector<llama_token> tokens(text.size() + 8);
  const int count = llama_tokenize(vocab(), text.data(), static_cast<std::int32_t>(text.size()), tokens.data(),
                                   static_cast<std::int32_t>(tokens.size()), begins_sequence, true);
  if (count < 0) throw std::runtime_error("llama.cpp cannot tokenize the text");
  tokens.resize(static_cast<std::size_t>(count));
  return tokens;
}

std::string model::text_of(llama_token token) const {
  char text[256];
  const int bytes = llama_token_to_piece(vocab(), token, text, sizeof text, 0, false);
  return bytes > 0 ? std::string(text, static_cast<std::size_t>(bytes)) : std::string();
}

std::string model::chat_text(const std::vector<message>& messages, bool assistant_next) const {
  const char* how = llama_model_chat_template(get(), nullptr);
  if (how == nullptr) return {};
  std::vector<llama_chat_message> given;
  std::size_t bytes = 1024;
  for (const message& each : messages) {
    given.push_back({each.role.c_str(), each.text.c_str()});
    bytes += 2 * (each.role.size() + each.text.size());
  }
  std::string text(bytes, '\0');
  const auto apply = [&] {
    return llama_chat_apply_template(how, given.data(), given.size(), assistant_next, text.data(), static_cast<std::int32_t>(text.size()));
  };
  int length = apply();
  if (length > static_cast<int>(text.size())) text.resize(static_cast<std::size_t>(length)), length = apply();
  if (length < 0) throw std::runtime_error("llama.cpp does not know the model's chat template; --raw gives it the text as it is");
  text.resize(static_cast<std::size_t>(length));
  return text;
}

engine::engine(const model& file, const engine_settings& settings) : model_(file), batch_(settings.batch) {
  if (settings.context > file.trained_tokens())
    throw std::invalid_argument("a context of " + std::to_string(settings.context) + " tokens is more than the " +
                                std::to_string(file.trained_tokens()) + " that the model was trained for");
  llama_context_params params = llama_context_default_params();
  params.n_ctx = static_cast<std::uint32_t>((settings.context + 255) / 256 * 256);
  params.n_batch = params.n_ubatch = static_cast<std::uint32_t>(settings.batch);
  params.n_seq_max = 1;
  params.n_threads = params.n_threads_batch = static_cast<std::int32_t>(settings.threads);
  params.flash_attn_type = settings.flash_attention ? LLAMA_FLASH_ATTN_TYPE_ENABLED : LLAMA_FLASH_ATTN_TYPE_DISABLED;
  params.type_k = params.type_v = settings.cache_type;
  params.abort_callback = [](void*) { return stop_asked.load(std::memory_order_relaxed); };
  params.no_perf = true;
  capacity_ = params.n_ctx;
  if (settings.pqkv) {
    check_model(file.get());
    if (!settings.flash_attention) throw std::invalid_argument("pqkv takes over flash attention, which is off; --policy none runs without");
    if (settings.cache_type != GGML_TYPE_F16)
      throw std::invalid_argument(std::string("pqkv reads llama.cpp's cache as f16, and it is ") + ggml_type_name(settings.cache_type) +
                                  "; --policy none takes that type");
    cache_settings of_layer = *settings.pqkv;
    of_layer.shape.capacity = capacity_;
    hook_ = std::make_unique<attention_hook>(of_layer, file.layers(), settings.threads, [] { return stop_asked.load(); });
    params.cb_eval = attention_hook::on_node;
    params.cb_eval_user_data = hook_.get();
  }
  context_.reset(llama_init_from_model(file.get(), params));
  if (!context_) throw std::runtime_error("llama.cpp cannot make a context of " + std::to_string(params.n_ctx) + " tokens");
}

bool engine::read(std::span<const llama_token> tokens) {
  if (tokens.empty()) return true;
  if (tokens.size() > capacity_ - size_)
    throw std::length_error(std::to_string(tokens.size()) + " tokens more than the " + std::to_string(size_) +
                            " that were read do not fit into a context of " + std::to_string(capacity_));
  const std::size_t before = size_;
  if (hook_) size_ == 0 ? hook_->expect_prompt(tokens.size()) : hook_->expect_steps();
  bool well = true;
  try {
    for (std::size_t first = 0; well && first < tokens.size(); first += batch_)
      well = decode(tokens.subspan(first, std::min(batch_, tokens.size() - first)));
  } catch (...) {
    truncate(before);
    throw;
  }
  if (!well) truncate(before);
  return well;
}

/// One batch. llama.cpp's own cache keeps the whole sequence while it attends itself, and nothing but the batch where pqkv does.
bool engine::decode(std::span<const llama_token> tokens) {
  llama_memory_t memory = llama_get_memory(context_.get());
  if (hook_ && hook_->answers()) llama_memory_seq_rm(memory, 0, -1, -1);
  llama_batch batch = llama_batch_init(static_cast<std::int32_t>(tokens.size()), 0, 1);
  batch.n_tokens = static_cast<std::int32_t>(tokens.size());
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    batch.token[i] = tokens[i];
    batch.pos[i] = static_cast<llama_pos>(size_ + i);
    batch.n_seq_id[i] = 1;
    batch.seq_id[i][0] = 0;
    batch.logits[i] = i + 1 == tokens.size();
  }
  const int outcome = llama_decode(context_.get(), batch);
  llama_batch_free(batch);
  bool well = outcome == 0;
  if (hook_) well = hook_->finish(well);
  if (well) {
    size_ += tokens.size();
    return true;
  }
  if (stop_asked) return false;
  throw std::runtime_error("llama_decode() failed with " + std::to_string(outcome) + " after " + std::to_string(size_) + " tokens");
}

std::span<const float> engine::logits() const {
  const float* found = llama_get_logits_ith(context_.get(), -1);
  return {found, static_cast<std::size_t>(llama_vocab_n_tokens(llama_model_get_vocab(model_.get())))};
}

llama_token engine::best_token() const {
  const auto all = logits();
  return static_cast<llama_token>(std::max_element(all.begin(), all.end()) - all.begin());
}

void engine::truncate(std::size_t n) {
  llama_memory_seq_rm(llama_get_memory(context_.get()), 0, n == 0 ? -1 : static_cast<llama_pos>(n), -1);
  if (hook_ && hook_->size() != 0) n == 0 ? hook_->reset() : hook_->truncate(n);
  size_ = n;
}

}  // namespace llama_example
