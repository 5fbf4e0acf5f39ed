// SPDX-License-Identifier: MIT
// expect: two policies say which rows stay; name one Scorer
#include <lesskv/lesskv.hpp>

struct Scorer {
  void score(const lesskv::Head&, std::span<float>) const {}
};

struct Other : Scorer {};

#ifdef LESSKV_CONTROL
lesskv::Planner planner(lesskv::Shape{}, lesskv::Keep{.fraction = 0.5}, Other{});
#else
lesskv::Planner planner(lesskv::Shape{}, lesskv::Keep{.fraction = 0.5}, Scorer{}, Other{});
#endif
