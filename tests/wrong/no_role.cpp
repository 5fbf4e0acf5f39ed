// SPDX-License-Identifier: MIT
// expect: this type plays no role: a policy is Keep, a Scorer, a Budgeter, a Merger or a Codec
#include <lesskv/lesskv.hpp>

struct Scorer {
  void score(const lesskv::Head&, std::span<float>) const {}
};

struct Thing {};

#ifdef LESSKV_CONTROL
lesskv::KVCache cache(lesskv::Shape{}, lesskv::Keep{.fraction = 0.5}, Scorer{});
#else
lesskv::KVCache cache(lesskv::Shape{}, lesskv::Keep{.fraction = 0.5}, Scorer{}, Thing{});
#endif
