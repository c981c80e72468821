// SPDX-License-Identifier: Apache-2.0
// What the device tests share: host arrays with a copy on the device, owners of the library as views there, and a count of what
// differed. A program ends with 77 where there is no GPU.
#pragma once

#include <pqkv/cuda.cuh>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string_view>
#include <vector>

namespace pqkv_cases {

using device = pqkv::space::device;

inline bool has_device() {
  int count = 0;
  if (cudaGetDeviceCount(&count) == cudaSuccess && count > 0) return true;
  std::printf("no CUDA device\n");
  return false;
}

/// The memory behind a host view, gaps included, with a copy on the device; same extents and strides there.
template <class T, std::size_t Rank>
class on_device {
  using element = std::remove_cv_t<T>;

 public:
  on_device() = default;
  explicit on_device(pqkv::view<T, Rank> host) : host_(host), memory_(span(host), nullptr) {
    if (memory_.size() != 0) memory_.upload(host.data, nullptr);
  }
  pqkv::view<T, Rank, device> view() const {
    pqkv::view<T, Rank, device> there{memory_.data(), {}, {}};
    for (std::size_t axis = 0; axis < Rank; ++axis) {
      there.extents[axis] = host_.extents[axis];
      there.strides[axis] = host_.strides[axis];
    }
    return there;
  }
  /// What is on the device now, gaps included.
  std::vector<element> bytes() const {
    std::vector<element> copy(memory_.size());
    memory_.download(copy.data(), nullptr);
    pqkv::sync(pqkv::exec::cuda{});
    return copy;
  }

 private:
  static std::size_t span(pqkv::view<T, Rank> host) {
    if (host.data == nullptr || host.size() == 0) return 0;
    std::size_t last = 0;
    for (std::size_t axis = 0; axis < Rank; ++axis) last += (host.extent(axis) - 1) * host.stride(axis);
    return last + 1;
  }
  pqkv::view<T, Rank> host_{};
  pqkv::device_buffer<element> memory_;
};
template <class T, std::size_t Rank>
on_device(pqkv::view<T, Rank>) -> on_device<T, Rank>;

/// Bits of two arrays.
template <class T>
bool same(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0);
}

/// A codebook's arrays on the device.
struct book_on_device {
  on_device<float, 4> centroids;
  on_device<float, 2> mean, squared_radius;

  explicit book_on_device(pqkv::mutable_codebook_view<> book)
      : centroids(book.centroids), mean(book.mean), squared_radius(book.squared_radius) {}
  pqkv::mutable_codebook_view<device> view() const { return {centroids.view(), mean.view(), squared_radius.view()}; }
};

/// A joint-code index's arrays on the device.
struct index_on_device {
  on_device<std::uint32_t, 2> counts, offsets;
  on_device<std::int32_t, 2> ids;
  on_device<std::uint32_t, 1> first, merged, last;
  on_device<const std::uint8_t, 2> cell_codes;

  explicit index_on_device(pqkv::mutable_cell_index_view<> index)
      : counts(index.counts),
        offsets(index.offsets),
        ids(index.ids),
        first(index.first),
        merged(index.merged),
        last(index.last),
        cell_codes(index.cell_codes) {}
  pqkv::mutable_cell_index_view<device> view() const {
    return {counts.view(), offsets.view(), ids.view(), first.view(), merged.view(), last.view(), cell_codes.view()};
  }
};

/// Scratch of a call on the device.
template <class Op>
std::size_t device_bytes(const typename Op::sizes& sizes) {
  return pqkv::scratch_bytes<Op>(pqkv::exec::cuda{}, sizes);
}

/// Device scratch of one size, made before it is needed.
class device_scratch {
 public:
  explicit device_scratch(std::size_t bytes) : block_(bytes, nullptr) {}
  pqkv::exec::cuda policy() const { return {nullptr, pqkv::arena(block_)}; }

 private:
  pqkv::device_buffer<std::byte> block_;
};

/// How much of its work a program does: all of it; so many rounds, "PROGRAM 2"; or, "PROGRAM --seconds 60", a small problem of each kind
/// while the time lasts, for tools under which a device is some hundred times slower.
class workload {
 public:
  workload(int argc, char** argv, std::size_t usual_rounds) : rounds_(usual_rounds) {
    const bool timed = argc > 2 && std::string_view(argv[1]) == "--seconds";
    if (timed) seconds_ = std::atof(argv[2]);
    if (timed)
      rounds_ = 1;
    else if (argc > 1)
      rounds_ = static_cast<std::size_t>(std::atoi(argv[1]));
  }
  bool small() const { return seconds_ > 0; }
  std::size_t rounds() const { return rounds_; }

  /// Begins a part of the work, which goes on until this share of the time is over.
  void part(double share) {
    share_ = share;
    in_part_ = 0;
  }
  /// Whether the next problem is to be done: the first of a part always, another one while there is time.
  bool another() {
    if (small() && in_part_ > 0 && elapsed() > share_ * seconds_) {
      ++left_out_;
      return false;
    }
    ++in_part_;
    ++done_;
    return true;
  }
  /// Says what a small run did.
  void print() const {
    if (small()) std::printf("small: %zu problems in %.0f s, %zu left out\n", done_, elapsed(), left_out_);
  }

 private:
  double elapsed() const { return std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count(); }

  const std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
  double seconds_ = 0, share_ = 1;
  std::size_t rounds_, in_part_ = 0, done_ = 0, left_out_ = 0;
};

/// Counts cases; the first few that fail are printed.
class verdict {
 public:
  explicit verdict(const char* what) : what_(what) {}
  template <class... Argument>
  void check(bool holds, const char* format, Argument... arguments) {
    ++cases_;
    if (holds || ++failures_ > 5) return;
    std::printf("%s: ", what_);
    if constexpr (sizeof...(arguments) == 0)
      std::fputs(format, stdout);
    else
      std::printf(format, arguments...);
    std::printf("\n");
  }
  /// Whether nothing has failed yet.
  bool holds() const { return failures_ == 0; }
  /// Prints the line of the count; true when nothing failed and there was something to fail.
  bool passed(std::size_t least = 1) const {
    std::printf("%s: %zu cases, %zu differ%s\n", what_, cases_, failures_, cases_ < least ? " (TOO FEW CASES)" : "");
    std::fflush(stdout);
    return failures_ == 0 && cases_ >= least;
  }

 private:
  const char* what_;
  std::size_t cases_ = 0, failures_ = 0;
};

}  // namespace pqkv_cases
