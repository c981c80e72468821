// SPDX-License-Identifier: Apache-2.0
// A verb changes a cache once per call, so a runner that does a share of each call is refused.
// expect: pqkv: pqcache changes state once per call; give it a runner of whole calls, not exec::slice
#include <pqkv/pqkv.hpp>

pqkv::pqcache<>* cache;

int main() { cache->maintain(pqkv::exec::host<pqkv::isa::best, pqkv::exec::slice>{{0, 2}, {}}); }
