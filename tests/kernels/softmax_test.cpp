// SPDX-License-Identifier: MIT
#include "../oracle/attention.hpp"

#include <gtest/gtest.h>

#include <string>

#include "fixture.hpp"

namespace softmax_test {

using namespace fixture;

class Softmax : public testing::TestWithParam<const KernelTable*> {};

TEST_P(Softmax, Rows) {
  for (const Index n : {1, 2, 15, 16, 17, 64, 100, 1000}) {
    const Index count = 5, stride = n + 3;
    std::vector<float> x = normal(count * stride, 3);
    const std::vector<Index> visible = {n, 0, 1, n / 2, n + 10};
    std::vector<double> right(uz(count * n));
    for (Index i = 0; i < count; ++i)
      for (Index j = 0; j < n; ++j)
        right[uz(i * n + j)] = j < visible[uz(i)] ? double{x[uz(i * stride + j)]} : -INFINITY;
    oracle::softmax(right, uz(n));
    const std::vector<float> before = x;
    GetParam()->softmax_rows(x.data(), count, stride, visible.data(), n);
    for (Index i = 0; i < count; ++i)
      for (Index j = 0; j < stride; ++j) {
        const std::size_t at = uz(i * stride + j);
        if (j >= n)
          EXPECT_EQ(x[at], before[at]);
        else
          EXPECT_NEAR(x[at], right[uz(i * n + j)], 1e-6 * right[uz(i * n + j)]);
      }
  }
}

TEST_P(Softmax, NothingToSee) {
  std::vector<float> x(40, -std::numeric_limits<float>::infinity());
  GetParam()->softmax_rows(x.data(), 1, 40, nullptr, 40);
  for (float v : x) EXPECT_EQ(v, 0);
}

// Exponentials over their whole range: e^x / e^0 by the softmax of {0, x}, small x first so that
// the sum stays near 1.
TEST_P(Softmax, ExponentialIsAccurate) {
  double worst = 0;
  for (double x = -87.3; x < -17; x += 0.000917) {
    float row[2] = {0, static_cast<float>(x)};
    GetParam()->softmax_rows(row, 1, 2, nullptr, 2);
    const double right = std::exp(double{static_cast<float>(x)});
    worst = std::max(worst, std::fabs(double{row[1]} / right - 1));
  }
  EXPECT_LE(worst, 1.5e-7);
  RecordProperty("worst", std::to_string(worst * 1e9) + "e-9");
  float row[4] = {0, -88, -1000, -std::numeric_limits<float>::infinity()};
  GetParam()->softmax_rows(row, 1, 4, nullptr, 4);
  EXPECT_EQ(row[0], 1);
  EXPECT_EQ(row[1], 0);
  EXPECT_EQ(row[2], 0);
  EXPECT_EQ(row[3], 0);
}

INSTANTIATE_TEST_SUITE_P(, Softmax,
                         testing::ValuesIn(lesskv::kernel_tables().begin(),
                                           lesskv::kernel_tables().end()),
                         table_name);

}  // namespace softmax_test
