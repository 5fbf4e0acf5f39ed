// SPDX-License-Identifier: MIT
// Bits from a budget: which rate does each of n sources get, so that the sum of
// weight * distortion(bits) is least and the cost of all bits within a limit.
//
// Every bit more removes less distortion than the one before (a quantiser's distortion is convex in
// its bits), so bits go one by one to where a unit of cost removes most. With equal costs that is the
// optimum; otherwise no allotment whose cost is smaller by one bit of the dearest source is better.
#pragma once

#include <algorithm>
#include <cstddef>
#include <functional>
#include <queue>
#include <span>
#include <tuple>
#include <vector>

#include "types.hpp"

LESSKV_BEGIN_NAMESPACE

// distortion[b - least]: of a source of weight 1 with b bits, convex and falling. cost: of one bit of
// a source; what costs nothing gets the most. budget: the sum of cost * bits may be. All start with
// `least` bits, whatever that costs. Equal gains: the earlier source first.
inline void bit_fill(std::span<const double> weight, std::span<const double> cost, double budget,
                     std::span<const double> distortion, int least, std::span<int> bits) {
  using detail::uz;
  const std::size_t n = weight.size();
  double used = 0;
  for (std::size_t i = 0; i < n; ++i) used += cost[i] * least;
  const int most = least + static_cast<int>(distortion.size()) - 1;
  using Step = std::tuple<double, std::size_t>;  // minus the gain, source: the least comes first
  std::priority_queue<Step, std::vector<Step>, std::greater<Step>> steps;
  const auto offer = [&](std::size_t i) {
    if (bits[i] == most) return;
    const std::size_t at = uz(Index{bits[i]} - least);
    steps.emplace(-weight[i] * (distortion[at] - distortion[at + 1]) / cost[i], i);
  };
  for (std::size_t i = 0; i < n; ++i) {
    bits[i] = cost[i] > 0 ? least : most;
    offer(i);
  }
  while (!steps.empty()) {
    const std::size_t i = std::get<1>(steps.top());
    steps.pop();
    if (used + cost[i] > budget * (1 + 1e-12)) continue;  // a cheaper one may still fit
    used += cost[i];
    ++bits[i];
    offer(i);
  }
}

LESSKV_END_NAMESPACE
