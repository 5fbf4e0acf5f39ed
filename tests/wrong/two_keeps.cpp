// SPDX-License-Identifier: MIT
// expect: two Keep values; say once how much to keep
#include <lesskv/lesskv.hpp>

struct Scorer {
  void score(const lesskv::Head&, std::span<float>) const {}
};

#ifdef LESSKV_CONTROL
lesskv::KVCache cache(lesskv::Shape{}, lesskv::Keep{.fraction = 0.5, .sinks = 4}, Scorer{});
#else
lesskv::KVCache cache(lesskv::Shape{}, lesskv::Keep{.fraction = 0.5}, lesskv::Keep{.sinks = 4},
                      Scorer{});
#endif
