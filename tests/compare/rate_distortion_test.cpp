// SPDX-License-Identifier: MIT
// The channel of the rate-distortion bound, against its definition: the rate is spent, the error is
// what the water level says, and nothing else is lost.
#include "compare/rate_distortion.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <random>

namespace rate_distortion_test {

using namespace compare;

TEST(WaterLevel, SpendsTheRate) {
  Eigen::ArrayXd variances(6);
  variances << 0, 0.01, 0.3, 1, 5, 40;
  for (const double bits : {0.1, 0.5, 1.0, 3.0, 6.0}) {
    const double level = water_level(variances, bits);
    double spent = 0;
    for (const double variance : variances)
      if (variance > level) spent += std::log2(variance / level) / 2;
    EXPECT_NEAR(spent / 6, bits, 1e-9);
  }
  EXPECT_EQ(water_level(Eigen::ArrayXd::Zero(4), 2), 0);
}

TEST(Channel, HasTheErrorOfTheBound) {
  constexpr Index rows = 20000, channels = 8;
  std::mt19937 random(3);
  std::normal_distribution<float> normal;
  lesskv::Matrix mixing(channels, channels), x(rows, channels);
  for (Index i = 0; i < mixing.size(); ++i) mixing.data()[i] = normal(random);
  for (Index r = 0; r < rows; ++r) {
    Eigen::RowVectorXf source(channels);
    for (Index c = 0; c < channels; ++c) source[c] = normal(random) * std::exp2(-float(c));
    x.row(r) = (source * mixing).array() + 3;
  }
  const Eigen::MatrixXd centred =
      (x.cast<double>()).rowwise() - Eigen::RowVectorXd(x.cast<double>().colwise().mean());
  const Eigen::ArrayXd variances =
      Eigen::SelfAdjointEigenSolver<Eigen::MatrixXd>(
          Eigen::MatrixXd(centred.transpose() * centred / double(rows)), Eigen::EigenvaluesOnly)
          .eigenvalues();
  for (const double bits : {0.5, 1.0, 2.0, 4.0}) {
    const lesskv::Matrix y = through_channel(x, bits, 7);
    const double error = (y - x).cast<double>().squaredNorm() / double(rows);
    const double bound = variances.min(water_level(variances, bits)).sum();
    EXPECT_NEAR(error / bound, 1, 0.03) << bits;
    EXPECT_NEAR(y.cast<double>().mean(), x.cast<double>().mean(), 0.02);
  }
  EXPECT_LT((through_channel(x, 16, 7) - x).cwiseAbs().maxCoeff(), 1e-2);
  const lesskv::Matrix same = lesskv::Matrix::Constant(10, 4, 2.5f);
  EXPECT_EQ(through_channel(same, 1, 7), same);
}

}  // namespace rate_distortion_test
