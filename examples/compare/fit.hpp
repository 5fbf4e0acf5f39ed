// SPDX-License-Identifier: MIT
// How large a fraction may be so that the result fits a limit.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <functional>

namespace compare {

struct Fit {
  double fraction = 1;
  bool fits = false;  // false: even the smallest fraction is too large; `fraction` is that one
};

// The largest fraction k / steps whose size is within the limit, `size` being larger for larger
// fractions. Every call of `size` compresses a whole cache, and sizes are nearly linear in the
// fraction: the next try lies where a straight line through the two ends says, and only where that
// fails to narrow things down in the middle. Three to five calls. With `slack`, a size that much of
// the limit below it is near enough: one or two calls less. A `hint` near the answer is tried first.
inline Fit fit_fraction(const std::function<std::size_t(double)>& size, std::size_t limit,
                        std::size_t size_of_all, long steps, double slack = 0, double hint = -1) {
  // 0 is not a fraction that Keep takes; this rounds to no row at all.
  const auto fraction = [&](long k) {
    return std::max(static_cast<double>(k) / static_cast<double>(steps), 1e-6);
  };
  if (size_of_all <= limit) return {1, true};
  long low = -1, high = steps;  // low fits (or -1: not known), high does not
  double low_size = 0, high_size = static_cast<double>(size_of_all);
  bool straight = true;
  while (high - low > 1) {
    long k = low + (high - low) / 2;
    if (straight) {
      const double slope = (high_size - low_size) / static_cast<double>(high - std::max(low, 0L));
      k = std::max(low, 0L) + static_cast<long>((static_cast<double>(limit) - low_size) / slope);
    }
    if (hint >= 0) k = std::lround(hint * static_cast<double>(steps));
    hint = -1;
    k = std::clamp(k, low + 1, high - 1);
    const double at = static_cast<double>(size(fraction(k)));
    const long before = high - low;
    if (at <= static_cast<double>(limit)) {
      low = k;
      low_size = at;
      if (static_cast<double>(limit) - at <= slack * static_cast<double>(limit)) break;
    } else {
      high = k;
      high_size = at;
    }
    // A line that only creeps towards one end is followed by a bisection.
    straight = !straight || (high - low) * 2 <= before;
  }
  return {fraction(std::max(low, 0L)), low >= 0};
}

}  // namespace compare
