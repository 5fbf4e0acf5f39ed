// SPDX-License-Identifier: MIT
// LMBO against its definition, and profiles of LMBA.
#include <gtest/gtest.h>

#include "support.hpp"

#include <lesskv/budget/rows_for_output.hpp>

namespace analysis_test {

using namespace budget_test;

// Cosine of the output over the k keys with the largest weights with the full one, all heads joined.
double cosine(const std::vector<Matrix>& weights, const std::vector<Matrix>& values, Index k) {
  double dot = 0, a = 0, b = 0;
  for (std::size_t h = 0; h < weights.size(); ++h)
    for (Index g = 0; g < weights[h].rows(); ++g) {
      std::vector<std::pair<double, Index>> order;
      for (Index i = 0; i < weights[h].cols(); ++i) order.emplace_back(-weights[h](g, i), -i);
      std::sort(order.begin(), order.end());
      Eigen::RowVectorXd part = Eigen::RowVectorXd::Zero(values[h].cols()), full = part;
      double mass = 0;
      for (Index i = 0; i < weights[h].cols(); ++i) {
        const Index row = -order[std::size_t(i)].second;
        const Eigen::RowVectorXd term =
            double{weights[h](g, row)} * values[h].row(row).cast<double>();
        full += term;
        if (i < k) {
          part += term;
          mass += double{weights[h](g, row)};
        }
      }
      part /= mass;
      dot += part.dot(full);
      a += part.squaredNorm();
      b += full.squaredNorm();
    }
  return dot / std::sqrt(a * b);
}

TEST(RowsForOutput, EqualsTheDefinitionOnTheGrid) {
  std::mt19937 random(3);
  std::normal_distribution<float> normal;
  for (int round = 0; round < 12; ++round) {
    const Index n = 20 + static_cast<Index>(random() % 200);
    std::vector<Matrix> weights, values;
    for (int h = 0; h < 2; ++h) {
      weights.emplace_back(3, n);
      values.emplace_back(n, 8);
      for (Index i = 0; i < 8 * n; ++i) values.back().data()[i] = normal(random) + .3f;
      for (Index g = 0; g < 3; ++g) {
        for (Index i = 0; i < n; ++i)
          weights.back()(g, i) = std::exp(float(round) / 3 * normal(random));
        weights.back().row(g) /= weights.back().row(g).sum();
      }
    }
    std::vector<AttendedValues> heads;
    for (int h = 0; h < 2; ++h)
      heads.push_back({make_rows(weights[std::size_t(h)]), make_rows(values[std::size_t(h)])});
    Index before = 0;
    for (const double similarity : {.5, .8, .9, .95, .99, 1.0}) {
      const Index k = rows_for_output(heads, similarity);
      EXPECT_GE(k, before);
      before = k;
      // It passes, and the grid point before it (or one behind that) does not.
      if (k < n) {
        EXPECT_GE(cosine(weights, values, k), similarity - 1e-6);
      }
      if (k > 1) {
        const Index lower = std::max<Index>(1, std::min(k - 1, Index(std::ceil(double(k) / 1.25))));
        double least = 1;
        for (Index i = lower; i < k; ++i) least = std::min(least, cosine(weights, values, i));
        EXPECT_LT(least, similarity + 1e-6) << "n " << n << " k " << k;
      }
    }
    EXPECT_EQ(rows_for_output(heads, 1), n);
  }
}

TEST(RowsForOutput, OneKeyWithAllTheAttentionIsEnough) {
  Matrix weights = Matrix::Zero(2, 50), values = Matrix::Random(50, 4);
  weights(0, 7) = weights(1, 33) = 1;
  const std::vector<AttendedValues> heads{{make_rows(weights), make_rows(values)}};
  EXPECT_EQ(rows_for_output(heads, .99), 1);
  EXPECT_EQ(rows_for_output({}, .9), 0);
  EXPECT_NE(message_of([&] { rows_for_output(heads, 0); }).find("similarity"), std::string::npos);
  EXPECT_NE(message_of([&] { rows_for_output(heads, 1.5); }).find("similarity"), std::string::npos);
}

TEST(Profile, AveragesOverSamples) {
  const std::vector<std::vector<double>> samples{{10, 0, 30}, {20, 4, 50}};
  EXPECT_EQ(mean_lmba(samples), (std::vector<double>{15, 4, 40}));
  EXPECT_NE(message_of([] {
              mean_lmba(std::vector<std::vector<double>>{{1, 2}, {1}});
            }).find("samples"),
            std::string::npos);
  EXPECT_NE(message_of([] {
              mean_lmba(std::vector<std::vector<double>>{{1, 0}});
            }).find("layer 1"),
            std::string::npos);
}

// What was measured comes back as a profile, and gives the same budgets.
TEST(Profile, GivesTheBudgetsItWasMeasuredFrom) {
  Shape s = reference::shape();
  s.layers = 2;
  const auto run = [&](ZigZagKV policy) {
    KVCache cache(s, Keep{.tokens = 100}, KeyDiff{}, policy);
    for (int l = 0; l < 2; ++l) {
      const std::string name = l == 0 ? "l00" : "l15";
      cache.append(l, reference::Tensor("k_" + name).view(), reference::Tensor("v_" + name).view());
      const reference::Tensor queries(l == 0 ? "qwin64_l00" : "q_l15");
      cache.observe(l, queries.view(queries.tokens() - 32, 32));
    }
    cache.compress();
    return std::pair{sizes(cache), policy.lmba(s, cache.template states<ZigZagKV>())};
  };
  const auto measured = run({});
  const std::vector<std::vector<double>> samples{measured.second};
  EXPECT_GT(measured.second[0], 100);
  EXPECT_EQ(run({.profile = mean_lmba(samples)}).first, measured.first);
}

}  // namespace analysis_test
