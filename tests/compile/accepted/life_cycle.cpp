// SPDX-License-Identifier: Apache-2.0
// What a user of the cache compiles: all of its calls once, over the default rows and selector. tests/compile/use_cost.py measures it.
#include <pqkv/pqkv.hpp>

#include <algorithm>
#include <cstddef>
#include <vector>

int main() {
  const pqkv::exec::host<> cpu;
  pqkv::pqcache<>::params params;
  params.batch = 2, params.kv_heads = 1, params.query_heads = 2, params.head_dim = 16, params.capacity = 64;
  pqkv::pqcache<> cache(params);
  float row[2 * 16 * 8] = {}, out[2 * 2 * 16] = {};
  std::int32_t listed[2 * 64] = {};
  std::uint32_t counts[2] = {};
  cache.prefill(cpu, 0, pqkv::make_view(row, 1, 8, 16), pqkv::make_view(row, 1, 8, 16));
  cache.fork(cpu, 0, 1);
  cache.append(cpu, pqkv::make_view(row, 2, 1, 16), pqkv::make_view(row, 2, 1, 16));
  cache.attend(cpu, pqkv::make_view(row, 2, 2, 16), pqkv::make_view(out, 2, 2, 16));
  cache.retrieve(cpu, pqkv::make_view(row, 2, 2, 16), pqkv::make_view(listed, 2, 1, 64), pqkv::make_view(counts, 2, 1));
  cache.maintain(cpu);
  cache.truncate(cpu, 1, 4);
  std::vector<std::byte> file;
  cache.save(cpu, 0, [&](const std::byte* bytes, std::size_t count) { file.insert(file.end(), bytes, bytes + count); });
  std::size_t begin = 0;
  cache.reset(1);
  cache.load(cpu, 1, [&](std::byte* bytes, std::size_t count) {
    std::copy_n(file.data() + begin, count, bytes);
    begin += count;
    return count;
  });
}
