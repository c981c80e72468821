// SPDX-License-Identifier: Apache-2.0
// How blocks are cut decides whether sums keep their bits. Eigen computes outputs in groups: 8 for one token; for several up to three
// vector registers, 48 floats at most. Outputs after the last whole group are computed in another way. Blocks of whole groups, with what is
// left over in the last block, are computed as the whole matrix would be.
#include "weight_matrix.hpp"

#include <algorithm>
#include <cassert>
#include <cstring>

namespace minillama {
namespace {

using const_map = Eigen::Map<const matrix>;

// A block for one token stays in the first or second level of a core's cache. For many tokens it is larger, because Eigen prepares the
// tokens anew for each block.
constexpr std::size_t one_token_bytes = std::size_t{64} << 10, many_token_bytes = std::size_t{512} << 10;
// Eigen multiplies with other loops where the three extents of a product add up to less: no block may be so small that the whole is not.
constexpr std::size_t smallest_rest = 20;

/// Outputs of a block.
std::size_t block_outputs(std::size_t n, std::size_t inputs) {
  const std::size_t group = n == 1 ? 8 : 48, fitting = (n == 1 ? one_token_bytes : many_token_bytes) / (inputs * sizeof(float));
  return std::max(fitting / group, std::size_t{1}) * group;
}

/// Outputs of the largest block: the last one takes up to 19 more than the others, rather than leave them alone.
std::size_t largest_block(std::size_t n, std::size_t outputs, std::size_t inputs) {
  const std::size_t whole = block_outputs(n, inputs);
  if (outputs < whole + smallest_rest) return outputs;
  return std::max(whole, smallest_rest + (outputs - smallest_rest) % whole);
}

}  // namespace

weight_matrix::weight_matrix(std::size_t outputs, std::size_t inputs, weight_type type)
    : outputs_(outputs), inputs_(inputs), type_(type), bytes_(outputs * inputs * element_bytes(type)) {}

void weight_matrix::set(std::size_t output, std::size_t first_input, weight_type type, std::span<const std::byte> elements) {
  const std::size_t count = elements.size() / element_bytes(type);
  assert(output < outputs_ && first_input + count <= inputs_ && (type == type_ || type_ == weight_type::float32));
  std::byte* const to = bytes_.data() + (output * inputs_ + first_input) * element_bytes(type_);
  if (type == type_)
    std::memcpy(to, elements.data(), elements.size());
  else
    to_floats(type, elements, {reinterpret_cast<float*>(to), count});
}

std::span<const std::byte> weight_matrix::rows(std::size_t first, std::size_t count) const {
  const std::size_t row_bytes = inputs_ * element_bytes(type_);
  return {bytes_.data() + first * row_bytes, count * row_bytes};
}

void weight_matrix::copy_rows(std::size_t first, std::span<float> out) const { to_floats(type_, rows(first, out.size() / inputs_), out); }

/// Calls product(first output, block of floats [rows, inputs]) until all outputs had their turn.
template <class Product>
void weight_matrix::for_each_block(std::size_t n, const Product& product) const {
  if (type_ == weight_type::float32)
    return product(0, const_map(reinterpret_cast<const float*>(bytes_.data()), index_of(outputs_), index_of(inputs_)));
  matrix floats(index_of(largest_block(n, outputs_, inputs_)), index_of(inputs_));
  for (std::size_t first = 0, count = 0; first < outputs_; first += count) {
    const std::size_t left = outputs_ - first, whole = block_outputs(n, inputs_);
    count = left < whole + smallest_rest ? left : whole;
    copy_rows(first, {floats.data(), count * inputs_});
    product(first, const_map(floats.data(), index_of(count), index_of(inputs_)));
  }
}

void weight_matrix::project(const_rows_view x, rows_view y) const {
  for_each_block(static_cast<std::size_t>(x.rows()), [&](std::size_t first, const const_map& block) {
    y.middleCols(index_of(first), block.rows()).noalias() = x * block.transpose();
  });
}

void weight_matrix::add_projection(const_rows_view x, rows_view y) const {
  for_each_block(static_cast<std::size_t>(x.rows()), [&](std::size_t first, const const_map& block) {
    y.middleCols(index_of(first), block.rows()).noalias() += x * block.transpose();
  });
}

std::size_t weight_matrix::product_scratch_bytes(std::size_t n, std::size_t outputs, std::size_t inputs, weight_type type) {
  if (type == weight_type::float32) return 0;
  return largest_block(n, outputs, inputs) * inputs * sizeof(float);
}

}  // namespace minillama
