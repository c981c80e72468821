// SPDX-License-Identifier: Apache-2.0
// Integer logits of every token of one KV head for all its query heads, from tables of 16 and of 8 bits. Share of reading the codes once:
// a scan is bound by look-ups, not by that, so the share says how far it is from free. Making the tables is part of the time.
#include "data.hpp"
#include "main.hpp"

namespace {

template <class Isa, class Entry>
void run(benchmark::State& state, const bench::search_case::axes& a) {
  auto& data = bench::kept<bench::search_case>(a);
  const pqkv::buffer<std::uint16_t> sums(a.g * a.n);
  pqkv::quantized_table<Entry> table(a.g, data.shape);
  const pqkv::exec::host<Isa> cpu;
  const auto bytes = static_cast<double>(a.m * a.n);
  bench::timed(state, "of_code_read", bytes, bench::machine().read_bytes(bytes), [&] {
    pqkv::quantize_table(cpu, data.table.view(), table.mutable_view());
    pqkv::quantized_scan(cpu, table.view(), data.codes.view(), pqkv::make_view(sums.data(), a.g, a.n));
  });
  bench::count_tokens(state, a.n);
}

void add_all() {
  bench::for_each_isa([]<class Isa>(Isa, const char* isa) {
    const auto add = [&](const bench::search_case::axes& a) {
      const auto name = [&](const char* what) {
        return bench::named(what, {{"m", a.m}, {"b", a.b}, {"g", a.g}, {"n", a.n}}, {{"isa", isa}});
      };
      bench::add(name("scan_u16"), [a](benchmark::State& state) { run<Isa, std::uint16_t>(state, a); });
      bench::add(name("scan_u8"), [a](benchmark::State& state) { run<Isa, std::uint8_t>(state, a); });
    };
    for (const unsigned b : {4u, 5u, 6u, 7u, 8u}) add({.n = 131072, .m = 2, .b = b});
    add({.n = 131072, .m = 2, .g = 1, .b = 6});
    add({.n = 131072, .m = 4, .b = 4});
    add({.n = 131072, .m = 4, .b = 8});
    add({.n = 131072, .m = 8, .b = 8});
    add({.n = 1048576, .m = 2, .b = 6});
  });
}

}  // namespace

int main(int argc, char** argv) { return bench::run(argc, argv, add_all, bench::clustered_keys); }
