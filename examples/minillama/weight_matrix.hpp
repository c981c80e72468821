// SPDX-License-Identifier: Apache-2.0
// A projection's weights, as the file stores them: 16-bit weights stay 16-bit, which halves the memory that they take and that a decoded
// token reads. Products are Eigen's, of float: a block of rows is converted into a buffer that stays in the cache, and multiplied from
// there.
#pragma once
#include <Eigen/Core>
#include <cstddef>
#include <pqkv/core/owner.hpp>
#include <span>

#include "weight_type.hpp"

namespace minillama {

/// Rows are tokens, or outputs of a projection; elements of a row are contiguous.
using matrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
using row_vector = Eigen::Matrix<float, 1, Eigen::Dynamic>;
using rows_view = Eigen::Ref<matrix, 0, Eigen::OuterStride<>>;
using const_rows_view = Eigen::Ref<const matrix, 0, Eigen::OuterStride<>>;

/// Eigen counts in signed numbers, the standard library and pqkv in unsigned ones.
inline Eigen::Index index_of(std::size_t i) { return static_cast<Eigen::Index>(i); }

/// [outputs, inputs]
class weight_matrix {
 public:
  weight_matrix() = default;
  /// All zero.
  weight_matrix(std::size_t outputs, std::size_t inputs, weight_type type);

  std::size_t outputs() const { return outputs_; }
  std::size_t inputs() const { return inputs_; }
  weight_type type() const { return type_; }
  std::size_t size_bytes() const { return bytes_.size(); }

  /// Takes weights of one output, from input `first_input` on.
  ///
  /// @param type      of the elements: the matrix's own, or any where that is float
  /// @param elements  at most as many as inputs are left
  void set(std::size_t output, std::size_t first_input, weight_type type, std::span<const std::byte> elements);

  /// Writes the weights of outputs first.. as float, as many rows as fit into out.
  ///
  /// @param out  [rows, inputs]
  void copy_rows(std::size_t first, std::span<float> out) const;

  /// y = x W^T; each output is the number that Eigen gives for a matrix of floats with the same values.
  ///
  /// @param x  [n, inputs]
  /// @param y  [n, outputs], written
  void project(const_rows_view x, rows_view y) const;
  /// y += x W^T
  void add_projection(const_rows_view x, rows_view y) const;

  /// Bytes of the buffer that a product of n tokens takes; more than two take no more than two.
  static std::size_t product_scratch_bytes(std::size_t n, std::size_t outputs, std::size_t inputs, weight_type type);

 private:
  std::span<const std::byte> rows(std::size_t first, std::size_t count) const;
  template <class Product>
  void for_each_block(std::size_t n, const Product& product) const;

  std::size_t outputs_ = 0, inputs_ = 0;
  weight_type type_ = weight_type::float32;
  pqkv::buffer<std::byte> bytes_;
};

}  // namespace minillama
