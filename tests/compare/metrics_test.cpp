// SPDX-License-Identifier: MIT
#include "compare/metrics.hpp"

#include <gtest/gtest.h>

#include <random>
#include <vector>

namespace metrics_test {

using namespace compare;

std::vector<float> logits(std::size_t n, unsigned seed, float scale) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0, scale);
  std::vector<float> out(n);
  for (float& x : out) x = normal(random);
  return out;
}

// The definition, in double.
double divergence(const std::vector<float>& p, const std::vector<float>& q) {
  const auto log_sum = [](const std::vector<float>& x) {
    double largest = -1e300, sum = 0;
    for (const float v : x) largest = std::max(largest, double{v});
    for (const float v : x) sum += std::exp(double{v} - largest);
    return largest + std::log(sum);
  };
  const double a = log_sum(p), b = log_sum(q);
  double out = 0;
  for (std::size_t i = 0; i < p.size(); ++i)
    out += std::exp(double{p[i]} - a) * ((double{p[i]} - a) - (double{q[i]} - b));
  return out;
}

TEST(Metrics, DivergenceIsTheDefinition) {
  for (const std::size_t n : {1, 2, 7, 1023, 1024, 1025, 5000})
    for (const float scale : {0.01f, 1.f, 8.f, 40.f}) {
      const auto p = logits(n, 1, scale), q = logits(n, 2, scale);
      const LogitComparison got = compare_logits(p, q);
      EXPECT_NEAR(got.divergence, divergence(p, q), 1e-5 * (1 + divergence(p, q)))
          << n << " " << scale;
      EXPECT_NEAR(compare_logits(p, p).divergence, 0, 1e-7);
      EXPECT_TRUE(compare_logits(p, p).same_argmax);
    }
}

TEST(Metrics, LogitsFarFromZeroDoNotOverflow) {
  auto p = logits(100, 3, 1.f), q = logits(100, 4, 1.f);
  const double want = compare_logits(p, q).divergence;
  for (float& x : p) x += 5000;
  for (float& x : q) x -= 5000;
  EXPECT_NEAR(compare_logits(p, q).divergence, want, 1e-2);
}

TEST(Metrics, LossDeltaIsAgainstTheRealToken) {
  // Two tokens of three: the softmax of log p is p.
  const std::vector<float> exact{std::log(0.5f), std::log(0.3f), std::log(0.2f)};
  const std::vector<float> other{std::log(0.2f), std::log(0.6f), std::log(0.2f)};
  const std::vector<std::int32_t> next{1};
  TokenScores scores;
  scores.add(exact, other, next);
  EXPECT_NEAR(scores.loss_delta.value(), -std::log(0.6) + std::log(0.3), 1e-6);
  EXPECT_EQ(scores.same_argmax.value(), 0);
  EXPECT_NEAR(scores.divergence.value(), 0.5 * std::log(0.5 / 0.2) + 0.3 * std::log(0.3 / 0.6),
              1e-6);
}

TEST(Metrics, TheFirstOfEqualLogitsIsTheArgmax) {
  EXPECT_EQ(argmax(std::vector<float>{1, 3, 3, 2}), 1);
}

TEST(Mean, PartsGiveWhatTheWholeGives) {
  std::mt19937 random(5);
  std::lognormal_distribution<double> distribution;
  std::vector<double> x(1000);
  double sum = 0, squares = 0;
  for (double& v : x) sum += v = 1e6 + distribution(random);
  for (const double v : x) squares += (v - sum / 1000) * (v - sum / 1000);
  Mean whole, merged;
  for (std::size_t first = 0; first < 1000;) {
    Mean part;
    const std::size_t last = std::min<std::size_t>(1000, first + random() % 300);
    for (; first < last; ++first) {
      part.add(x[first]);
      whole.add(x[first]);
    }
    merged.add(part);
  }
  EXPECT_EQ(merged.count(), 1000);
  for (const Mean& mean : {whole, merged}) {
    EXPECT_NEAR(mean.value(), sum / 1000, 1e-6);
    EXPECT_NEAR(mean.standard_error(), std::sqrt(squares / 999 / 1000), 1e-9);
  }
  EXPECT_TRUE(std::isnan(Mean().value()));
  EXPECT_EQ(Mean().standard_error(), 0);
}

TEST(RankCorrelation, LooksAtTheOrderAlone) {
  const std::vector<double> x{1, 2, 3, 4}, same{10, 11, 500, 501}, other{4, 3, 2, 1},
      ties{1, 1, 2, 2}, equal{3, 3, 3, 3};
  EXPECT_NEAR(rank_correlation(x, same), 1, 1e-12);
  EXPECT_NEAR(rank_correlation(x, other), -1, 1e-12);
  EXPECT_NEAR(rank_correlation(x, ties), 4 / std::sqrt(5.0 * 4.0), 1e-12);  // ranks .5 .5 2.5 2.5
  EXPECT_TRUE(std::isnan(rank_correlation(x, equal)));
}

}  // namespace metrics_test
