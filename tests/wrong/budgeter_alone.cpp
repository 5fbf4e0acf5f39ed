// SPDX-License-Identifier: MIT
// expect: a Budgeter says where the budget goes, but nothing says which rows stay; add a Scorer, for example LagKV{}
#include <lesskv/lesskv.hpp>

struct Scorer {
  void score(const lesskv::Head&, std::span<float>) const {}
};

struct Budgeter {
  void share(const lesskv::Shape&, std::span<const lesskv::NoState>, std::span<double>) const {}
};

#ifdef LESSKV_CONTROL
lesskv::KVCache cache(lesskv::Shape{}, lesskv::Keep{.fraction = 0.5}, Scorer{}, Budgeter{});
#else
lesskv::KVCache cache(lesskv::Shape{}, lesskv::Keep{.fraction = 0.5}, Budgeter{});
#endif
