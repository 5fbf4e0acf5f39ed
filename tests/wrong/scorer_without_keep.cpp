// SPDX-License-Identifier: MIT
// expect: a Scorer says which rows stay, but nothing says how much; add Keep{.fraction = ...} or Keep{.tokens = ...}
#include <lesskv/lesskv.hpp>

struct Scorer {
  void score(const lesskv::Head&, std::span<float>) const {}
};

#ifdef LESSKV_CONTROL
lesskv::KVCache cache(lesskv::Shape{}, lesskv::Keep{.fraction = 0.5}, Scorer{});
#else
lesskv::KVCache cache(lesskv::Shape{}, Scorer{});
#endif
