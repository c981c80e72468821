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

namespace {
std::size_t padded(std::size_t cells) { return (cells + 255) / 256 * 256; }

/// Takes what a batch that failed may have left in llama.cpp's cache.
void remove_after(llama_memory_t memory, std::span<const std::size_t> sizes, std::span<const std::size_t> more) {
  for (std::size_t sequence = 0; sequence < sizes.size(); ++sequence)
    if (more[sequence] != 0) llama_memory_seq_rm(memory, static_cast<llama_seq_id>(sequence), static_cast<llama_pos>(sizes[sequence]), -1);
}

}  // namespace

engine::engine(const model& file, const engine_settings& settings)
    : model_(file),
      size_(settings.sequences),
      logits_row_(settings.sequences, -1),
      released_(settings.sequences, 0),
      batch_(settings.batch) {
  if (settings.context > file.trained_tokens())
    throw std::invalid_argument("a context of " + std::to_string(settings.context) + " tokens is more than the " +
                                std::to_string(file.trained_tokens()) + " that the model was trained for");
  window_ = static_cast<std::size_t>(std::max(0, llama_model_n_swa(file.get())));
  llama_context_params params = llama_context_default_params();
  capacity_ = padded(settings.context);
  std::size_t cells = capacity_ * settings.sequences;
  params.n_batch = params.n_ubatch = static_cast<std::uint32_t>(settings.batch);
  params.n_seq_max = static_cast<std::uint32_t>(settings.sequences);
  params.n_threads = params.n_threads_batch = static_cast<std::int32_t>(settings.threads);
  params.flash_attn_type = settings.flash_attention ? LLAMA_FLASH_ATTN_TYPE_ENABLED : LLAMA_FLASH_ATTN_TYPE_DISABLED;
  params.type_k = params.type_v = settings.cache_type;
  params.abort_callback = [](void*) { return stop_asked.load(std::memory_order_relaxed); };
  params.no_perf = true;
  params.swa_full = false;
  if (!settings.variants.empty()) {
    check_model(file.get());
    if (!settings.flash_attention) throw std::invalid_argument("pqkv takes over flash attention, which is off; --policy none runs without");
    if (settings.cache_type != GGML_TYPE_F16)
      throw std::invalid_argument(std::string("pqkv reads llama.cpp's cache as f16, and it is ") + ggml_type_name(settings.cache_type) +
                                  "; --policy none takes that type");
    std::vector<cache_settings> of_layer = settings.variants;
    for (cache_settings& each : of_layer) each.shape.capacity = capacity_, each.shape.batch = settings.sequences;
    hook_ = std::make_unique<attention_hook>(of_layer, file.layers(), settings.threads, [] { return stop_asked.load(); });
    variant_ = 0;
    policy_ = settings.variants.front().which;
    // One prompt at a time is in llama.cpp's cache, beside the windows of all. It gets more cells than the cache of the windows, which
    // tells the two kinds of layers apart.
    const std::size_t windows = window_ == 0 ? 0 : window_ * settings.sequences + settings.batch;
    cells = capacity_ + (window_ == 0 ? 0 : padded(windows) + 256);
    params.kv_unified = true;
    params.cb_eval = attention_hook::on_node;
    params.cb_eval_user_data = hook_.get();
  }
  params.n_ctx = static_cast<std::uint32_t>(cells);
  context_.reset(llama_init_from_model(file.get(), params));
  if (!context_) throw std::runtime_error("llama.cpp cannot make a context of " + std::to_string(params.n_ctx) + " tokens");
  if (hook_) hook_->set_cells(llama_n_ctx(context_.get()));
}

void engine::check_room(std::size_t sequence, std::size_t tokens) const {
  if (tokens > capacity_ - size_[sequence])
    throw std::length_error("the context has room for " + std::to_string(capacity_) + " tokens; " + std::to_string(size_[sequence]) +
                            " are read, and " + std::to_string(tokens) + " more do not fit");
}

bool engine::read(std::span<const llama_token> tokens, std::size_t sequence) {
  if (tokens.empty()) return true;
  check_room(sequence, tokens.size());
  const std::size_t before = size_[sequence];
  const bool prompt = before == 0;
  if (hook_ && prompt) hook_->expect_prompt(sequence, tokens.size());
  bool well = true;
  const auto take_back = [&] {
    if (size_[sequence] != before) truncate(window_ == 0 ? before : 0, sequence);
  };
  std::vector<row> rows;
  try {
    for (std::size_t first = 0; well && first < tokens.size(); first += batch_) {
      const auto part = tokens.subspan(first, std::min(batch_, tokens.size() - first));
      rows.clear();
      for (const llama_token token : part) rows.push_back({token, sequence, false});
      rows.back().has_logits = true;
      if (hook_ && !prompt) {
        if (variant_)
          hook_->expect_step({static_cast<std::uint32_t>(sequence)}, {static_cast<std::uint32_t>(part.size())});
        else
          hook_->expect_nothing();
      }
      well = decode(rows);
    }
  } catch (...) {
    take_back();
    throw;
  }
  if (!well)
    take_back();
  else if (prompt && answers())
    release(sequence);
  return well;
}

bool engine::read_each(std::span<const llama_token> tokens) {
  std::vector<row> rows;
  std::vector<std::uint32_t> slots, counts(tokens.size(), 1);
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    check_room(i, 1);
    rows.push_back({tokens[i], i, true});
    slots.push_back(static_cast<std::uint32_t>(i));
  }
  if (hook_) variant_ ? hook_->expect_step(slots, counts) : hook_->expect_nothing();
  return decode(rows);
}

/// One batch. Where pqkv answers, llama.cpp's own cache has nothing but the batch in it, and the windows that its other layers attend to.
bool engine::decode(std::span<const row> rows) {
  llama_memory_t memory = llama_get_memory(context_.get());
  llama_batch batch = llama_batch_init(static_cast<std::int32_t>(rows.size()), 0, 1);
  std::vector<std::size_t> more(size_.size());
  for (const row& each : rows) {
    const std::size_t at = size_[each.sequence] + more[each.sequence]++, i = static_cast<std::size_t>(batch.n_tokens++);
    batch.token[i] = each.token;
    batch.pos[i] = static_cast<llama_pos>(at);
    batch.n_seq_id[i] = 1;
    batch.seq_id[i][0] = static_cast<llama_seq_id>(each.sequence);
    batch.logits[i] = each.has_logits;
    if (each.has_logits) logits_row_[each.sequence] = static_cast<int>(i);
  }
  for (std::size_t sequence = 0; sequence < more.size(); ++sequence)
    if (more[sequence] != 0) check_answering(sequence);
  const int outcome = llama_decode(context_.get(), batch);
  llama_batch_free(batch);
  bool well = outcome == 0;
  if (hook_) {
    try {
      well = hook_->finish(well);
    } catch (...) {
      remove_after(memory, size_, more);
      throw;
    }
  }
  if (well) {
    for (std::size_t sequence = 0; sequence < more.size(); ++sequence) {
      if (more[sequence] == 0) continue;
      size_[sequence] += more[sequence];
      if (answers() && !hook_->takes_prompt()) forget_attended(sequence);
    }
    return true;
  }
  remove_after(memory, size_, more);
  if (stop_asked) return false;
  throw std::runtime_error("llama_decode() failed with " + std::to_string(outcome) + " after " + std::to_string(size_[rows[0].sequence]) +
                           " tokens");
}

/// pqkv has what llama.cpp has of the sequence, so that llama.cpp needs its windows alone.
void engine::forget_attended(std::size_t sequence) {
  const auto id = static_cast<llama_seq_id>(sequence);
  if (window_ == 0)
    llama_memory_seq_rm(llama_get_memory(context_.get()), id, -1, -1);
  else if (size_[sequence] > window_)
    llama_memory_seq_rm(llama_get_memory(context_.get()), id, 0, static_cast<llama_pos>(size_[sequence] - window_));
  released_[sequence] = 1;
}

void engine::check_answering(std::size_t sequence) const {
  if (!hook_ || hook_->takes_prompt()) return;
  if (variant_ ? !hook_->has_all(sequence, size_[sequence]) : released_[sequence] != 0)
    throw std::logic_error("who answers was changed after steps: go_back() to a mark before them first");
}

/// pqkv has the prompt's keys and values now: llama.cpp's own go, but those in sliding windows.
void engine::release(std::size_t sequence) {
  const mark_type here = mark(sequence);
  llama_memory_seq_rm(llama_get_memory(context_.get()), static_cast<llama_seq_id>(sequence), -1, -1);
  put_windows(here, sequence);
  released_[sequence] = 1;
}

void engine::put_windows(const mark_type& from, std::size_t sequence) {
  if (from.windows.empty()) return;
  if (llama_state_seq_set_data_ext(context_.get(), from.windows.data(), from.windows.size(), static_cast<llama_seq_id>(sequence),
                                   LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY) == 0)
    throw std::runtime_error("llama.cpp cannot restore the state of its sliding windows");
}

std::span<const float> engine::logits(std::size_t sequence) const {
  const float* found = logits_row_[sequence] < 0 ? nullptr : llama_get_logits_ith(context_.get(), logits_row_[sequence]);
  if (found == nullptr) throw std::logic_error("no token of sequence " + std::to_string(sequence) + " was read yet");
  return {found, static_cast<std::size_t>(llama_vocab_n_tokens(llama_model_get_vocab(model_.get())))};
}

llama_token engine::best_token(std::size_t sequence) const {
  const auto all = logits(sequence);
  return static_cast<llama_token>(std::max_element(all.begin(), all.end()) - all.begin());
}

void engine::fork(std::size_t from, std::size_t to) {
  if (size_[to] != 0) throw std::invalid_argument("sequence " + std::to_string(to) + " is not empty: truncate it to 0 before fork()");
  if (hook_) hook_->fork(from, to);
  llama_memory_seq_cp(llama_get_memory(context_.get()), static_cast<llama_seq_id>(from), static_cast<llama_seq_id>(to), -1, -1);
  size_[to] = size_[from];
  released_[to] = released_[from];
}

void engine::truncate(std::size_t n, std::size_t sequence) {
  if (n >= size_[sequence]) return;
  if (n != 0 && window_ != 0)
    throw std::invalid_argument(
        "a model with sliding windows cannot forget only the last tokens of a sequence, since tokens that have left the "
        "window are gone: mark() the place before, and go_back() to it");
  llama_memory_seq_rm(llama_get_memory(context_.get()), static_cast<llama_seq_id>(sequence), n == 0 ? -1 : static_cast<llama_pos>(n), -1);
  if (hook_) n == 0 ? hook_->reset(sequence) : hook_->truncate(sequence, n);
  size_[sequence] = n;
  if (n == 0) released_[sequence] = 0;
}

engine::mark_type engine::mark(std::size_t sequence) const {
  mark_type here{.n = size_[sequence]};
  if (window_ == 0) return here;
  const auto id = static_cast<llama_seq_id>(sequence);
  here.windows.resize(llama_state_seq_get_size_ext(context_.get(), id, LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY));
  const std::size_t bytes =
      llama_state_seq_get_data_ext(context_.get(), here.windows.data(), here.windows.size(), id, LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY);
  if (bytes != here.windows.size()) throw std::runtime_error("llama.cpp cannot write the state of its sliding windows");
  return here;
}

void engine::go_back(const mark_type& to, std::size_t sequence) {
  if (to.n > size_[sequence])
    throw std::invalid_argument("the mark is at token " + std::to_string(to.n) + ", and the sequence has " +
                                std::to_string(size_[sequence]));
  llama_memory_seq_rm(llama_get_memory(context_.get()), static_cast<llama_seq_id>(sequence), static_cast<llama_pos>(to.n), -1);
  put_windows(to, sequence);
  if (hook_) hook_->truncate(sequence, to.n);
  size_[sequence] = to.n;
}

void engine::answer_by(std::optional<std::size_t> variant) {
  variant_ = variant;
  if (variant) hook_->choose(*variant);
}

}  // namespace llama_example
