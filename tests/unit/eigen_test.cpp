// SPDX-License-Identifier: Apache-2.0
// Eigen's objects as views: every element where Eigen has it, whatever the storage order and strides, and back again.
#include <pqkv/adapt/eigen.hpp>
#include <pqkv/pqkv.hpp>

#include <doctest/doctest.h>

#include <cstdint>
#include <string>
#include <vector>

#include "cases/inputs.hpp"

using Eigen::Dynamic, Eigen::Index, Eigen::RowMajor;
using row_matrix = Eigen::Matrix<float, Dynamic, Dynamic, RowMajor>;
using pqkv::eigen_map, pqkv::eigen_strided_map, pqkv::make_view, pqkv::split_heads, pqkv::split_heads_by_token, pqkv::view;

namespace {

template <class Matrix>
Matrix numbered(Index rows, Index cols) {
  Matrix m(rows, cols);
  for (Index i = 0; i < rows; ++i)
    for (Index j = 0; j < cols; ++j) m(i, j) = static_cast<typename Matrix::Scalar>(static_cast<float>(100 * i + j));
  return m;
}

/// The view has the expression's extents, and its elements are those in memory, not copies.
template <class X, class T>
bool same_elements(X&& x, view<T, 2> v) {
  if (static_cast<Index>(v.extent(0)) != x.rows() || static_cast<Index>(v.extent(1)) != x.cols()) return false;
  for (Index i = 0; i < x.rows(); ++i)
    for (Index j = 0; j < x.cols(); ++j)
      if (static_cast<const void*>(&v(i, j)) != static_cast<const void*>(&x.coeffRef(i, j))) return false;
  return true;
}

template <class T, class X>
inline constexpr bool views_as = std::is_same_v<decltype(make_view(std::declval<X>())), T>;

template <class Function>
std::string message_of(Function&& f) {
  try {
    f();
  } catch (const std::exception& e) {
    return e.what();
  }
  return "";
}

}  // namespace

static_assert(views_as<view<float, 2>, Eigen::MatrixXf&> && views_as<view<const float, 2>, const Eigen::MatrixXf&>);
static_assert(views_as<view<float, 1>, Eigen::VectorXf&> && views_as<view<const float, 1>, const Eigen::RowVectorXf&>);
static_assert(views_as<view<float, 2>, Eigen::Map<Eigen::MatrixXf>> && views_as<view<const float, 2>, Eigen::Map<const Eigen::MatrixXf>>);
static_assert(views_as<view<float, 2>, Eigen::Ref<Eigen::MatrixXf>> && views_as<view<const float, 2>, Eigen::Ref<const Eigen::MatrixXf>&>);
static_assert(views_as<view<std::int32_t, 1>, Eigen::VectorXi&> && views_as<view<float, 2>, Eigen::ArrayXXf&>);
static_assert(views_as<view<pqkv::half, 2>, Eigen::Matrix<Eigen::half, 3, 4>&>);
static_assert(views_as<view<const pqkv::bfloat16, 1>, const Eigen::Matrix<Eigen::bfloat16, Dynamic, 1>&>);
static_assert(pqkv::eigen_dense<Eigen::Matrix3f> && pqkv::eigen_dense<const Eigen::ArrayXf&> && !pqkv::eigen_dense<float*>);
static_assert(!pqkv::eigen_dense<std::vector<float>> && !pqkv::eigen_dense<int>);

TEST_CASE("matrices of both storage orders, whole and in blocks, are viewed in place") {
  auto by_column = numbered<Eigen::MatrixXf>(6, 9);
  auto by_row = numbered<row_matrix>(6, 9);
  CHECK(same_elements(by_column, make_view(by_column)));
  CHECK(same_elements(by_row, make_view(by_row)));
  CHECK(make_view(by_column).stride(0) == 1);
  CHECK(make_view(by_row).stride(1) == 1);

  auto block = by_column.block(1, 2, 4, 5);
  auto row_block = by_row.middleRows(2, 3);
  auto turned = by_row.transpose();
  CHECK(same_elements(block, make_view(block)));
  CHECK(same_elements(row_block, make_view(by_row.middleRows(2, 3))));
  CHECK(same_elements(turned, make_view(turned)));
  auto part_turned = block.transpose();
  CHECK(same_elements(part_turned, make_view(part_turned)));

  make_view(by_row.bottomRows(1))(0, 3) = -1;  // a block is a temporary that points
  CHECK(by_row(5, 3) == -1);
}

TEST_CASE("maps with inner and outer strides") {
  std::vector<float> memory(200);
  using strides = Eigen::Stride<Dynamic, Dynamic>;
  Eigen::Map<Eigen::MatrixXf, 0, strides> by_column(memory.data(), 5, 4, strides(31, 3));
  Eigen::Map<row_matrix, 0, strides> by_row(memory.data() + 1, 5, 4, strides(31, 3));
  CHECK(same_elements(by_column, make_view(by_column)));
  CHECK(same_elements(by_row, make_view(by_row)));
  CHECK(make_view(by_row).stride(0) == 31);
  CHECK(make_view(by_row).stride(1) == 3);
}

TEST_CASE("vectors have one axis, with the stride that they have in their matrix") {
  Eigen::VectorXf column = Eigen::VectorXf::LinSpaced(7, 0, 6);
  Eigen::RowVectorXf row = column.transpose();
  auto by_column = numbered<Eigen::MatrixXf>(6, 9);
  auto by_row = numbered<row_matrix>(6, 9);
  const auto check = [](auto&& vector, std::size_t stride) {
    const auto v = make_view(vector);
    CHECK(v.extent(0) == static_cast<std::size_t>(vector.size()));
    CHECK(v.stride(0) == stride);
    for (Index i = 0; i < vector.size(); ++i) CHECK(&v(i) == &vector.coeffRef(i));
  };
  check(column, 1);
  check(row, 1);
  check(by_column.row(2), 6);
  check(by_column.col(2), 1);
  check(by_row.row(2), 1);
  check(by_row.col(2), 9);
  check(column.segment(2, 3), 1);
  check(by_row.row(3).segment(2, 4), 1);
  check(by_column.diagonal(), 7);
}

TEST_CASE("rows of tokens with heads side by side") {
  const std::size_t n = 5, h = 3, d = 4;
  auto by_row = numbered<row_matrix>(n, h * d);
  auto by_column = numbered<Eigen::MatrixXf>(n, h * d);
  const auto check = [&](auto& m) {
    const auto heads = split_heads(m, h);
    const auto tokens = split_heads_by_token(m, h);
    CHECK((heads.extent(0) == h && heads.extent(1) == n && heads.extent(2) == d));
    CHECK((tokens.extent(0) == n && tokens.extent(1) == h && tokens.extent(2) == d));
    for (std::size_t head = 0; head < h; ++head)
      for (std::size_t t = 0; t < n; ++t)
        for (std::size_t i = 0; i < d; ++i) {
          CHECK(&heads(head, t, i) == &m(static_cast<Index>(t), static_cast<Index>(head * d + i)));
          CHECK(&tokens(t, head, i) == &heads(head, t, i));
        }
  };
  check(by_row);
  check(by_column);
  auto tokens_in_columns = numbered<Eigen::MatrixXf>(h * d, n);
  CHECK(&split_heads(tokens_in_columns.transpose(), h)(2, 4, 1) == &tokens_in_columns(9, 4));
  CHECK(split_heads(by_row.row(1), h).extent(1) == 1);
  CHECK(split_heads(by_row.topRows(0), h).extent(1) == 0);  // no token yet

  CHECK_THROWS_AS(split_heads(by_row, 0), pqkv::value_error);
  CHECK_THROWS_AS(split_heads_by_token(by_row, 5), pqkv::shape_error);
  CHECK(message_of([&] { split_heads(by_row, 5); }) == "pqkv::split_heads: matrix.cols() must be a multiple of 5 (h), got 12");
}

TEST_CASE("reversed maps are refused by name") {
  std::vector<float> memory(20);
  Eigen::Map<Eigen::VectorXf, 0, Eigen::InnerStride<>> reversed(memory.data() + 4, 5, Eigen::InnerStride<>(-1));
  CHECK_THROWS_AS(make_view(reversed), pqkv::value_error);
  using strides = Eigen::Stride<Dynamic, Dynamic>;
  Eigen::Map<row_matrix, 0, strides> upside_down(memory.data() + 15, 4, 5, strides(-5, 1));
  CHECK(message_of([&] { make_view(upside_down); }) ==
        "pqkv::make_view: matrix.rowStride() must be at least 0 (elements, not negative (reversed)), got -5");
  CHECK_THROWS_AS(split_heads(upside_down, 1), pqkv::value_error);
  CHECK_THROWS_AS(split_heads_by_token(upside_down.transpose(), 1), pqkv::value_error);
}

TEST_CASE("views as maps") {
  std::vector<float> memory(60);
  for (std::size_t i = 0; i < memory.size(); ++i) memory[i] = static_cast<float>(i);
  const view<float, 3> rows{memory.data(), {3, 4, 5}, {20, 5, 1}};
  auto head = eigen_map(rows[1]);
  CHECK(head.rows() == 4);
  CHECK(head.cols() == 5);
  CHECK(same_elements(head, rows[1]));
  head(2, 3) = -7;
  CHECK(memory[20 + 13] == -7);
  CHECK(eigen_map(pqkv::as_const(rows)[2]).sum() == doctest::Approx(40 * 20 + 190));

  const view<float, 2> turned{memory.data(), {5, 4}, {1, 5}};
  auto strided = eigen_strided_map(turned);
  CHECK(same_elements(strided, turned));
  CHECK_THROWS_AS(eigen_map(turned), pqkv::shape_error);
  CHECK(message_of([&] { eigen_map(turned); }) == "pqkv::eigen_map: view.stride(1) must be 1 (last axis contiguous), got 5");
  CHECK(eigen_map(view<float, 2>{memory.data(), {5, 1}, {5, 9}}).rows() == 5);  // one element a row is contiguous

  auto column = eigen_map(view<const float, 1>{memory.data() + 2, {6}, {3}});
  static_assert(!(decltype(column)::Flags & Eigen::LvalueBit));
  for (Index i = 0; i < 6; ++i) CHECK(column(i) == static_cast<float>(2 + 3 * i));
}

TEST_CASE("16-bit types are the same bits on both sides") {
  Eigen::Matrix<Eigen::half, Dynamic, Dynamic> halves(3, 2);
  Eigen::Matrix<Eigen::bfloat16, Dynamic, Dynamic, RowMajor> brains(3, 2);
  const float values[] = {1.0f, -2.5f, 65504.0f, 6e-8f, 0.333f, -0.0f};
  for (Index i = 0; i < 6; ++i) {
    halves(i / 2, i % 2) = Eigen::half(values[i]);
    brains(i / 2, i % 2) = Eigen::bfloat16(values[i]);
  }
  const auto ours = make_view(halves);
  const auto ours_too = make_view(brains);
  for (Index i = 0; i < 6; ++i) {
    CHECK(ours(i / 2, i % 2).bits == pqkv::half(values[i]).bits);
    CHECK(ours_too(i / 2, i % 2).bits == pqkv::bfloat16(values[i]).bits);
  }
  std::vector<pqkv::bfloat16> row{pqkv::bfloat16(0.5f), pqkv::bfloat16(-8.0f)};
  auto theirs = eigen_map(make_view(row.data(), 2));
  static_assert(std::is_same_v<decltype(theirs)::Scalar, Eigen::bfloat16>);
  CHECK(static_cast<float>(theirs(0)) == 0.5f);
  CHECK(static_cast<float>(theirs(1)) == -8.0f);
}

TEST_CASE("train, encode, retrieve and attend read Eigen's memory as they read plain views") {
  const std::size_t h = 2, hq = 4, n = 700, d = 16;
  pqkv_cases::random_source random(11);
  Eigen::MatrixXf keys(n, h * d), values(n, h * d);  // by column: elements of a row are n apart
  row_matrix query(1, hq * d);
  for (Eigen::MatrixXf* m : {&keys, &values})
    for (Index i = 0; i < m->size(); ++i) m->data()[i] = random.gaussian();
  for (Index i = 0; i < query.size(); ++i) query(0, i) = random.gaussian();
  std::vector<float> plain_keys(h * n * d), plain_values(h * n * d);
  for (std::size_t head = 0; head < h; ++head)
    for (std::size_t t = 0; t < n; ++t)
      for (std::size_t i = 0; i < d; ++i) {
        const auto row = static_cast<Index>(t), col = static_cast<Index>(head * d + i);
        plain_keys[(head * n + t) * d + i] = keys(row, col), plain_values[(head * n + t) * d + i] = values(row, col);
      }

  const pqkv::exec::host<pqkv::isa::scalar> cpu;
  const pqkv::pq_shape shape{.kv_heads = h, .head_dim = d, .subspaces = 2, .bits = 5};
  const auto run = [&](view<const float, 3> k, view<const float, 3> v, view<const float, 2> q) {
    pqkv::codebook book(shape);
    REQUIRE(pqkv::train(cpu, k, book) == pqkv::kmeans_outcome::trained);
    pqkv::codes codes(shape, n);
    pqkv::encode(cpu, k, book.view(), codes.mutable_view());
    pqkv::distance_table table(hq, shape);
    pqkv::inner_product_table(cpu, q, book.view(), table.mutable_view());
    std::vector<std::int32_t> chosen(h * 40);
    std::vector<std::uint32_t> counts(h);
    const std::vector<pqkv::middle_range> middle(h, {8, n - 32, 40});
    pqkv::retrieve(cpu, table.view(), codes.view(), {}, make_view(middle.data(), h), make_view(chosen.data(), h, 40),
                   make_view(counts.data(), h), {.head_dim = d});
    const std::vector<pqkv::token_span> spans(h, {.leading = 8, .window_begin = n - 32, .window_end = n});
    std::vector<float> result(hq * d);
    pqkv::attention(
        cpu, q, pqkv::strided_kv(k, v),
        {make_view(spans.data(), h), make_view(std::as_const(chosen).data(), h, 40), make_view(std::as_const(counts).data(), h)},
        make_view(result.data(), hq, d));
    result.insert(result.end(), book.view().centroids.data, book.view().centroids.data + book.view().centroids.size());
    for (const std::uint8_t* code = codes.view().data; code != &codes.view()(0, 0, n - 1); ++code) result.push_back(*code);
    result.insert(result.end(), chosen.begin(), chosen.end());
    return result;
  };
  const std::vector<float> by_eigen = run(split_heads(keys, h), split_heads(values, h), split_heads_by_token(query, hq)[0]);
  const std::vector<float> by_views =
      run(make_view(std::as_const(plain_keys).data(), h, n, d), make_view(std::as_const(plain_values).data(), h, n, d),
          make_view(std::as_const(query).data(), hq, d));
  REQUIRE(by_eigen.size() == by_views.size());
  // Attention sums strided rows in shorter runs, so it agrees within rounding; all that selects agrees to the bit.
  for (std::size_t i = 0; i < hq * d; ++i) CHECK(by_eigen[i] == doctest::Approx(by_views[i]).epsilon(1e-5).scale(1));
  bool same = true;
  for (std::size_t i = hq * d; i < by_eigen.size(); ++i) same = same && pqkv::float_bits(by_eigen[i]) == pqkv::float_bits(by_views[i]);
  CHECK(same);
}
