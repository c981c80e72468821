// SPDX-License-Identifier: Apache-2.0
// A cache whose rows are in host memory takes no device policy: the sentence says which goes with which.
// expect: pqkv: the policy's memory is not the cache's: a cache of host rows takes a host policy, one of device rows a device policy
#include <pqkv/pqkv.hpp>

pqkv::pqcache<>* cache;
pqkv::exec::cuda policy;

int main() { cache->maintain(policy); }
