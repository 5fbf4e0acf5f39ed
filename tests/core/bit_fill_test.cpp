// SPDX-License-Identifier: MIT
// Bits from a budget, against all allotments there are.
#include <gtest/gtest.h>

#include <lesskv/core/bit_fill.hpp>
#include <random>
#include <vector>

namespace bit_fill_test {

using lesskv::bit_fill;

// Convex and falling, of 2 to 6 bits.
const std::vector<double> distortion = {0.1175, 0.0345, 0.0095, 0.0025, 0.0006};

double sum(const std::vector<double>& weight, const std::vector<int>& bits) {
  double out = 0;
  for (std::size_t i = 0; i < bits.size(); ++i)
    out += weight[i] * distortion[static_cast<std::size_t>(bits[i] - 2)];
  return out;
}
double price(const std::vector<double>& cost, const std::vector<int>& bits) {
  double out = 0;
  for (std::size_t i = 0; i < bits.size(); ++i) out += cost[i] * bits[i];
  return out;
}

// The least sum of all allotments within the budget.
double brute_force(const std::vector<double>& weight, const std::vector<double>& cost,
                   double budget) {
  std::vector<int> bits(weight.size(), 2);
  double best = sum(weight, bits);
  for (;;) {
    std::size_t i = 0;
    while (i < bits.size() && bits[i] == 6) bits[i++] = 2;
    if (i == bits.size()) return best;
    ++bits[i];
    if (price(cost, bits) <= budget + 1e-9) best = std::min(best, sum(weight, bits));
  }
}

TEST(BitFill, EqualCostsGiveTheOptimum) {
  std::mt19937 random(1);
  std::lognormal_distribution<double> weights(0, 2);
  for (int round = 0; round < 60; ++round) {
    const std::size_t n = 1 + random() % 5;
    std::vector<double> weight(n), cost(n, 3.0);
    for (double& w : weight) w = weights(random);
    const double budget = 3.0 * static_cast<double>(2 * n + random() % (4 * n + 1));
    std::vector<int> bits(n);
    bit_fill(weight, cost, budget, distortion, 2, bits);
    EXPECT_LE(price(cost, bits), budget);
    EXPECT_NEAR(sum(weight, bits), brute_force(weight, cost, budget), 1e-12) << round;
  }
}

TEST(BitFill, OtherCostsLoseLessThanOneStep) {
  std::mt19937 random(2);
  std::lognormal_distribution<double> weights(0, 2), costs(0, 1);
  for (int round = 0; round < 60; ++round) {
    const std::size_t n = 2 + random() % 4;
    std::vector<double> weight(n), cost(n);
    double least = 0, dearest = 0;
    for (std::size_t i = 0; i < n; ++i) {
      weight[i] = weights(random);
      cost[i] = costs(random);
      least += 2 * cost[i];
      dearest = std::max(dearest, cost[i]);
    }
    const double budget = least * (1 + 0.1 * static_cast<double>(random() % 20));
    std::vector<int> bits(n);
    bit_fill(weight, cost, budget, distortion, 2, bits);
    EXPECT_LE(price(cost, bits), budget * (1 + 1e-9));
    EXPECT_GE(sum(weight, bits), brute_force(weight, cost, budget) - 1e-12);
    if (budget - dearest >= least) {
      EXPECT_LE(sum(weight, bits), brute_force(weight, cost, budget - dearest) + 1e-12) << round;
    }
    // Nothing that still fits is left.
    for (std::size_t i = 0; i < n; ++i)
      EXPECT_TRUE(bits[i] == 6 || price(cost, bits) + cost[i] > budget * (1 - 1e-9));
  }
}

TEST(BitFill, EndsAndTies) {
  std::vector<int> bits(3);
  const std::vector<double> same = {1, 1, 1}, cost = {1, 1, 1}, none = {0, 1, 1};
  bit_fill(same, cost, 0, distortion, 2, bits);  // less than the least: that is what all get
  EXPECT_EQ(bits, (std::vector<int>{2, 2, 2}));
  bit_fill(same, cost, 100, distortion, 2, bits);
  EXPECT_EQ(bits, (std::vector<int>{6, 6, 6}));
  bit_fill(same, cost, 8, distortion, 2, bits);
  EXPECT_EQ(bits, (std::vector<int>{3, 3, 2}));
  bit_fill(same, none, 4, distortion, 2, bits);
  EXPECT_EQ(bits, (std::vector<int>{6, 2, 2}));
  bit_fill(std::vector<double>{0, 0, 5}, cost, 10, distortion, 2, bits);
  EXPECT_EQ(bits[2], 6);
}

}  // namespace bit_fill_test
