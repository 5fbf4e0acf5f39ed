// SPDX-License-Identifier: MIT
// expect: Keep says how much stays, but nothing says which; add a Scorer, for example LagKV{}
#include <lesskv/lesskv.hpp>

struct Scorer {
  void score(const lesskv::Head&, std::span<float>) const {}
};

#ifdef LESSKV_CONTROL
lesskv::KVCache cache(lesskv::Shape{}, lesskv::Keep{.fraction = 0.5}, Scorer{});
#else
lesskv::KVCache cache(lesskv::Shape{}, lesskv::Keep{.fraction = 0.5});
#endif
