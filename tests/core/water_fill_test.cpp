// SPDX-License-Identifier: MIT
#include "oracle/select.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <lesskv/core/water_fill.hpp>
#include <random>

namespace water_fill_test {

using namespace lesskv;

std::vector<Index> fill(const std::vector<double>& weight, const std::vector<Index>& floor,
                        const std::vector<Index>& cap, Index total) {
  std::vector<Index> out(weight.size());
  detail::water_fill(weight, floor, cap, total, out);
  return out;
}

// Layer budgets of ZigZagKV (arXiv 2412.09036, Eq. 6) from LMBA: beta + (1 - beta) LMBA / mean.
std::vector<Index> zigzag(std::vector<double> lmba, double beta, Index per_layer, Index cap) {
  const double mean = std::accumulate(lmba.begin(), lmba.end(), 0.0) / double(lmba.size());
  for (double& x : lmba) x = beta + (1 - beta) * x / mean;
  const std::vector<Index> low(lmba.size(), 0), high(lmba.size(), cap);
  return fill(lmba, low, high, per_layer * Index(lmba.size()));
}

TEST(WaterFill, WorkedExamples) {
  EXPECT_EQ(zigzag({1200, 300, 100, 400}, .2, 256, 100000),
            (std::vector<Index>{543, 174, 92, 215}));
  EXPECT_EQ(zigzag({10, 20, 30, 41}, .2, 100, 1000), (std::vector<Index>{52, 83, 115, 150}));
  // A cap binds: the surplus goes in proportion to the budgets.
  EXPECT_EQ(zigzag({1200, 300, 100, 400}, .2, 256, 500), (std::vector<Index>{500, 190, 100, 234}));
}

TEST(WaterFill, TotalIsExactAndEveryShareLiesWithinOneOfTheRealOne) {
  std::mt19937 random(3);
  for (int round = 0; round < 300; ++round) {
    const std::size_t n = 1 + random() % 40;
    std::vector<double> weight(n);
    std::vector<Index> floor(n), cap(n);
    for (std::size_t i = 0; i < n; ++i) {
      weight[i] = random() % 5 == 0 ? 0.0 : double(random() % 1000) / 100;
      floor[i] = static_cast<Index>(random() % 20);
      cap[i] = floor[i] + static_cast<Index>(random() % 100);
    }
    const Index low = std::accumulate(floor.begin(), floor.end(), Index{0});
    const Index high = std::accumulate(cap.begin(), cap.end(), Index{0});
    const Index total = low + static_cast<Index>(random() % static_cast<unsigned>(high - low + 1));
    const std::vector<Index> out = fill(weight, floor, cap, total);
    EXPECT_EQ(std::accumulate(out.begin(), out.end(), Index{0}), total);
    // Heads of weight zero only get what is left when all others are full; then no level describes
    // the result.
    Index reachable = 0;
    for (std::size_t i = 0; i < n; ++i) reachable += weight[i] > 0 ? cap[i] : floor[i];
    const double level = oracle::water_level(weight, {floor.begin(), floor.end()},
                                             {cap.begin(), cap.end()}, double(total));
    for (std::size_t i = 0; i < n; ++i) {
      EXPECT_GE(out[i], floor[i]);
      EXPECT_LE(out[i], cap[i]);
      if (total > reachable) continue;
      const double real = std::clamp(level * weight[i], double(floor[i]), double(cap[i]));
      EXPECT_LT(std::abs(double(out[i]) - real), 1.0 + 1e-6) << "round " << round << " head " << i;
    }
  }
}

TEST(WaterFill, TotalsOutOfReachGiveTheNearest) {
  EXPECT_EQ(fill({1, 1}, {3, 4}, {10, 10}, 0), (std::vector<Index>{3, 4}));
  EXPECT_EQ(fill({1, 1}, {3, 4}, {10, 10}, 100), (std::vector<Index>{10, 10}));
  EXPECT_EQ(fill({0, 0, 0}, {0, 0, 0}, {5, 5, 5}, 7), (std::vector<Index>{3, 2, 2}));
}

TEST(WaterFill, EqualFractionsGoToTheEarlierHead) {
  EXPECT_EQ(fill({1, 1, 1}, {0, 0, 0}, {9, 9, 9}, 10), (std::vector<Index>{4, 3, 3}));
}

}  // namespace water_fill_test
