// SPDX-License-Identifier: Apache-2.0
// Thrust's vectors as views: every space and element type by static_assert, and operations on them against the host. refused/ has what
// does not compile. Ends with 77 where there is no GPU.
#include "on_device.cuh"

#include <pqkv/adapt/thrust.cuh>

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <thrust/copy.h>
#include <thrust/device_free.h>
#include <thrust/device_malloc.h>

#include <algorithm>
#include <string>
#include <type_traits>
#include <utility>

#include "cases/inputs.hpp"

namespace {
using namespace pqkv_cases;
using pqkv::make_view, pqkv::view;
using pqkv::space::host, pqkv::space::managed, pqkv::space::pinned;

template <class View, class Vector>
inline constexpr bool views_as = std::is_same_v<decltype(make_view(std::declval<Vector>())), View>;

static_assert(views_as<view<float, 1, device>, thrust::device_vector<float>&>);
static_assert(views_as<view<const float, 1, device>, const thrust::device_vector<float>&>);
static_assert(views_as<view<std::int32_t, 1, device>, thrust::device_vector<std::int32_t>&>);
static_assert(views_as<view<pqkv::half, 1, device>, thrust::device_vector<__half>&>);
static_assert(views_as<view<const pqkv::bfloat16, 1, device>, const thrust::device_vector<__nv_bfloat16>&>);
static_assert(views_as<view<pqkv::bfloat16, 1, device>, thrust::device_vector<pqkv::bfloat16>&>);
static_assert(views_as<view<float, 1, device>, thrust::device_vector<float, thrust::cuda::allocator<float>>&>);
static_assert(views_as<view<float, 1, managed>, thrust::universal_vector<float>&>);
static_assert(views_as<view<float, 1, managed>, thrust::device_vector<float, thrust::universal_allocator<float>>&>);
static_assert(views_as<view<const float, 1, pinned>, const thrust::universal_host_pinned_vector<float>&>);
static_assert(views_as<view<float, 1, pinned>, thrust::host_vector<float, thrust::universal_host_pinned_allocator<float>>&>);
static_assert(views_as<view<const float, 1, host>, const thrust::host_vector<float>&>);
static_assert(std::is_same_v<decltype(make_view(std::declval<thrust::device_vector<float>&>(), 2, 3)), view<float, 2, device>>);
static_assert(std::is_same_v<decltype(make_view(thrust::device_ptr<const __half>{}, 2, 3, 4)), view<const pqkv::half, 3, device>>);
static_assert(pqkv::thrust_vector<const thrust::device_vector<int>&> && !pqkv::thrust_vector<std::vector<int>>);
static_assert(!pqkv::thrust_vector<thrust::device_ptr<int>> && !pqkv::thrust_vector<float*>);

/// The view is the vector's own memory, [2, 3, 4] of it in rows.
template <class Vector>
void compare_memory(Vector& vector, verdict& all) {
  const auto line = make_view(vector);
  const auto block = make_view(vector, 2, 3, 4);
  all.check(static_cast<const void*>(line.data) == static_cast<const void*>(thrust::raw_pointer_cast(vector.data())) &&
                line.extent(0) == vector.size() && line.stride(0) == 1,
            "a vector of %zu is [%zu]", vector.size(), line.extent(0));
  all.check(static_cast<const void*>(block.data) == static_cast<const void*>(line.data) && block.extent(0) == 2 && block.extent(1) == 3 &&
                block.extent(2) == 4 && block.stride(0) == 12 && block.stride(1) == 4 && block.stride(2) == 1,
            "[2, 3, 4] is [%zu, %zu, %zu]", block.extent(0), block.extent(1), block.extent(2));
  std::string refused;
  try {
    make_view(vector, vector.size(), 2);
  } catch (const pqkv::shape_error& error) {
    refused = error.what();
  }
  all.check(refused == "pqkv::make_view: extents must be at most 24 (elements, vector.size()), got 48", "%s", refused.c_str());
}

/// Codes of keys that lie in a vector of a type, against those of the host. These are a view: nvcc would spell a std::vector here by a
/// built-in trait that g++ 13 refuses in a signature.
template <class Vector>
void compare_codes(pqkv::view<const float, 3> keys, const book_on_device& book, pqkv::view<const std::uint8_t, 1> wanted, verdict& all) {
  const std::size_t h = keys.extent(0), n = keys.extent(1), d = keys.extent(2);
  const Vector vector(keys.data, keys.data + keys.size());
  thrust::device_vector<std::uint8_t> codes(wanted.size());
  pqkv::encode(pqkv::exec::cuda{}, make_view(vector, h, n, d), pqkv::codebook_view<device>(book.view()),
               make_view(codes, h, wanted.size() / (h * n), n));
  pqkv::sync(pqkv::exec::cuda{});
  std::vector<std::uint8_t> got(codes.size());
  thrust::copy(codes.begin(), codes.end(), got.begin());
  all.check(std::equal(got.begin(), got.end(), wanted.data, wanted.data + wanted.size()), "codes of %zu keys in a vector of Thrust's", n);
}
}  // namespace

int main() {
  if (!has_device()) return 77;
  verdict memory("Thrust vectors"), operations("operations on them");
  thrust::device_vector<float> on_the_device(24);
  thrust::universal_vector<double> anywhere(24);
  thrust::universal_host_pinned_vector<__half> locked(24);
  const thrust::host_vector<int> here(24);
  compare_memory(on_the_device, memory);
  compare_memory(anywhere, memory);
  compare_memory(locked, memory);
  compare_memory(here, memory);
  make_view(anywhere)(7) = 3;  // the host's, as it is the device's
  memory.check(anywhere[7] == 3, "what was written to the view is not in the vector");
  const thrust::device_ptr<float> block = thrust::device_malloc<float>(6);
  memory.check(make_view(block, 2, 3).data == block.get() && make_view(block, 2, 3).extent(1) == 3, "memory of device_malloc()");
  thrust::device_free(block);

  const std::size_t h = 2, n = 700, d = 64;
  pqkv::codebook book = make_book({h, d, 4, 6}, 5);
  const rows<float> keys = make_rows<float>(content::gaussian, h, n, d, 6);
  std::vector<std::uint8_t> wanted(h * 4 * n), by_host(wanted.size());
  pqkv::encode(pqkv::exec::host<>{}, keys.view(), book.view(), make_view(wanted.data(), h, 4, n));
  const book_on_device there(book.mutable_view());
  const pqkv::view<const std::uint8_t, 1> expected = pqkv::make_view(std::as_const(wanted).data(), wanted.size());
  compare_codes<thrust::device_vector<float>>(keys.view(), there, expected, operations);
  compare_codes<thrust::universal_vector<float>>(keys.view(), there, expected, operations);
  compare_codes<thrust::universal_host_pinned_vector<float>>(keys.view(), there, expected, operations);
  const thrust::universal_vector<float> shared(keys.view().data, keys.view().data + keys.view().size());
  pqkv::encode(pqkv::exec::host<>{}, make_view(shared, h, n, d), book.view(), make_view(by_host.data(), h, 4, n));
  operations.check(by_host == wanted, "codes by the host of keys in managed memory");
  bool passed = memory.passed(14);
  passed &= operations.passed(4);
  return passed ? 0 : 1;
}
