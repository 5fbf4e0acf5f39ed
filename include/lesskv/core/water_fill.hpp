// SPDX-License-Identifier: MIT
// Water-filling: one budget, divided in proportion to real-valued quotas, within a floor and a cap
// per head, to the exact total. The only place where rows are rounded.
#pragma once

#include <algorithm>
#include <cmath>
#include <numeric>
#include <span>
#include <vector>

#include "types.hpp"

LESSKV_BEGIN_NAMESPACE
namespace detail {

// out[i] = clamp(level * weight[i], floor[i], cap[i]), rounded by largest remainder (ties: the
// earlier head) so that the sum is `total`, or the nearest reachable value when floors or caps
// forbid it.
inline void water_fill(std::span<const double> weight, std::span<const Index> floor,
                       std::span<const Index> cap, Index total, std::span<Index> out) {
  const std::size_t n = weight.size();
  total = std::clamp(total, std::accumulate(floor.begin(), floor.end(), Index{0}),
                     std::accumulate(cap.begin(), cap.end(), Index{0}));
  const auto share = [&](double level, std::size_t i) {
    return std::clamp(level * weight[i], double(floor[i]), double(std::max(floor[i], cap[i])));
  };
  const auto sum = [&](double level) {
    double s = 0;
    for (std::size_t i = 0; i < n; ++i) s += share(level, i);
    return s;
  };
  double low = 0, high = 1;
  while (sum(high) < double(total) && high < 1e18) high *= 2;
  for (double mid = (low + high) / 2; low < mid && mid < high; mid = (low + high) / 2)
    (sum(mid) < double(total) ? low : high) = mid;

  std::vector<double> rest(n);
  Index given = 0;
  for (std::size_t i = 0; i < n; ++i) {
    const double real = share(high, i);
    out[i] = std::clamp(static_cast<Index>(real + 1e-9), floor[i], std::max(floor[i], cap[i]));
    // Equal fractions must compare equal whatever the last bits say.
    rest[i] = std::round((real - double(out[i])) * 1e9);
    given += out[i];
  }
  std::vector<std::size_t> order(n);
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) {
    return rest[a] > rest[b] || (rest[a] == rest[b] && a < b);
  });
  for (bool moved = true; given < total && moved;) {
    moved = false;
    for (const std::size_t i : order)
      if (given < total && out[i] < cap[i]) {
        ++out[i];
        ++given;
        moved = true;
      }
  }
}

// Quotas in proportion, with that sum: what a Budgeter left is what the next one divides.
inline void scale_to(std::span<double> quota, double total) {
  const double sum = std::accumulate(quota.begin(), quota.end(), 0.0);
  if (sum > 0 && std::isfinite(sum))
    for (double& q : quota) q *= total / sum;
}

}  // namespace detail
LESSKV_END_NAMESPACE
