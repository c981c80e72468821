// SPDX-License-Identifier: Apache-2.0
// Operations that the CUDA backend does not have. Without these declarations an error would ask for a header that cannot help.
#pragma once

#include "../../cache/tiered_rows.hpp"
#include "../../exec/kernel.hpp"
#include "../../prefill_attention.hpp"
#include "../../quantize/residual.hpp"
#include "../../search/partial_ranking.hpp"
#include "../../search/pq_index.hpp"
#include "../../search/quantized_scan.hpp"
#include "../../search/rerank.hpp"
#include "../../selector/infllm.hpp"
#include "../../selector/quest.hpp"
#include "../../selector/received_attention.hpp"
#include "../../selector/sparq.hpp"

namespace pqkv::inline PQKV_MODE {
namespace detail {

/// Does not compile where it is called.
template <class Op>
struct absent_on_cuda {
  template <class... Argument>
  static void run(const Argument&...) {
    static_assert(always_false<Op, Argument...>,
                  "pqkv: this operation does not exist on CUDA; docs/policies.md lists what each backend has");
  }
  template <class Sizes>
  static constexpr std::size_t scratch_bytes(const Sizes&) {
    static_assert(always_false<Op, Sizes>, "pqkv: this operation does not exist on CUDA; docs/policies.md lists what each backend has");
    return 0;
  }
};

}  // namespace detail

template <>
struct kernel<op::learn_codebook, backend::cuda> : detail::absent_on_cuda<op::learn_codebook> {};
template <>
struct kernel<op::renew_codebook, backend::cuda> : detail::absent_on_cuda<op::renew_codebook> {};
template <>
struct kernel<op::read_ahead, backend::cuda> : detail::absent_on_cuda<op::read_ahead> {};
template <>
struct kernel<op::prefill_attention, backend::cuda> : detail::absent_on_cuda<op::prefill_attention> {};
template <>
struct kernel<op::rerank, backend::cuda> : detail::absent_on_cuda<op::rerank> {};
template <>
struct kernel<op::encode_residual, backend::cuda> : detail::absent_on_cuda<op::encode_residual> {};
template <>
struct kernel<op::residual_rows, backend::cuda> : detail::absent_on_cuda<op::residual_rows> {};
template <>
struct kernel<op::received_attention, backend::cuda> : detail::absent_on_cuda<op::received_attention> {};
template <>
struct kernel<op::sparse_query_scores, backend::cuda> : detail::absent_on_cuda<op::sparse_query_scores> {};
template <>
struct kernel<op::bound_keys, backend::cuda> : detail::absent_on_cuda<op::bound_keys> {};
template <>
struct kernel<op::represent_blocks, backend::cuda> : detail::absent_on_cuda<op::represent_blocks> {};
template <>
struct kernel<op::sum_part, backend::cuda> : detail::absent_on_cuda<op::sum_part> {};
template <>
struct kernel<op::largest_part, backend::cuda> : detail::absent_on_cuda<op::largest_part> {};
template <>
struct kernel<op::quantize_table, backend::cuda> : detail::absent_on_cuda<op::quantize_table> {};
template <>
struct kernel<op::quantized_scan, backend::cuda> : detail::absent_on_cuda<op::quantized_scan> {};

}  // namespace pqkv
