// SPDX-License-Identifier: MIT
// expect: this type has `score`, but a Scorer needs: void score(const lesskv::Head&, std::span<float> out) const
#include <lesskv/lesskv.hpp>

struct Scorer {
#ifdef LESSKV_CONTROL
  void score(const lesskv::Head&, std::span<float>) const {}
#else
  void score(const lesskv::Head&, std::span<float>) {}
#endif
};

lesskv::KVCache cache(lesskv::Shape{}, lesskv::Keep{.fraction = 0.5}, Scorer{});
