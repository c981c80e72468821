// SPDX-License-Identifier: Apache-2.0
// The cache of one layer on a device: pqcache with keys, values and index in device memory, for files that nvcc compiles. The same
// verbs, the same settings and the same selected tokens. append(), attend() and retrieve() only enqueue and read where each sequence
// stands from the device, so one decode step captured in a CUDA graph is replayed while the sequences grow. All memory is taken at
// construction. Not for tensors that outgrow the device: there the rows must stay on the host.
#pragma once

#include <algorithm>

#include "cuda.cuh"
#include "detail/cuda/device_pqcache.cuh"

namespace pqkv {

/// @tparam T  type of the stored keys and values: float, half or bfloat16
template <storage_scalar T = bfloat16>
class device_pqcache {
 public:
  /// Shape, budget and selection, as pqcache<T, selector::pq>::params has them; a codebook is trained with a fixed L (no overlap rule),
  /// and there is no second stage (residual).
  /// A budget of all tokens is dense attention, `budget.retrieve = 0` streaming attention.
  struct params : cache_shape {
    budget_rule budget{};
    selector::pq::params selector{};
  };

  /// The checks of the constructor.
  static status can_construct(const params& p) noexcept {
    if (const status s = can_cache(p); !s.ok()) return s;
    if (const status b = can_budget(p.budget, "device_pqcache"); !b.ok()) return b;
    if (const status q = selector::pq::can_construct(p, p.selector); !q.ok()) return q;
    return detail::checks("device_pqcache")
        .at_most("selector.residual.subspaces", static_cast<double>(p.selector.residual.subspaces), 0, "no second stage on a device")
        .that(!p.selector.overlap, status::code::value, "selector.overlap", "no overlap rule on a device", 0, 1)
        .at_most("head_dim", static_cast<double>(p.head_dim), 256, "d of attention on a device, at most");
  }

  /// @param policy  its stream clears the memory
  /// @throws shape_error, value_error as can_construct() says; cuda_error
  device_pqcache(const exec::cuda& policy, const params& p)
      : params_((require_ok(can_construct(p)), p)),
        quantizer_{p.batch * p.kv_heads, p.head_dim, p.selector.subspaces, p.selector.bits, p.selector.metric},
        lists_(score_lists(p.selector.reduction, p.kv_heads, p.query_heads)),
        k_max_(std::clamp<std::size_t>(p.budget.at(p.capacity).retrieve, 1, p.capacity)),
        cells_(cells(p, quantizer_)),
        rows_(heads() * p.capacity * row_elements(), policy.stream),
        centroids_(heads() * quantizer_.subspaces * quantizer_.row_dim() * quantizer_.centroids(), policy.stream),
        mean_(heads() * p.head_dim, policy.stream),
        radius_(p.selector.metric == key_metric::inner_product ? heads() * quantizer_.subspaces : 0, policy.stream),
        codes_(heads() * quantizer_.subspaces * code_plane_stride(p.capacity), policy.stream),
        counts_of_cells_(heads() * cells_, policy.stream),
        offsets_(cells_ == 0 ? 0 : heads() * (cells_ + 1), policy.stream),
        ids_(cells_ == 0 ? 0 : heads() * p.capacity, policy.stream),
        index_ranges_(cells_ == 0 ? 0 : 3 * heads(), policy.stream),
        cell_codes_(quantizer_.subspaces * cells_, policy.stream),
        slots_(heads(), policy.stream),
        ranges_(heads(), policy.stream),
        spans_(p.batch * lists_, policy.stream),
        counts_(p.batch * lists_, policy.stream),
        indices_(p.batch * lists_ * k_max_, policy.stream),
        table_(p.batch * p.query_heads * quantizer_.subspaces * quantizer_.centroids(), policy.stream),
        bias_(p.batch * p.query_heads, policy.stream),
        out_(p.batch * p.query_heads * p.head_dim, policy.stream),
        lse_(p.batch * p.query_heads, policy.stream),
        outcome_(p.kv_heads * quantizer_.subspaces, policy.stream),
        scratch_(scratch_bytes(), policy.stream),
        state_(p.batch),
        unknown_(p.batch),
        next_try_(p.batch) {
    if (cells_ == 0) return;
    const cell_index digits({1, p.head_dim, quantizer_.subspaces, quantizer_.bits}, 0);
    cell_codes_.upload(digits.view().cell_codes.data, policy.stream);
    sync(policy);  // the digits are the host's
  }

  const params& parameters() const { return params_; }
  /// Lists of a slot: h, or hq under a reduction `none`.
  std::size_t lists() const { return lists_; }
  /// Device memory that it holds.
  std::size_t size_bytes() const {
    const auto all = [](const auto&... part) { return (part.size_bytes() + ...); };
    return all(rows_, centroids_, mean_, radius_, codes_, counts_of_cells_, offsets_, ids_, index_ranges_, cell_codes_, slots_, ranges_,
               spans_, counts_, indices_, table_, bias_, out_, lse_, outcome_, scratch_);
  }
  /// Keys and values by absolute position, [batch * h, capacity, d]; slot b's head is b * h + head.
  strided_store<T, space::device> store() const { return {as_const(views().keys), as_const(views().values)}; }

  /// Where every KV head of every slot stands, [batch * h]. Waits for the stream.
  /// @throws cuda_error
  buffer<device_slot> inspect(const exec::cuda& policy) const {
    buffer<device_slot> found(slots_.size());
    slots_.download(found.data(), policy.stream);
    sync(policy);
    return found;
  }

  /// As pqcache::prefill(): an empty slot, a prompt whole or in chunks, [h, n, d] each; the last chunk trains and encodes.
  /// Enqueues only; never inside a capture, since its shapes are those of the prompt.
  /// @throws shape_error, value_error, capacity_error; cuda_error
  template <class K, class V, class Space>
  requires storage_scalar<K> && storage_scalar<V> && reachable_from<Space, exec::cuda>
  void prefill(const exec::cuda& policy, std::size_t slot, view<K, 3, Space> keys, view<V, 3, Space> values, chunk which = chunk::last) {
    require_ok(doors().prefill(slot, keys, values));
    slot_state& state = state_[slot];
    const std::size_t n = keys.extent(1), h = params_.kv_heads;
    const auto all = views();
    const auto counter = [&](std::uint32_t* first) { return view<std::uint32_t, 1, space::device>{first, {h}, {sizeof(device_slot) / 4}}; };
    device_slot* own = slots_.data() + slot * h;
    store_rows(policy, keys, rows_of(all.keys, slot, state.n, n), counter(&own->nonfinite_keys));
    store_rows(policy, values, rows_of(all.values, slot, state.n, n), counter(&own->nonfinite_values));
    state.n += n;
    state.prompt = state.n;
    state.prefilling = which == chunk::more;
    if (state.prefilling || state.n == 0) return;
    state.slide_window(params_.budget);
    learn(policy, slot, state);
  }

  /// As pqcache::append(): one token to every active slot, [batch, h, d]. What does not fit is refused and counted on the device
  /// (inspect()), since where a captured step stands is known there alone.
  /// @param active  [batch] uint8 in device memory, non-zero means active; empty: all
  /// @cost  one launch
  template <class K, class V, class Space>
  requires storage_scalar<K> && storage_scalar<V> && reachable_from<Space, exec::cuda>
  void append(const exec::cuda& policy, view<K, 3, Space> keys, view<V, 3, Space> values,
              view<const std::uint8_t, 1, space::device> active = {}) {
    require_ok(active_door("append", active));
    require_ok(step_doors().append(keys, values, {}));
    const detail::launcher launch(policy, "append");
    launch("append_token_kernel", detail::append_token_kernel<T, std::remove_cv_t<K>, std::remove_cv_t<V>, Space>,
           {dim3(static_cast<unsigned>(params_.kv_heads), static_cast<unsigned>(params_.batch)), max_centroids}, views(), as_const(keys),
           as_const(values), active);
  }

  /// As pqcache::attend(). Rows of inactive slots are left alone.
  /// @param query  [batch, hq, d] float, contiguous
  /// @param out    [batch, hq, d] float, written
  /// @param lse    [batch, hq] float, written if given
  void attend(const exec::cuda& policy, view<const float, 3, space::device> query, view<float, 3, space::device> out,
              view<float, 2, space::device> lse = {}, view<const std::uint8_t, 1, space::device> active = {}) {
    require_ok(active_door("attend", active));
    require_ok(step_doors().attend(query, out, lse, {}));
    select(policy, query, active);
    const std::size_t hq = params_.query_heads, d = params_.head_dim, batch = params_.batch;
    const token_set<space::device> tokens{as_const(views().spans), as_const(found()), as_const(views().counts)};
    const auto results = make_view<space::device>(out_.data(), batch * hq, d);
    const auto sums = make_view<space::device>(lse_.data(), batch * hq);
    attention(working(policy), flatten(query), store(), tokens, results, sums);
    const detail::launcher launch(policy, "attend");
    launch("copy_results_kernel", detail::copy_results_kernel<decltype(active)>,
           {dim3(static_cast<unsigned>(hq), static_cast<unsigned>(batch)), 128}, active, as_const(results), as_const(sums), out, lse);
  }

  /// As pqcache::retrieve(). Lists longer than k_max are cut.
  /// @param indices  [batch, lists(), k_max] int32, written for active slots: absolute positions, ascending, then -1
  /// @param counts   [batch, lists()] uint32, written for active slots
  void retrieve(const exec::cuda& policy, view<const float, 3, space::device> query, view<std::int32_t, 3, space::device> indices,
                view<std::uint32_t, 2, space::device> counts, view<const std::uint8_t, 1, space::device> active = {}) {
    require_ok(active_door("retrieve", active));
    require_ok(step_doors().retrieve(query, indices, counts, {}, [](std::size_t) { return std::size_t{0}; }));
    select(policy, query, active);
    const detail::launcher launch(policy, "retrieve");
    launch("copy_lists_kernel", detail::copy_lists_kernel<T>,
           {dim3(static_cast<unsigned>(lists_), static_cast<unsigned>(params_.batch)), 256}, views(), as_const(found()), active, indices,
           counts);
  }

  /// Makes slot `to` a copy of slot `from`. @throws value_error, cuda_error
  void fork(const exec::cuda& policy, std::size_t from, std::size_t to) {
    require_ok(doors().slot("fork", "from", from));
    require_ok(doors().slot("fork", "to", to));
    if (from == to) return;
    const auto copy = [&](const auto&... part) { (copy_slot(policy, part, from, to), ...); };
    copy(rows_, centroids_, mean_, radius_, codes_, counts_of_cells_, offsets_, ids_, slots_);
    const std::size_t h = params_.kv_heads;
    for (std::size_t which = 0; which < 3 && cells_ != 0; ++which) {
      std::uint32_t* of_heads = index_ranges_.data() + which * heads();
      copy_part(policy, of_heads + to * h, of_heads + from * h, h);
    }
    state_[to] = state_[from];
  }

  /// Empties a slot. @throws value_error, cuda_error
  void reset(const exec::cuda& policy, std::size_t slot) {
    require_ok(doors().slot("reset", "slot", slot));
    clear_index(policy, slot);
    device_slot* own = slots_.data() + slot * params_.kv_heads;
    detail::check_cuda(cudaMemsetAsync(own, 0, params_.kv_heads * sizeof(device_slot), static_cast<cudaStream_t>(policy.stream)), "reset",
                       "cudaMemsetAsync");
    state_[slot] = {};
  }

  /// As pqcache::maintain(): trains codebooks that are due, folds long tails into the id lists. Waits for the stream, so it belongs
  /// between steps, every few hundred.
  /// @throws cuda_error
  void maintain(const exec::cuda& policy) {
    const buffer<device_slot> now = inspect(policy);
    bool long_tail = false;
    buffer<std::uint32_t> index(index_ranges_.size());
    index_ranges_.download(index.data(), policy.stream);
    sync(policy);
    for (std::size_t slot = 0; slot < params_.batch; ++slot) {
      const std::size_t head = slot * params_.kv_heads;
      slot_state& state = state_[slot];
      if (state.prefilling) continue;
      static_cast<slot_extent&>(state) = now[head].extent;
      if (now[head].trained == 0 && state.n >= next_try_[slot]) learn(policy, slot, state);
      if (now[head].trained != 0 && cells_ != 0)
        long_tail |= index[2 * heads() + head] - index[heads() + head] >= params_.selector.tail_tokens;
    }
    if (long_tail) merge_tails(working(policy), as_const(views().codes), views().index);
  }

 private:
  std::size_t heads() const { return params_.batch * params_.kv_heads; }
  std::size_t row_elements() const { return interleaved_store<T>::row_elements(params_.head_dim); }
  /// As selector::pq: 0 where there is no index or it could never be used.
  static std::size_t cells(const params& p, const pq_shape& q) {
    return has_cell_index(q) && resolve_path(p.selector.path, q.cells(), p.capacity) == search_path::joint ? q.cells() : 0;
  }
  std::size_t scratch_bytes() const {
    const std::size_t hq = params_.batch * params_.query_heads, n = params_.capacity, m = quantizer_.subspaces;
    return std::max(
        {retrieve_device_scratch_bytes(params_.batch * lists_, hq, n, cells_), attention_device_scratch_bytes(hq, params_.head_dim),
         cells_ == 0 ? 0 : merge_tails_device_scratch_bytes(heads(), n, cells_),
         kmeans_device_scratch_bytes(params_.kv_heads * m, n, quantizer_.row_dim(), quantizer_.centroids(), params_.selector.train)});
  }
  /// The policy with the cache's own scratch, unless the caller brings some.
  exec::cuda working(const exec::cuda& policy) const {
    return policy.scratch.counting() ? exec::cuda{policy.stream, device_arena(scratch_)} : policy;
  }

  detail::device_cache_views<T> views() const {
    const std::size_t d = params_.head_dim, n = params_.capacity, m = quantizer_.subspaces, c = quantizer_.centroids(),
                      row = row_elements();
    const std::size_t plane = code_plane_stride(n), all = heads();
    detail::device_cache_views<T> v{};
    v.keys = {rows_.data(), {all, n, d}, {n * row, row, 1}};
    v.values = {rows_.data() + d, {all, n, d}, {n * row, row, 1}};
    v.book = {make_view<space::device>(centroids_.data(), all, m, quantizer_.row_dim(), c), make_view<space::device>(mean_.data(), all, d)};
    if (radius_.size() != 0) v.book.squared_radius = make_view<space::device>(radius_.data(), all, m);
    v.codes = {codes_.data(), {all, m, n}, {m * plane, plane, 1}};
    if (cells_ != 0)
      v.index = {make_view<space::device>(counts_of_cells_.data(), all, cells_),
                 make_view<space::device>(offsets_.data(), all, cells_ + 1),
                 make_view<space::device>(ids_.data(), all, n),
                 make_view<space::device>(index_ranges_.data(), all),
                 make_view<space::device>(index_ranges_.data() + all, all),
                 make_view<space::device>(index_ranges_.data() + 2 * all, all),
                 as_const(make_view<space::device>(cell_codes_.data(), m, cells_))};
    v.slots = make_view<space::device>(slots_.data(), all);
    v.ranges = make_view<space::device>(ranges_.data(), all);
    v.spans = make_view<space::device>(spans_.data(), spans_.size());
    v.counts = make_view<space::device>(counts_.data(), counts_.size());
    v.rule = params_.budget.flat();
    v.kv_heads = static_cast<std::uint32_t>(params_.kv_heads);
    v.lists = static_cast<std::uint32_t>(lists_);
    return v;
  }
  view<std::int32_t, 2, space::device> found() const { return make_view<space::device>(indices_.data(), counts_.size(), k_max_); }
  view<T, 3, space::device> rows_of(view<T, 3, space::device> all, std::size_t slot, std::size_t first, std::size_t count) const {
    return all.slice(0, slot * params_.kv_heads, params_.kv_heads).slice(1, first, count);
  }
  mutable_codebook_view<space::device> book_of(std::size_t slot) const {
    const std::size_t first = slot * params_.kv_heads, h = params_.kv_heads;
    mutable_codebook_view<space::device> book = views().book;
    book.centroids = book.centroids.slice(0, first, h);
    book.mean = book.mean.slice(0, first, h);
    if (book.squared_radius.data != nullptr) book.squared_radius = book.squared_radius.slice(0, first, h);
    return book;
  }

  detail::cache_doors doors() const noexcept { return {params_, state_.data(), lists_}; }
  /// The doors of a step, which must not ask the host where a slot stands.
  detail::cache_doors step_doors() const noexcept { return {params_, unknown_.data(), lists_}; }
  status active_door(const char* function, view<const std::uint8_t, 1, space::device> active) const noexcept {
    return detail::checks(function).extent("active.extent(0)", active.data == nullptr ? params_.batch : active.extent(0), params_.batch,
                                           "batch, from params");
  }

  /// Trains and encodes what a slot holds, and says on the device where it stands.
  void learn(const exec::cuda& policy, std::size_t slot, const slot_state& state) {
    const std::size_t h = params_.kv_heads, n = state.n;
    const middle_range middle = state.middle(params_.budget);
    view<std::uint8_t, 2, space::device> outcome{};
    next_try_[slot] = n + n / 64 + 1;
    if (n >= middle.begin + quantizer_.centroids()) {
      outcome = make_view<space::device>(outcome_.data(), h, quantizer_.subspaces);
      const auto all = views();
      const auto keys = as_const(rows_of(all.keys, slot, middle.begin, n - middle.begin));
      const auto codes = all.codes.slice(0, slot * h, h);
      train(working(policy), keys, book_of(slot), outcome, params_.selector.train);
      encode(policy, keys, book_of(slot), codes.slice(2, middle.begin, n - middle.begin));
      clear_index(policy, slot);
      if (cells_ != 0) {
        count_cells(policy, codes, middle.begin, middle.end, all.index.heads(slot * h, h));
        merge_tails(working(policy), codes, all.index.heads(slot * h, h));
      }
    }
    using slots_type = view<device_slot, 1, space::device>;
    const detail::launcher launch(policy, "prefill");
    launch("settle_slot_kernel", detail::settle_slot_kernel<slots_type>, {dim3(detail::ceil_div(h, 256)), 256},
           views().slots.slice(0, slot * h, h), static_cast<const slot_extent&>(state), as_const(outcome));
  }

  /// Fills ranges, spans, indices and counts.
  void select(const exec::cuda& policy, view<const float, 3, space::device> query, view<const std::uint8_t, 1, space::device> active) {
    const auto all = views();
    const detail::launcher launch(policy, "select");
    launch("plan_step_kernel", detail::plan_step_kernel<T>, {dim3(detail::ceil_div(spans_.size(), 256)), 256}, all, active);
    const mutable_distance_table_view<space::device> table{
        make_view<space::device>(table_.data(), params_.batch * params_.query_heads, quantizer_.subspaces, quantizer_.centroids()),
        make_view<space::device>(bias_.data(), bias_.size())};
    inner_product_table(policy, flatten(query), all.book, table);
    pqkv::retrieve(working(policy), table, as_const(all.codes), all.index, as_const(all.ranges), found(), all.counts,
                   {.head_dim = params_.head_dim, .reduction = params_.selector.reduction, .path = params_.selector.path});
  }

  void clear_index(const exec::cuda& policy, std::size_t slot) {
    if (cells_ == 0) return;
    const std::size_t h = params_.kv_heads, head = slot * h;
    const auto clear = [&](std::uint32_t* first, std::size_t count) {
      detail::check_cuda(cudaMemsetAsync(first, 0, count * sizeof(std::uint32_t), static_cast<cudaStream_t>(policy.stream)), "prefill",
                         "cudaMemsetAsync");
    };
    clear(counts_of_cells_.data() + head * cells_, h * cells_);
    clear(offsets_.data() + head * (cells_ + 1), h * (cells_ + 1));
    for (std::size_t which = 0; which < 3; ++which) clear(index_ranges_.data() + which * heads() + head, h);
  }

  template <class U>
  static void copy_part(const exec::cuda& policy, U* to, const U* from, std::size_t count) {
    detail::check_cuda(cudaMemcpyAsync(to, from, count * sizeof(U), cudaMemcpyDeviceToDevice, static_cast<cudaStream_t>(policy.stream)),
                       "fork", "cudaMemcpyAsync");
  }
  template <class U>
  void copy_slot(const exec::cuda& policy, const device_buffer<U>& part, std::size_t from, std::size_t to) const {
    const std::size_t share = part.size() / params_.batch;
    copy_part(policy, part.data() + to * share, part.data() + from * share, share);
  }

  params params_;
  pq_shape quantizer_;
  std::size_t lists_, k_max_, cells_;
  device_buffer<T> rows_;
  device_buffer<float> centroids_, mean_, radius_;
  device_buffer<std::uint8_t> codes_;
  device_buffer<std::uint32_t> counts_of_cells_, offsets_;
  device_buffer<std::int32_t> ids_;
  device_buffer<std::uint32_t> index_ranges_;  // first, merged, last: [batch * h] each
  device_buffer<std::uint8_t> cell_codes_;
  device_buffer<device_slot> slots_;
  device_buffer<middle_range> ranges_;
  device_buffer<token_span> spans_;
  device_buffer<std::uint32_t> counts_;
  device_buffer<std::int32_t> indices_;
  device_buffer<float> table_, bias_, out_, lse_;
  device_buffer<std::uint8_t> outcome_;
  device_buffer<std::byte> scratch_;
  buffer<slot_state> state_, unknown_;  // as the host last knew; as it asks in a step
  buffer<std::size_t> next_try_;        // length at which training is worth another try
};

}  // namespace pqkv
