// SPDX-License-Identifier: MIT
// Slow and obviously right: selection by a full sort, water-filling one row at a time.
#pragma once

#include <algorithm>
#include <numeric>
#include <vector>

namespace oracle {

// The k largest of [first, last): larger score, then larger tie, then the later row; ascending.
inline std::vector<int> select(const std::vector<float>& score, const std::vector<float>& tie,
                               int first, int last, int k) {
  std::vector<int> rows(static_cast<std::size_t>(last - first));
  std::iota(rows.begin(), rows.end(), first);
  std::sort(rows.begin(), rows.end(), [&](int a, int b) {
    const auto x = static_cast<std::size_t>(a), y = static_cast<std::size_t>(b);
    if (score[x] != score[y]) return score[x] > score[y];
    if (!tie.empty() && tie[x] != tie[y]) return tie[x] > tie[y];
    return a > b;
  });
  rows.resize(static_cast<std::size_t>(std::clamp(k, 0, last - first)));
  std::sort(rows.begin(), rows.end());
  return rows;
}

// Real-valued water-filling by raising the level in small steps: the level at which the clamped
// shares reach the total.
inline double water_level(const std::vector<double>& weight, const std::vector<long>& floor,
                          const std::vector<long>& cap, double total) {
  double low = 0, high = 1e9;
  for (int i = 0; i < 200; ++i) {
    const double level = (low + high) / 2;
    double sum = 0;
    for (std::size_t k = 0; k < weight.size(); ++k)
      sum += std::min(std::max(level * weight[k], double(floor[k])), double(cap[k]));
    (sum < total ? low : high) = level;
  }
  return high;
}

}  // namespace oracle
