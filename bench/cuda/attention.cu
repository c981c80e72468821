// SPDX-License-Identifier: Apache-2.0
// Decode attention of 4 query heads a KV head in bfloat16: dense over all tokens, gathered over k listed ones in ascending order, one in
// each run of n / k, and over sinks, list and window as a decode step attends. Heads of several sequences stand side by side (7
// sequences: h 56). And over rows of 8-bit integers: as many rows, and as many as have the bytes of those in bfloat16. Bytes are those of
// the attended rows.
//
//   attention [name prefix | --names]    exit code 77 where there is no GPU
#include <pqkv/cache/quantized_rows.hpp>
#include <pqkv/detail/cuda/attention.cuh>

#include "data.cuh"
#include "timing.cuh"

namespace {
using namespace bench;
constexpr std::size_t g = 4, d = 128;

enum class row_kind { bfloat16, int8 };

/// Which tokens of n each of h heads attends to.
struct axes {
  std::size_t h, n, listed, sinks = 0, window = 0;  // listed 0: all n
  row_kind rows = row_kind::bfloat16;

  std::size_t token_bytes() const {
    return rows == row_kind::int8 ? pqkv::quantized_store<device>::token_bytes(d) : 2 * d * sizeof(pqkv::bfloat16);
  }

  bool is_dense() const { return listed == 0; }
  std::size_t attended() const { return is_dense() ? n : sinks + listed + window; }
  std::string name() const {
    const std::string of = rows == row_kind::int8 ? "attention/int8" : "attention";
    if (is_dense()) return named(of + "/dense", {{"h", h}, {"g", g}, {"d", d}, {"n", n}});
    if (sinks + window == 0) return named(of + "/listed", {{"h", h}, {"g", g}, {"d", d}, {"n", n}, {"k", listed}});
    return named(of + "/spans", {{"h", h}, {"g", g}, {"d", d}, {"n", n}, {"sinks", sinks}, {"window", window}, {"k", listed}});
  }
};

/// [h, listed] positions between sinks and window.
std::vector<std::int32_t> listed_tokens(const axes& a) {
  const pqkv::random_stream draws = next_stream();
  std::vector<std::int32_t> tokens(a.h * a.listed);
  for (std::size_t i = 0; i < a.h * a.listed; ++i) {
    const std::size_t run = (a.n - a.sinks - a.window) / a.listed;
    tokens[i] = static_cast<std::int32_t>(a.sinks + i % a.listed * run + draws.below(i, static_cast<std::uint32_t>(run)));
  }
  return tokens;
}

void measure_kinds(std::initializer_list<axes> all) {  // over the same rows: h and n are those of the first
  const axes& first = *all.begin();
  std::vector<std::string> names;
  for (const axes& a : all) names.push_back(a.name());
  if (!is_any_wanted(names)) return;
  const std::size_t hq = first.h * g;
  const auto rows = normals<pqkv::bfloat16>(first.h * first.n * 2 * d);
  const auto query = normals<float>(hq * d);
  const pqkv::device_buffer<float> out(hq * d, nullptr);
  const pqkv::device_buffer<std::byte> scratch(device_bytes<pqkv::op::attention>({.query_heads = hq, .head_dim = d}), nullptr);
  for (const axes& a : all) {
    const auto indices = upload(listed_tokens(a));
    const auto counts = upload(std::vector<std::uint32_t>(a.h, static_cast<std::uint32_t>(a.listed)));
    const auto end = static_cast<std::uint32_t>(a.n);
    const auto spans = upload(std::vector<pqkv::token_span>(
        a.h, a.is_dense() ? pqkv::token_span{end, 0, 0}
                          : pqkv::token_span{static_cast<std::uint32_t>(a.sinks), end - static_cast<std::uint32_t>(a.window), end}));
    pqkv::token_set<device> tokens{pqkv::as_const(pqkv::make_view<device>(spans.data(), a.h)), {}, {}};
    if (!a.is_dense()) {
      tokens.indices = pqkv::as_const(pqkv::make_view<device>(indices.data(), a.h, a.listed));
      tokens.counts = pqkv::as_const(pqkv::make_view<device>(counts.data(), a.h));
    }
    measure(a.name(), {.calls = 4, .replays = 20, .bytes = static_cast<double>(a.h * a.attended() * a.token_bytes())},
            [&](void* stream, int) {
              const auto attend = [&](const auto& store) {
                const pqkv::exec::cuda gpu{stream, pqkv::arena(scratch)};
                pqkv::attention(gpu, pqkv::as_const(pqkv::make_view<device>(query.data(), hq, d)), store, tokens,
                                pqkv::make_view<device>(out.data(), hq, d));
              };
              if (a.rows == row_kind::int8)  // the same memory, whose bytes serve as integers; two normal bfloat16 as a scale
                attend(pqkv::quantized_store<device>{reinterpret_cast<std::byte*>(rows.data()), a.h, a.n, d});
              else
                attend(pqkv::interleaved_kv<device>(static_cast<const pqkv::bfloat16*>(rows.data()), a.h, a.n, d));
            });
  }
}

void measure_all() {
  measure_kinds({{8, 131072, 4096},
                 {8, 131072, 2048},
                 {8, 131072, 0},
                 {8, 131072, 4096, 0, 0, row_kind::int8},
                 {8, 131072, 7710, 0, 0, row_kind::int8},
                 {8, 131072, 0, 0, 0, row_kind::int8}});
  measure_kinds({{128, 65536, 4096}});
  measure_kinds({{56, 120000, 1024, 64, 960}, {56, 120000, 0}});  // 7 sequences
}
}  // namespace

int main(int argc, char** argv) { return bench::run(argc, argv, measure_all); }
