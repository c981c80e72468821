// SPDX-License-Identifier: Apache-2.0
// The candidates of block::half_shortlist against the canonical distance: the nearest centroid is always among them, also where rows lie
// between two centroids, are rounded as badly as can be, or are tiny, huge or of any size beside each other. And there are seldom more than
// two for rows that are spread, without which nothing would be gained. The same under fast math. Ends with 77 where there is no GPU.
//
//   half_shortlist [rounds]       random problems of each kind, 2 unless given
//   half_shortlist --seconds S    one problem of each kind while the time lasts, for compute-sanitizer
#include "on_device.cuh"

#include <pqkv/detail/cuda/block/half_shortlist.cuh>

#include <algorithm>

#include "cases/inputs.hpp"

namespace {
using namespace pqkv_cases;
namespace block = pqkv::detail::block;

constexpr unsigned threads = 128;

struct found {
  std::uint32_t first, second, count;
};

/// One CTA takes all rows through the shortlist, as k-means does.
template <class T, unsigned Groups>
__global__ void __launch_bounds__(threads) shortlist_kernel(const T* rows, unsigned n, const float* offset, const float* centroids,
                                                            unsigned c, float row_most, float centroid_most, found* to) {
  using list = block::half_shortlist<T, Groups>;
  __shared__ typename list::bounds bounds;
  block::shared_memory memory;
  list shortlist(memory, bounds, c);
  uint4* own_rows = memory.take<uint4>(threads / 32 * list::rows_of_warp) + threadIdx.x / 32 * list::rows_of_warp;
  float farthest = 0;
  for (unsigned e = 0; e < list::ds; ++e) farthest = fmaxf(farthest, fabsf(offset[e]));
  shortlist.template scale_rows<threads>(offset, farthest, row_most);
  shortlist.template stage<threads>(centroids, fmaxf(row_most, centroid_most));
  for (unsigned begin = threadIdx.x / 32 * list::tile_rows; begin < n; begin += threads / 32 * list::tile_rows) {
    const auto row = [&](unsigned slot) {
      const unsigned t = begin + slot * 8 + threadIdx.x % 32 / 4;
      return rows + std::size_t{t < n ? t : 0} * list::ds;
    };
    block::row_summary own{};
    for (unsigned slot = 0; slot < list::slots; ++slot) {
      block::row_summary here{};
      for (unsigned p = 0; p < list::pieces; ++p) {
        const unsigned e = list::element(p);
        list::add(here, *reinterpret_cast<const uint4*>(row(slot) + e), offset + e);
      }
      here.add_neighbours();
      if (threadIdx.x % 4 == slot) own = here;
    }
    list::copy(own_rows, row);
    typename list::rows x;
    shortlist.take(own_rows, x);
    const auto result = shortlist.find(x, own.measure());
    const unsigned i = begin + list::own_row();
    if (list::own_row() < list::tile_rows && i < n) to[i] = {result.first, result.second, result.count};
  }
}

enum class kind {
  spread,     // normal rows and centroids
  clustered,  // rows close to centroids, some of which are close to each other
  between,    // rows halfway between two centroids, nearly
  rounded,    // the same, each element nearly halfway between two halves, on the side that helps the wrong centroid
  repeated,   // every second centroid equals the one before
  tiny,       // 2^-70 to 2^-40
  huge,       // 2^40 to 2^66
  mixed,      // every row and centroid of a size between 2^-20 and 2^20
  offset,     // normal rows far from 0, with the mean that brings them there
  far,        // normal rows, centroids 2^30 times as far
  constant,   // all rows equal
  kinds
};

/// A problem on the host. Rows are stored as T, so y is what the device sees.
template <class T>
struct problem {
  std::size_t n, ds, c;
  std::vector<T> rows;
  std::vector<float> offset, centroids;  // [ds], [ds, c]

  float y(std::size_t t, std::size_t e) const { return pqkv::canonical::sub(static_cast<float>(rows[t * ds + e]), offset[e]); }
  float& centroid(std::size_t x, std::size_t e) { return centroids[e * c + x]; }
};

template <class T>
problem<T> make_problem(kind what, std::size_t n, std::size_t ds, std::size_t c, random_source& random) {
  problem<T> p{n, ds, c, std::vector<T>(n * ds), std::vector<float>(ds), std::vector<float>(ds * c)};
  const auto power = [&](int from, int to) {
    return pqkv::canonical::power_of_two(from + static_cast<int>(random.below(static_cast<std::size_t>(to - from + 1))));
  };
  const float size = what == kind::tiny ? power(-70, -40) : what == kind::huge ? power(40, 66) : 1.0f;
  for (std::size_t x = 0; x < c; ++x) {
    const float own = what == kind::mixed ? power(-20, 20) : what == kind::far ? 0x1p30f : size;
    for (std::size_t e = 0; e < ds; ++e) p.centroid(x, e) = own * 0.5f * random.gaussian();
    const bool close = what == kind::clustered && x % 4 != 0, same = what == kind::repeated && x % 2 == 1;
    for (std::size_t e = 0; (close || same) && e < ds; ++e)
      p.centroid(x, e) = p.centroid(x - 1, e) + (close ? 0.001f * random.gaussian() : 0.0f);
  }
  for (std::size_t e = 0; what == kind::offset && e < ds; ++e) p.offset[e] = static_cast<float>(pqkv::bfloat16(300 * random.gaussian()));
  for (std::size_t t = 0; t < n; ++t) {
    const std::size_t a = random.below(c), b = (a + 1 + random.below(c - 1)) % c;
    const float own = what == kind::mixed ? power(-20, 20) : size, close = power(-24, -2);
    for (std::size_t e = 0; e < ds; ++e) {
      const float ca = p.centroid(a, e), cb = p.centroid(b, e);
      float x = own * random.gaussian();
      if (what == kind::clustered) x = ca + 0.01f * random.gaussian();
      if (what == kind::between || what == kind::rounded) x = 0.5f * (ca + cb) + close * (ca - cb);
      if (what == kind::rounded) {
        const std::uint32_t bits = pqkv::float_bits(x) & ~0x1fffu;
        x = pqkv::float_from_bits(bits | ((x > 0) == (ca > cb) ? 0xff0u : 0x1010u));
      }
      if (what == kind::constant && t != 0) x = static_cast<float>(p.rows[e]);
      p.rows[t * ds + e] = T(x + p.offset[e]);
    }
    if (what != kind::rounded) continue;  // one element puts the row back between the two
    double difference = 0;
    for (std::size_t e = 0; e < ds; ++e) {
      const double ca = static_cast<double>(p.centroid(a, e)), cb = static_cast<double>(p.centroid(b, e));
      difference += (static_cast<double>(p.y(t, e)) - (ca + cb) / 2) * (ca - cb);
    }
    const double gap = static_cast<double>(p.centroid(a, 0) - p.centroid(b, 0));
    if (gap * gap > 0.01)
      p.rows[t * ds] = T(static_cast<float>(static_cast<double>(p.y(t, 0)) - difference / gap * (1 + static_cast<double>(close))));
  }
  return p;
}

template <class T>
float largest(const std::vector<T>& of) {
  float most = 0;
  for (const T x : of) most = std::max(most, std::abs(static_cast<float>(x)));
  return most;
}

struct verdicts {
  verdict contained{"the nearest is a candidate"}, few{"spread rows have few candidates"}, certain{"one candidate decides often"};
};

template <class T, unsigned Groups>
void compare(kind what, std::size_t n, std::size_t c, random_source& random, verdicts& all) {
  using list = block::half_shortlist<T, Groups>;
  const problem<T> p = make_problem<T>(what, n, list::ds, c, random);
  float most = 0;
  for (std::size_t t = 0; t < n; ++t)
    for (std::size_t e = 0; e < p.ds; ++e) most = std::max(most, std::abs(p.y(t, e)));
  pqkv::device_buffer<T> rows(p.rows.size(), nullptr);
  pqkv::device_buffer<float> offset(p.offset.size(), nullptr), centroids(p.centroids.size(), nullptr);
  pqkv::device_buffer<found> there(n, nullptr);
  std::vector<found> here(n, found{999, 999, 999});
  rows.upload(p.rows.data(), nullptr), offset.upload(p.offset.data(), nullptr), centroids.upload(p.centroids.data(), nullptr);
  there.upload(here.data(), nullptr);
  const std::size_t shared = list::shared_bytes(c) + threads / 32 * list::rows_of_warp * sizeof(uint4);
  pqkv::detail::launcher(pqkv::exec::cuda{}, "test")("shortlist_kernel", shortlist_kernel<T, Groups>, {dim3(1), threads, shared},
                                                     rows.data(), static_cast<unsigned>(n), offset.data(), centroids.data(),
                                                     static_cast<unsigned>(c), most, largest(p.centroids), there.data());
  there.download(here.data(), nullptr);
  pqkv::sync(pqkv::exec::cuda{});
  std::size_t missing = 0, many = 0, one = 0;
  std::vector<float> y(p.ds);
  for (std::size_t t = 0; t < n; ++t) {
    for (std::size_t e = 0; e < p.ds; ++e) y[e] = p.y(t, e);
    std::size_t nearest = 0;
    float least = 0;
    for (std::size_t x = 0; x < c; ++x) {
      const float distance = pqkv::canonical::squared_distance(y.data(), p.centroids.data() + x, c, p.ds);
      if (x == 0 || distance < least) nearest = x, least = distance;
    }
    const found& f = here[t];
    many += f.count > 2, one += f.count == 1;
    if (f.count == 0 || f.count == 999 || (f.count <= 2 && f.first != nearest && (f.count == 1 || f.second != nearest))) ++missing;
  }
  all.contained.check(missing == 0, "kind %d bytes %zu ds %zu c %zu n %zu: %zu", static_cast<int>(what), sizeof(T), p.ds, c, n, missing);
  if (n < 100 || (what != kind::spread && what != kind::offset)) return;
  all.few.check(many * 50 < n, "kind %d bytes %zu ds %zu c %zu n %zu: %zu have more", static_cast<int>(what), sizeof(T), p.ds, c, n, many);
  all.certain.check(one * 10 > n * 8, "kind %d bytes %zu ds %zu c %zu n %zu: %zu have one", static_cast<int>(what), sizeof(T), p.ds, c, n,
                    one);
}

template <class T>
void compare_all(workload& work, random_source& random, verdicts& all) {
  const std::size_t lengths[] = {1, 31, 33, 200, 1000};
  for (int what = 0; what < static_cast<int>(kind::kinds); ++what)
    for (std::size_t round = 0; round < 3 * work.rounds(); ++round) {
      const std::size_t n = lengths[round % 3 == 0 ? 4 : random.below(work.small() ? 4 : 5)], c = std::size_t{16} << random.below(5);
      const auto one = static_cast<kind>(what);
      if (sizeof(T) == 2 && one == kind::rounded) continue;                                      // of float elements
      if (std::is_same_v<T, pqkv::half> && (one == kind::huge || one == kind::mixed)) continue;  // infinities in half
      if (!work.another()) continue;
      if (round % 3 == 0)
        compare<T, 2>(one, n, c, random, all);
      else if (round % 3 == 1)
        compare<T, 1>(one, n, c, random, all);
      else
        compare<T, 4>(one, n, c, random, all);
    }
}
}  // namespace

int main(int argc, char** argv) {
  if (!has_device()) return 77;
  workload work(argc, argv, 2);
  verdicts all;
  random_source random(81);
  work.part(0.4);
  compare_all<float>(work, random, all);
  work.part(0.7);
  compare_all<pqkv::half>(work, random, all);
  work.part(1);
  compare_all<pqkv::bfloat16>(work, random, all);
  work.print();
  const bool whole = !work.small();
  bool passed = all.contained.passed(whole ? 100 : 3);
  passed &= all.few.passed(whole ? 10 : 1);
  passed &= all.certain.passed(whole ? 10 : 1);
  return passed ? 0 : 1;
}
