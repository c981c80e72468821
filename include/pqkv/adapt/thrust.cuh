// SPDX-License-Identifier: Apache-2.0
// Thrust's vectors as views. Nothing is copied: both are the same memory, and the view's type has the space. No header of the library
// includes this file; it needs the CUDA toolkit's Thrust with CUDA as its device system. The way back is Thrust's own:
// thrust::device_pointer_cast(view.data).
//
// A view points into the vector, so the vector must outlive it and must not grow meanwhile; a temporary does not compile. __half and
// __nv_bfloat16 become pqkv's types of the same layout; any other element type stays as it is.
#pragma once

#include <thrust/device_vector.h>
#include <thrust/host_vector.h>
#include <thrust/universal_vector.h>

#include <cstddef>
#include <type_traits>

#include "../core/error.hpp"
#include "../core/scalar.hpp"
#include "../core/view.hpp"

#if THRUST_DEVICE_SYSTEM != THRUST_DEVICE_SYSTEM_CUDA
#error "pqkv: <pqkv/adapt/thrust.cuh> needs THRUST_DEVICE_SYSTEM_CUDA; under another system Thrust's device vectors are host memory"
#endif

struct __half;  // of <cuda_fp16.h>, which is not needed
struct __nv_bfloat16;

namespace pqkv::inline PQKV_MODE {
namespace detail {
template <class T, class Allocator>
void takes_thrust_vector(const thrust::universal_vector<T, Allocator>&);  // the base of all of them

/// The space that a pointer of Thrust's points to; void if it is not known here.
template <class Pointer>
struct thrust_space {
  using type = void;
};
template <class T>
struct thrust_space<T*> {
  using type = space::host;
};
template <class T>
struct thrust_space<thrust::device_ptr<T>> {
  using type = space::device;
};
template <class T>
struct thrust_space<thrust::cuda::pointer<T>> {
  using type = space::device;
};
template <class T>
struct thrust_space<thrust::cuda::universal_pointer<T>> {
  using type = space::managed;
};

template <class T>
using thrust_pinned_allocator = thrust::mr::stateless_resource_allocator<T, thrust::cuda::universal_host_pinned_memory_resource>;

/// Pinned memory has the same pointers as managed memory; only the allocator tells them apart. Both are usable from host and device.
template <class Vector>
using thrust_vector_space =
    std::conditional_t<std::is_same_v<typename Vector::allocator_type, thrust_pinned_allocator<typename Vector::value_type>>, space::pinned,
                       typename thrust_space<typename Vector::pointer>::type>;

/// The same bits under another name: CUDA's 16-bit types and ours.
template <class T>
T* thrust_memory(T* data) {
  return data;
}
inline half* thrust_memory(__half* data) { return reinterpret_cast<half*>(data); }
inline const half* thrust_memory(const __half* data) { return reinterpret_cast<const half*>(data); }
inline bfloat16* thrust_memory(__nv_bfloat16* data) { return reinterpret_cast<bfloat16*>(data); }
inline const bfloat16* thrust_memory(const __nv_bfloat16* data) { return reinterpret_cast<const bfloat16*>(data); }

/// The spaces by their names: nvcc 13 names a kernel instantiated with an alias's type by the alias, which its host pass cannot read.
template <class Space, class T, class... Extent>
auto thrust_view(T* data, Extent... extents) {
  if constexpr (std::is_same_v<Space, space::device>)
    return make_view<space::device>(thrust_memory(data), extents...);
  else if constexpr (std::is_same_v<Space, space::managed>)
    return make_view<space::managed>(thrust_memory(data), extents...);
  else if constexpr (std::is_same_v<Space, space::pinned>)
    return make_view<space::pinned>(thrust_memory(data), extents...);
  else
    return make_view<space::host>(thrust_memory(data), extents...);
}
}  // namespace detail

/// thrust::device_vector, universal_vector, universal_host_pinned_vector and host_vector, with any allocator whose pointer says which
/// memory it points to.
template <class X>
concept thrust_vector = requires(const std::remove_cvref_t<X>& x) {
  detail::takes_thrust_vector(x);
  requires space::is_space<detail::thrust_vector_space<std::remove_cvref_t<X>>>;
};

template <thrust_vector X>
inline constexpr bool space::has_own_views<X> = true;

/// A vector as [n], or row-major with the extents given: make_view(keys, h, n, d). The element is const where the vector is.
///
/// @param x        lvalue
/// @param extents  of the vector's first elements; none: all of them, with one axis
/// @throws shape_error when the vector has fewer elements
template <thrust_vector X, class... Extent>
auto make_view(X&& x, Extent... extents) {
  static_assert(std::is_lvalue_reference_v<X>, "pqkv: this Thrust vector is a temporary, a view of it would dangle; give it a name first");
  using space_type = detail::thrust_vector_space<std::remove_cvref_t<X>>;
  if constexpr (sizeof...(Extent) == 0) {
    return detail::thrust_view<space_type>(thrust::raw_pointer_cast(x.data()), x.size());
  } else {
    const double wanted = (static_cast<double>(static_cast<std::size_t>(extents)) * ...), there = static_cast<double>(x.size());
    require_ok(detail::checks("make_view")
                   .that(wanted <= there, status::code::shape, "extents", relation::at_most, "elements, vector.size()", there, wanted));
    return detail::thrust_view<space_type>(thrust::raw_pointer_cast(x.data()), extents...);
  }
}

/// Memory of thrust::device_malloc() and the like, row-major.
template <class T, class... Extent>
requires(sizeof...(Extent) > 0) auto make_view(thrust::device_ptr<T> data, Extent... extents) {
  return detail::thrust_view<space::device>(data.get(), extents...);
}

}  // namespace pqkv
