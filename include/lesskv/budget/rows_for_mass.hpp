// SPDX-License-Identifier: MIT
// How many of the largest weights make up a share of their sum: exact, in linear time, without a
// sort.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstdint>
#include <span>
#include <vector>

#include "../core/types.hpp"

LESSKV_BEGIN_NAMESPACE

// The smallest k such that the k largest weights sum to at least share * (sum of all + extra) -
// extra, at least 1 if any weight is positive. `extra` is mass that stays anyway. Weights that are
// not positive count for nothing. share >= 1: how many are positive.
//
// Positive floats order like their bit patterns, so a histogram over the leading bits finds the bin
// in which the sum is reached; only its members are looked at again, by their next bits. Sums are
// in double, reached within one part in 1e9.
inline Index rows_for_mass(std::span<const float> weights, double share, double extra = 0) {
  // 11 + 12 + 8 bits, the sign being 0: three levels tell all floats apart.
  struct Level {
    int shift;
    std::uint32_t mask;
  };
  constexpr Level levels[] = {{20, 0x7ffu}, {8, 0xfffu}, {0, 0xffu}};
  struct Bin {
    double mass;
    Index count;
  };
  thread_local std::array<Bin, 4096> bins;
  thread_local std::vector<float> members;

  double sum = 0;
  Index positive = 0;
  for (const float x : weights)
    if (x > 0) {
      sum += double{x};
      ++positive;
    }
  if (positive == 0) return 0;
  if (!(share < 1)) return positive;
  double need = share * (sum + extra) * (1 - 1e-9) - extra;
  Index taken = 0;
  std::span<const float> rest = weights;
  for (const auto [shift, mask] : levels) {
    const auto bin_of = [shift = shift, mask = mask](float x) {
      return (std::bit_cast<std::uint32_t>(x) >> shift) & mask;
    };
    std::fill_n(bins.begin(), mask + 1, Bin{0, 0});
    for (const float x : rest) {
      if (!(x > 0)) continue;
      Bin& bin = bins[bin_of(x)];
      bin.mass += double{x};
      ++bin.count;
    }
    std::uint32_t at = mask;
    while (at > 0 && (bins[at].count == 0 || bins[at].mass < need)) {
      need -= bins[at].mass;
      taken += bins[at].count;
      --at;
    }
    if (shift == 0) {
      // All members of the bin are one number.
      if (const Bin& bin = bins[at]; bin.count > 0)
        taken += std::clamp(
            static_cast<Index>(std::ceil(need / bin.mass * double(bin.count) * (1 - 1e-12))),
            Index{0}, bin.count);
      break;
    }
    const auto outside = [&](float x) { return !(x > 0) || bin_of(x) != at; };
    if (rest.data() == weights.data()) {
      members.clear();
      for (const float x : weights)
        if (!outside(x)) members.push_back(x);
    } else {
      std::erase_if(members, outside);
    }
    rest = members;
  }
  return std::clamp<Index>(taken, 1, positive);
}

LESSKV_END_NAMESPACE
