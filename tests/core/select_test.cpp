// SPDX-License-Identifier: MIT
#include "oracle/select.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <lesskv/core/select.hpp>
#include <limits>
#include <random>

namespace select_test {

using namespace lesskv;

std::vector<std::int32_t> selected(const std::vector<float>& score, const std::vector<float>& tie,
                                   Index first, Index last, Index k, Index offset = 0) {
  std::vector<std::int32_t> kept;
  detail::select_largest(score, tie, first, last, k, offset, kept);
  return kept;
}

TEST(Select, EqualsAFullSortIncludingTies) {
  std::mt19937 random(1);
  for (int round = 0; round < 400; ++round) {
    const int n = 1 + static_cast<int>(random() % 200);
    std::vector<float> score(static_cast<std::size_t>(n)), tie(score.size());
    for (auto& x : score)
      x = static_cast<float>(static_cast<int>(random() % 7) - 3) * 0.5f;  // many equal scores
    for (auto& x : tie) x = static_cast<float>(random() % 3);
    const int first = static_cast<int>(random() % static_cast<unsigned>(n));
    const int last = first + static_cast<int>(random() % static_cast<unsigned>(n - first + 1));
    const int k = static_cast<int>(random() % static_cast<unsigned>(n + 2));
    for (const bool with_tie : {false, true}) {
      const std::vector<float> t = with_tie ? tie : std::vector<float>();
      EXPECT_EQ(selected(score, t, first, last, k), oracle::select(score, t, first, last, k));
    }
  }
}

// Long lists take the way of histograms. Numbers of every size, clustered, with outliers, and equal.
TEST(Select, LongListsEqualAFullSort) {
  std::mt19937 random(2);
  std::normal_distribution<float> normal;
  const auto any = [&](int kind, int i) -> float {
    const float x = normal(random);
    switch (kind) {
      case 0:
        return x;
      case 1:
        return 0.0078125f + 1e-6f * x;  // as softmax gives them
      case 2:
        return std::exp(20 * x) * (random() % 2 ? 1.f : -1.f);
      case 3:
        return i % 97 == 0 ? 1e30f * x : 1 + 1e-3f * x;
      case 4:
        return static_cast<float>(random() % 3) - 1;
      case 5:
        return static_cast<float>(i % 5000);
      default:
        return 3.f;
    }
  };
  for (int round = 0; round < 70; ++round) {
    const int n = 400 + static_cast<int>(random() % 9000);
    std::vector<float> score(static_cast<std::size_t>(n)), tie(score.size());
    for (int i = 0; i < n; ++i) score[static_cast<std::size_t>(i)] = any(round % 7, i);
    for (auto& x : tie) x = static_cast<float>(random() % 50);
    const int first = static_cast<int>(random() % 20), last = n - static_cast<int>(random() % 20);
    for (const int k : {1, 2, n / 8, n / 4, n / 2, last - first - 1,
                        static_cast<int>(random() % static_cast<unsigned>(n))}) {
      ASSERT_EQ(selected(score, {}, first, last, k), oracle::select(score, {}, first, last, k));
      ASSERT_EQ(selected(score, tie, first, last, k), oracle::select(score, tie, first, last, k));
    }
  }
}

// Very long lists ask a sample of 512 first; here it sees nothing but the smallest scores, or only
// the largest.
TEST(Select, AMisleadingSampleChangesNothing) {
  constexpr int n = 20000;
  std::mt19937 random(4);
  std::normal_distribution<float> normal;
  for (const float shift : {-100.f, 0.f, 100.f}) {
    std::vector<float> score(n), tie(n);
    for (float& x : score) x = std::round(normal(random) * 500);
    for (float& x : tie) x = static_cast<float>(random() % 5);
    const int step = n * 40503LL >> 16;  // as in kernels/select.inc
    for (int i = 0, at = 0; i < 512; ++i, at = (at + step) % n)
      score[static_cast<std::size_t>(at)] += shift * 1000;
    for (const int k : {1, 100, 600, n / 4, n - 600, n - 100, n - 1}) {
      ASSERT_EQ(selected(score, {}, 0, n, k), oracle::select(score, {}, 0, n, k));
      ASSERT_EQ(selected(score, tie, 0, n, k), oracle::select(score, tie, 0, n, k));
    }
  }
}

TEST(Select, InfinitiesAreTheLargestAndTheSmallestNumbers) {
  const float inf = std::numeric_limits<float>::infinity();
  std::vector<float> score(1000, 0.f);
  score[10] = score[20] = inf;
  score[30] = -inf;
  score[40] = std::nanf("");
  EXPECT_EQ(selected(score, {}, 0, 1000, 2), (std::vector<std::int32_t>{10, 20}));
  EXPECT_EQ(selected(score, {}, 0, 1000, 1), (std::vector<std::int32_t>{20}));
  const auto all_but_one = selected(score, {}, 0, 1000, 999);
  EXPECT_EQ(std::count(all_but_one.begin(), all_but_one.end(), 40), 0);
}

TEST(Select, NotANumberNeverWins) {
  const float nan = std::nanf("");
  EXPECT_EQ(selected({nan, -1e30f, nan, -2e30f}, {}, 0, 4, 2), (std::vector<std::int32_t>{1, 3}));
}

TEST(Select, SignedZerosAreOneScore) {
  EXPECT_EQ(selected({0.f, -0.f, 0.f}, {}, 0, 3, 1), (std::vector<std::int32_t>{2}));
  EXPECT_EQ(selected({-0.f, 0.f, -0.f}, {}, 0, 3, 1), (std::vector<std::int32_t>{2}));
}

TEST(Select, OffsetIsAddedToWhatIsKept) {
  EXPECT_EQ(selected({3, 1, 2}, {}, 0, 3, 2, 10), (std::vector<std::int32_t>{10, 12}));
  EXPECT_EQ(selected({3, 1, 2}, {}, 0, 3, 3, 10), (std::vector<std::int32_t>{10, 11, 12}));
}

TEST(Pool, AverageCountsThePaddingAndMaxSpreadsAPeak) {
  const std::vector<float> in{5, 0, 0, 0, 10};
  std::vector<float> out(5);
  detail::pool(in, {PoolKind::average, 5}, out);
  EXPECT_EQ(out, (std::vector<float>{1, 1, 3, 2, 2}));
  detail::pool(in, {PoolKind::max, 3}, out);
  EXPECT_EQ(out, (std::vector<float>{5, 5, 0, 10, 10}));
}

}  // namespace select_test
