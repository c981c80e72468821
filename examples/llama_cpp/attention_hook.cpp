// SPDX-License-Identifier: Apache-2.0
// Which nodes of llama.cpp's graph are ours, what they must look like, and what is done at each.
#include "attention_hook.hpp"

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <string>

#include <pqkv/adapt/ggml.hpp>

#include "thread_clock.hpp"

namespace llama_example {
namespace {
class stopwatch {
 public:
  stopwatch(double& seconds, std::size_t threads) : seconds_(seconds), threads_(threads), start_(seconds_of_work(threads)) {}
  ~stopwatch() { seconds_ += seconds_of_work(threads_) - start_; }

 private:
  double& seconds_;
  std::size_t threads_;
  double start_;
};

/// The tensor that a view, whether or not of views, looks into.
const ggml_tensor* root_of(const ggml_tensor* tensor) {
  while (tensor->view_src != nullptr) tensor = tensor->view_src;
  return tensor;
}

[[noreturn]] void refuse(const ggml_tensor* layer, const std::string& what) {
  throw std::invalid_argument(std::string("the attention over ") + layer->name + " " + what);
}

/// GGML_OP_FLASH_ATTN_EXT keeps them in this order.
struct attention_settings {
  float scale, alibi, soft_cap;
};
attention_settings settings_of(const ggml_tensor* attention) {
  attention_settings settings;
  static_assert(sizeof settings <= sizeof attention->op_params);
  std::memcpy(&settings, attention->op_params, sizeof settings);
  return settings;
}

/// What pqkv's attention does not compute is refused by name; a silent difference would only show in the text.
void check_kind(const ggml_tensor* attention) {
  const ggml_tensor* keys = root_of(attention->src[1]);
  const attention_settings settings = settings_of(attention);
  if (settings.soft_cap != 0) refuse(keys, "has a soft cap on its logits, which pqkv does not compute");
  if (settings.alibi != 0) refuse(keys, "has ALiBi biases, which pqkv does not compute");
  if (attention->src[4] != nullptr) refuse(keys, "has learned sinks, which pqkv does not compute");
  if (root_of(attention->src[2]) == keys) refuse(keys, "keeps keys and values in one tensor (MLA), which this example does not read");
  if (attention->src[1]->ne[0] != attention->src[2]->ne[0]) refuse(keys, "has values of another width than its keys");
  if (attention->src[1]->ne[3] != 1) refuse(keys, "has a stream for each sequence; llama_context_params::kv_unified must be true");
}

}  // namespace

attention_hook::attention_hook(std::vector<cache_settings> variants, int layers, std::size_t threads, std::function<bool()> stopped)
    : variants_(std::move(variants)),
      threads_(threads),
      stopped_(std::move(stopped)),
      layers_wanted_(static_cast<std::size_t>(layers)),
      committed_(variants_.front().shape.batch) {
  layers_.reserve(layers_wanted_);
}

bool attention_hook::on_node(ggml_tensor* node, bool ask, void* hook) {
  auto& self = *static_cast<attention_hook*>(hook);
  try {  // ggml is C: nothing may be thrown through it
    if (ask) return self.wants(node);
    self.take(node);
    self.interrupted_ = self.stopped_();
  } catch (...) {
    self.failed_ = std::current_exception();
  }
  return !self.failed_ && !self.interrupted_;  // false ends this part of the graph; llama_decode() returns 0 all the same
}

/// Called for every node before anything of its part of the graph is computed. Notes the cells that the batch goes to: at that time the
/// numbers are in place, later their memory may be another tensor's.
bool attention_hook::wants(const ggml_tensor* node) {
  if (expected_ == expected::nothing || failed_ || interrupted_) return false;
  if (node->op == GGML_OP_FLASH_ATTN_EXT) return !is_local(node);
  if (node->op != GGML_OP_SET_ROWS || node->src[1]->type != GGML_TYPE_I64) return false;
  pqkv::require_ok(pqkv::detail::can_reach(node->src[1], 1, sizeof(std::int64_t), "attention_hook"));
  const ggml_tensor* cache = root_of(node);
  auto found = std::find_if(written_.begin(), written_.end(), [&](const written_cells& w) { return w.cache == cache; });
  if (found == written_.end()) found = written_.insert(found, {cache, {}});
  const auto* cells = static_cast<const std::int64_t*>(node->src[1]->data);
  found->cells.assign(cells, cells + node->src[1]->ne[0]);
  return false;
}

bool attention_hook::is_local(const ggml_tensor* attention) {
  const ggml_tensor* keys = root_of(attention->src[1]);
  if (static_cast<std::size_t>(keys->ne[1]) == global_cells_) return false;
  if (std::find(local_.begin(), local_.end(), keys) == local_.end()) local_.push_back(keys);
  return true;
}

void attention_hook::take(ggml_tensor* attention) {
  layer& here = layer_of(attention);
  const ggml_tensor* query = attention->src[0];
  const auto count = static_cast<std::size_t>(query->ne[1]);
  const std::vector<std::int64_t>& cells = cells_of(here.keys, count);
  const row_view keys = rows_of(pqkv::ggml_view<const pqkv::half, 3>(attention->src[1]), cells, gathered_keys_);
  const row_view values = rows_of(pqkv::ggml_view<const pqkv::half, 3>(attention->src[2]), cells, gathered_values_);
  ++times_.calls;
  if (expected_ == expected::prompt) {
    const stopwatch running(times_.taking, threads_.threads());
    return take_prompt(here, keys, values);
  }
  const stopwatch running(times_.attending, threads_.threads());
  layer_cache& cache = answering(here);
  if (cache.size(slots_.front()) != committed_[slots_.front()])
    refuse(here.keys, "comes twice in a step: layers that share keys and values are not supported");
  const step_rows rows{.slots = pqkv::make_view(std::as_const(slots_).data(), slots_.size()),
                       .counts = pqkv::make_view(std::as_const(counts_).data(), counts_.size())};
  cache.append(keys, values, rows);
  cache.attend(pqkv::swap_axes<0, 1>(pqkv::ggml_view<const float, 3>(query)), pqkv::ggml_view<float, 3>(attention), rows);
}

void attention_hook::take_prompt(layer& here, row_view keys, row_view values) {
  if (here.caches.front()->size(prompt_slot_) != committed_[prompt_slot_])
    refuse(here.keys, "comes twice in a batch: layers that share keys and values are not supported");
  const std::size_t n = committed_[prompt_slot_] + keys.extent(1);
  if (n > prompt_tokens_) throw std::logic_error("more tokens were decoded than expect_prompt() was told");
  for (const auto& cache : here.caches)
    cache->prefill(prompt_slot_, keys, values, n == prompt_tokens_ ? pqkv::chunk::last : pqkv::chunk::more);
}

/// The layers come in the order of the first graph; afterwards a layer is known by the tensor of its cache.
attention_hook::layer& attention_hook::layer_of(const ggml_tensor* attention) {
  const ggml_tensor* keys = root_of(attention->src[1]);
  for (layer& known : layers_)
    if (known.keys == keys) return known;
  check_kind(attention);
  layer made{.keys = keys};
  for (cache_settings settings : variants_) {
    settings.shape.kv_heads = static_cast<std::size_t>(attention->src[1]->ne[2]);
    settings.shape.query_heads = static_cast<std::size_t>(attention->src[0]->ne[2]);
    settings.shape.head_dim = static_cast<std::size_t>(attention->src[0]->ne[0]);
    settings.shape.softmax_scale = settings_of(attention).scale;
    made.caches.push_back(make_layer_cache(settings, threads_));
  }
  layers_.push_back(std::move(made));
  return layers_.back();
}

const std::vector<std::int64_t>& attention_hook::cells_of(const ggml_tensor* cache, std::size_t count) const {
  for (const written_cells& written : written_)
    if (written.cache == cache && written.cells.size() == count) return written.cells;
  refuse(cache, "was not preceded by a write of the batch's rows into it");
}

/// [h, cells, d] to the batch's [h, count, d].
row_view attention_hook::rows_of(row_view cache, const std::vector<std::int64_t>& cells, std::vector<pqkv::half>& gathered) const {
  const std::size_t count = cells.size(), h = cache.extent(0), d = cache.extent(2);
  bool side_by_side = true;
  for (std::size_t i = 1; i < count; ++i) side_by_side = side_by_side && cells[i] == cells[i - 1] + 1;
  if (side_by_side) return cache.slice(1, static_cast<std::size_t>(cells[0]), count);
  gathered.resize(h * count * d);
  const auto rows = pqkv::make_view(gathered.data(), h, count, d);
  for (std::size_t head = 0; head < h; ++head)
    for (std::size_t i = 0; i < count; ++i)
      for (std::size_t x = 0; x < d; ++x) rows(head, i, x) = cache(head, static_cast<std::size_t>(cells[i]), x);
  return rows;
}

void attention_hook::expect_prompt(std::size_t slot, std::size_t tokens) {
  expected_ = expected::prompt;
  prompt_slot_ = slot;
  prompt_tokens_ = tokens;
}

void attention_hook::expect_step(std::vector<std::uint32_t> slots, std::vector<std::uint32_t> counts) {
  expected_ = expected::steps;
  slots_ = std::move(slots);
  counts_ = std::move(counts);
}

bool attention_hook::finish(bool succeeded) {
  const bool well = succeeded && !failed_ && !std::exchange(interrupted_, false);
  if (!well) {
    roll_back();
    if (failed_) std::rethrow_exception(std::exchange(failed_, nullptr));
    return false;
  }
  if (expected_ == expected::nothing) return true;
  try {
    check_layers();
    if (expected_ == expected::steps) {
      const stopwatch running(times_.between, threads_.threads());
      for (layer& each : layers_) answering(each).maintain();
    }
  } catch (...) {
    roll_back();
    throw;
  }
  if (expected_ == expected::prompt)
    committed_[prompt_slot_] = layers_.front().caches.front()->size(prompt_slot_);
  else
    for (std::size_t i = 0; i < slots_.size(); ++i) committed_[slots_[i]] += counts_[i];
  return true;
}

void attention_hook::check_layers() const {
  if (layers_.empty() || layers_.size() + local_.size() != layers_wanted_)
    throw std::invalid_argument("of the model's " + std::to_string(layers_wanted_) + " layers " + std::to_string(layers_.size()) +
                                " have attention to all tokens that pqkv can take over, and " + std::to_string(local_.size()) +
                                " a sliding window; is flash attention on?");
}

/// A prompt that broke off starts again; a step is taken back.
void attention_hook::roll_back() {
  if (expected_ == expected::prompt) return reset(prompt_slot_);
  if (expected_ == expected::nothing) return;
  for (layer& each : layers_)
    for (const std::uint32_t slot : slots_)
      if (answering(each).size(slot) > committed_[slot]) answering(each).truncate(slot, committed_[slot]);
}

void attention_hook::truncate(std::size_t slot, std::size_t n) {
  for (layer& each : layers_)
    for (const auto& cache : each.caches)
      if (cache->size(slot) > n) cache->truncate(slot, n);
  committed_[slot] = n;
}

void attention_hook::fork(std::size_t from, std::size_t to) {
  try {
    for (layer& each : layers_)
      for (const auto& cache : each.caches) cache->fork(from, to);
  } catch (...) {
    reset(to);
    throw;
  }
  committed_[to] = committed_[from];
}

void attention_hook::reset(std::size_t slot) {
  for (layer& each : layers_)
    for (const auto& cache : each.caches) cache->reset(slot);
  committed_[slot] = 0;
}

void attention_hook::save(std::size_t slot, std::FILE* file) const {
  for (const layer& each : layers_) answering(each).save(slot, file);
}

void attention_hook::load(std::size_t slot, std::FILE* file, std::size_t tokens) {
  try {
    for (const layer& each : layers_) {
      answering(each).load(slot, file);
      if (answering(each).size(slot) != tokens) throw std::runtime_error("the session file's layers have other lengths than its tokens");
    }
  } catch (...) {
    reset(slot);
    throw;
  }
  committed_[slot] = tokens;
}

void attention_hook::clear_times() {
  times_ = {};
  before_ = counted();
}

attention_hook::counts_type attention_hook::counted() const {
  counts_type all;
  for (const layer& each : layers_)
    for (std::size_t slot = 0; slot < committed_.size(); ++slot) {
      const pqkv::slot_statistics found = answering(each).statistics(slot);
      all.tokens += static_cast<double>(found.tokens_attended);
      all.steps += static_cast<double>(found.steps);
    }
  return all;
}

double attention_hook::attended_tokens() const {
  const counts_type now = counted();
  return now.steps == before_.steps ? 0 : (now.tokens - before_.tokens) / (now.steps - before_.steps);
}

std::size_t attention_hook::bytes() const {
  std::size_t bytes = 0;
  for (const layer& each : layers_)
    for (const auto& cache : each.caches) bytes += cache->bytes();
  return bytes;
}

}  // namespace llama_example
