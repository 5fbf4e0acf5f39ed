// SPDX-License-Identifier: MIT
// expect: this type has `share`, but a Budgeter needs: void share(const lesskv::Shape&, std::span<const State> measured, std::span<double> quota) const
#include <lesskv/lesskv.hpp>

struct Scorer {
  void score(const lesskv::Head&, std::span<float>) const {}
};

struct Budgeter {
#ifdef LESSKV_CONTROL
  void share(const lesskv::Shape&, std::span<const lesskv::NoState>, std::span<double>) const {}
#else
  void share(std::span<double>) const {}
#endif
};

lesskv::KVCache cache(lesskv::Shape{}, lesskv::Keep{.fraction = 0.5}, Scorer{}, Budgeter{});
