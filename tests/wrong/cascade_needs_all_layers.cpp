// SPDX-License-Identifier: MIT
// expect: compress(layer) trims layers before the last one is known; only a budget that shrinks as layers arrive allows it: ZigZagKV alone, or no Budgeter
#include <lesskv/lesskv.hpp>

void prefill(int layer) {
#ifdef LESSKV_CONTROL
  lesskv::KVCache cache(lesskv::Shape{}, lesskv::Keep{.fraction = 0.5}, lesskv::SnapKV{},
                        lesskv::ZigZagKV{});
#else
  lesskv::KVCache cache(lesskv::Shape{}, lesskv::Keep{.fraction = 0.5}, lesskv::SnapKV{},
                        lesskv::GlobalCut<>{});
#endif
  cache.compress(layer);
}
