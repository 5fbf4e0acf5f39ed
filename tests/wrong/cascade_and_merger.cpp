// SPDX-License-Identifier: MIT
// expect: compress(layer) trims layers before the last one is known; a Merger needs all rows that leave at once
#include <lesskv/lesskv.hpp>

void prefill(int layer) {
#ifdef LESSKV_CONTROL
  lesskv::KVCache cache(lesskv::Shape{}, lesskv::Keep{.fraction = 0.5}, lesskv::SnapKV{});
#else
  lesskv::KVCache cache(lesskv::Shape{}, lesskv::Keep{.fraction = 0.5}, lesskv::SnapKV{},
                        lesskv::Centroids{});
#endif
  cache.compress(layer);
}
