// SPDX-License-Identifier: MIT
// Matrix entropies: against Eigen's solver and a plain f64 oracle, the reference data (UNComp's own
// functions on real tensors), golden values of power-law spectra, and what must not change them.
#include <gtest/gtest.h>

#include <Eigen/Eigenvalues>
#include <Eigen/QR>
#include <lesskv/budget/matrix_entropy.hpp>
#include <random>

#include "cache/support.hpp"
#include "score/reference.hpp"

namespace matrix_entropy_test {

using namespace lesskv;
using detail::uz;
using RowMatrixXd = Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

std::vector<double> sorted(const Eigen::VectorXd& values) {
  std::vector<double> out(values.begin(), values.end());
  std::sort(out.begin(), out.end(), std::greater<>());
  return out;
}

// The definition, in double.
std::vector<double> spectrum_by_definition(const Matrix& x) {
  Eigen::MatrixXd y = x.cast<double>();
  y.rowwise() -= y.colwise().mean().eval();
  Index n = 0;
  for (Index t = 0; t < y.rows(); ++t)
    if (const double norm = y.row(t).norm(); norm > 0) {
      y.row(t) /= norm;
      ++n;
    }
  const Eigen::MatrixXd gram = y.transpose() * y / double(std::max<Index>(1, n));
  return sorted(Eigen::SelfAdjointEigenSolver<Eigen::MatrixXd>(gram).eigenvalues());
}
double entropy_by_definition(const Matrix& x, Index k = 0) {
  double sum = 0;
  const std::vector<double> all = spectrum_by_definition(x);
  for (std::size_t j = 0; j < (k > 0 ? uz(k) : all.size()); ++j)
    if (all[j] > 0) sum -= all[j] * std::log(all[j]);
  return sum;
}

// Rows with a few strong directions, as keys and queries have.
Matrix rows_with_structure(Index n, Index dim, unsigned seed) {
  Matrix x = support::normal(n, dim, seed);
  for (Index c = 0; c < dim; ++c) x.col(c) *= 3.f / static_cast<float>(1 + c);
  const Matrix mix = support::normal(dim, dim, seed + 1);
  return x * mix;
}

double entropy(const Matrix& x, Index k = 0) { return matrix_entropy(make_rows(x), k); }
UnitMoments moments(const Matrix& x, Index block) {
  UnitMoments out;
  for (Index t = 0; t < x.rows(); t += block)
    out.add(x.row(t).data(), x.cols(), std::min(block, x.rows() - t), x.cols());
  return out;
}

TEST(SymmetricEigenvalues, EqualEigens) {
  for (const Index n : {1, 2, 3, 7, 16, 63, 64, 96, 128, 200})
    for (const double decay : {0.0, 0.5, 4.0}) {
      const Eigen::MatrixXd x = support::normal(2 * n, n, static_cast<unsigned>(n)).cast<double>() *
                                Eigen::VectorXd::LinSpaced(n, 0, 1)
                                    .unaryExpr([&](double t) { return std::exp(-decay * t * 4); })
                                    .asDiagonal();
      const RowMatrixXd a = x.transpose() * x;
      const std::vector<double> want =
          sorted(Eigen::SelfAdjointEigenSolver<Eigen::MatrixXd>(a).eigenvalues());
      const std::vector<double> got = symmetric_eigenvalues({a.data(), uz(a.size())}, n);
      ASSERT_EQ(got.size(), want.size());
      for (std::size_t i = 0; i < want.size(); ++i)
        ASSERT_NEAR(got[i], want[i], 1e-13 * double(n) / 8 * want[0] + 1e-14 * want[0])
            << "n " << n << ", decay " << decay << ", eigenvalue " << i;
    }
}

TEST(SymmetricEigenvalues, SpecialMatrices) {
  const auto values = [](const RowMatrixXd& a) {
    return symmetric_eigenvalues({a.data(), uz(a.size())}, a.rows());
  };
  EXPECT_EQ(values(RowMatrixXd::Zero(5, 5)), std::vector<double>(5, 0.0));
  EXPECT_EQ(values(RowMatrixXd::Identity(6, 6)), std::vector<double>(6, 1.0));
  const std::vector<double> ones = values(RowMatrixXd::Ones(9, 9));
  EXPECT_NEAR(ones[0], 9, 1e-13);
  for (std::size_t i = 1; i < 9; ++i) EXPECT_NEAR(ones[i], 0, 1e-13);
  // Indefinite, and of any scale.
  for (const double scale : {1e-200, 1.0, 1e200}) {
    RowMatrixXd a(2, 2);
    a << 1, 2, 2, 1;
    const std::vector<double> got = values(scale * a);
    EXPECT_NEAR(got[0] / scale, 3, 1e-14);
    EXPECT_NEAR(got[1] / scale, -1, 1e-14);
  }
  EXPECT_TRUE(symmetric_eigenvalues({}, 0).empty());
}

// Power laws lambda_j ~ j^-p over 128 channels.
TEST(TruncatedEntropy, GoldenValues) {
  struct Line {
    double p, full, h16, h32, h64;
  };
  for (const Line& line :
       {Line{0, 4.852, 0.607, 1.213, 2.426}, Line{0.5, 4.673, 1.206, 1.922, 3.016},
        Line{1, 3.849, 1.763, 2.366, 3.062}, Line{1.5, 2.567, 1.740, 2.064, 2.340},
        Line{2, 1.583, 1.341, 1.463, 1.538}, Line{3, 0.678, 0.663, 0.674, 0.677}}) {
    std::vector<double> lambda(128);
    for (std::size_t j = 0; j < 128; ++j) lambda[j] = 7 * std::pow(double(j + 1), -line.p);
    EXPECT_NEAR(truncated_entropy(lambda), line.full, 5.1e-4) << line.p;
    EXPECT_NEAR(truncated_entropy(lambda, 16), line.h16, 5.1e-4) << line.p;
    EXPECT_NEAR(truncated_entropy(lambda, 32), line.h32, 5.1e-4) << line.p;
    EXPECT_NEAR(truncated_entropy(lambda, 64), line.h64, 5.1e-4) << line.p;
    EXPECT_DOUBLE_EQ(truncated_entropy(lambda, 500), truncated_entropy(lambda));
  }
  EXPECT_EQ(default_truncation(128), 32);
  EXPECT_EQ(default_truncation(64), 16);
  EXPECT_EQ(default_truncation(1), 1);
}
TEST(TruncatedEntropy, Bounds) {
  EXPECT_EQ(truncated_entropy(std::vector<double>{5, 0, 0}), 0);
  EXPECT_EQ(truncated_entropy(std::vector<double>{0, 0, 0}), 0);
  EXPECT_EQ(truncated_entropy(std::vector<double>{}), 0);
  EXPECT_NEAR(truncated_entropy(std::vector<double>(8, 3.0)), std::log(8.0), 1e-14);
  EXPECT_NEAR(truncated_entropy(std::vector<double>(64, 1.0), 16), 0.25 * std::log(64.0), 1e-14);
  // Rounding below zero counts as zero.
  EXPECT_DOUBLE_EQ(truncated_entropy(std::vector<double>{1, 1, -1e-18}), std::log(2.0));
}

TEST(MatrixEntropy, EqualsTheDefinition) {
  for (const auto& [n, dim] : {std::pair<Index, Index>{1000, 64},
                               {1537, 128},
                               {65, 40},
                               {40, 128},  // fewer rows than channels
                               {300, 1},
                               {700, 100}}) {
    const Matrix x = rows_with_structure(n, dim, static_cast<unsigned>(dim));
    for (const Index k : {Index{0}, std::min<Index>(16, dim)})
      EXPECT_NEAR(entropy(x, k), entropy_by_definition(x, k), 5e-6) << n << " x " << dim;
  }
}
TEST(MatrixEntropy, EveryInstructionSetAgrees) {
  const Matrix x = rows_with_structure(64, 100, 3);
  std::vector<float> centre(112, 0.f), shift(112, 0.f), panels(112 * 64);
  for (std::size_t c = 0; c < 100; ++c) centre[c] = 0.1f, shift[c] = 0.01f;
  Eigen::MatrixXd z = x.cast<double>().array() - double{0.1f};
  z.rowwise().normalize();
  z.array() -= double{0.01f};
  const Eigen::MatrixXd want = z.transpose() * z;
  const Eigen::VectorXd sum = x.cast<double>().colwise().sum();
  for (const KernelTable* set : kernel_tables()) {
    SCOPED_TRACE(set->name);
    const GramTable& kernel = gram_kernels(*set);
    EXPECT_EQ(kernel.unit_rows(x.data(), 100, 64, 100, centre.data(), shift.data(), panels.data()),
              64);
    std::vector<float> got(112 * 112, 0.f);
    kernel.gram(panels.data(), 40, 100, got.data());  // in two parts: it adds
    std::vector<float> rest(112 * 64);
    kernel.unit_rows(x.row(40).data(), 100, 24, 100, centre.data(), shift.data(), rest.data());
    kernel.gram(rest.data(), 24, 100, got.data());
    for (Index i = 0; i < 100; ++i)
      for (Index j = 0; j <= i; ++j)
        ASSERT_NEAR(double{got[uz(i * 112 + j)]}, want(i, j), 1e-5) << i << ", " << j;
    std::vector<double> added(100, 1.0);
    kernel.add_rows(x.data(), 100, 64, 100, added.data());
    for (Index c = 0; c < 100; ++c) ASSERT_NEAR(added[uz(c)], sum[c] + 1, 1e-3) << c;
    RowMatrixXd a = want;
    std::vector<double> d(100), e(100);
    kernel.tridiagonalise(a.data(), 100, d.data(), e.data());
    Eigen::MatrixXd t = Eigen::MatrixXd::Zero(100, 100);
    for (Index i = 0; i < 100; ++i) {
      t(i, i) = d[uz(i)];
      if (i > 0) t(i, i - 1) = t(i - 1, i) = e[uz(i)];
    }
    const auto lhs = sorted(Eigen::SelfAdjointEigenSolver<Eigen::MatrixXd>(t).eigenvalues());
    const auto rhs = sorted(Eigen::SelfAdjointEigenSolver<Eigen::MatrixXd>(want).eigenvalues());
    for (std::size_t i = 0; i < 100; ++i) ASSERT_NEAR(lhs[i], rhs[i], 1e-12 * rhs[0]);
  }
}

TEST(MatrixEntropy, IsInvariant) {
  const Matrix x = rows_with_structure(800, 64, 5);
  const double h = entropy(x, 16);
  Matrix order = x;
  for (Index t = 0; t < x.rows(); ++t) order.row(t) = x.row((t * 37 + 11) % 800);
  EXPECT_NEAR(entropy(order, 16), h, 1e-6);
  EXPECT_NEAR(entropy(Matrix(x * 1e-3f), 16), h, 1e-6);
  EXPECT_NEAR(entropy(Matrix(x * 1e18f), 16), h, 1e-6);   // squares leave f32
  EXPECT_NEAR(entropy(Matrix(x * 1e-22f), 16), h, 1e-6);  // squares vanish
  const Matrix g = support::normal(64, 64, 9);
  const Eigen::MatrixXd q = Eigen::HouseholderQR<Eigen::MatrixXd>(g.cast<double>()).householderQ();
  EXPECT_NEAR(entropy(Matrix(x * q.cast<float>()), 16), h, 2e-6);
}
TEST(MatrixEntropy, ManyMoreRowsOnTheOtherSide) {
  // Z Z' has the same non-zero eigenvalues as Z' Z.
  const Matrix x = rows_with_structure(100, 128, 6);
  Eigen::MatrixXd z = x.cast<double>();
  z.rowwise() -= z.colwise().mean().eval();
  z.rowwise().normalize();
  const Eigen::MatrixXd other = z * z.transpose() / 100.0;
  const auto values = sorted(Eigen::SelfAdjointEigenSolver<Eigen::MatrixXd>(other).eigenvalues());
  EXPECT_NEAR(entropy(x), truncated_entropy(values), 2e-6);
  EXPECT_NEAR(entropy(x, 32), truncated_entropy(values, 32), 2e-6);
}
TEST(MatrixEntropy, ShapesWithAnAnswer) {
  std::mt19937 random(1);
  const Matrix isotropic = support::normal(200000, 8, 7);
  EXPECT_NEAR(entropy(isotropic), std::log(8.0), 1e-3);
  EXPECT_NEAR(entropy(isotropic, 2), 0.25 * std::log(8.0), 5e-3);
  const Matrix line = support::normal(500, 1, 8) * support::normal(1, 32, 9);
  EXPECT_NEAR(entropy(line), 0, 1e-5);
}
TEST(MatrixEntropy, RowsWithoutDirection) {
  EXPECT_EQ(entropy(Matrix::Zero(50, 16)), 0);
  EXPECT_EQ(entropy(Matrix::Constant(50, 16, 3.f)), 0);
  EXPECT_EQ(entropy(Matrix(0, 16)), 0);
  EXPECT_EQ(entropy(Matrix::Ones(1, 16)), 0);  // one row is its own mean
  // Rows at the mean are left out of the divisor.
  Matrix x(5, 2);
  x << 1, 0, -1, 0, 0, 1, 0, -1, 0, 0;
  EXPECT_NEAR(entropy(x), std::log(2.0), 1e-7);
  double sum = 0;
  for (const double lambda : spectrum(make_rows(x))) sum += lambda;
  EXPECT_NEAR(sum, 1, 1e-7);
  UnitMoments none = moments(Matrix::Zero(50, 16), 7);
  EXPECT_EQ(none.count(), 0);
  EXPECT_EQ(none.entropy(), 0);
}

// Channels with strong means, as keys have: shifting first keeps the digits.
TEST(MatrixEntropy, KeepsItsDigitsFarFromZero) {
  const Matrix x = rows_with_structure(32768, 128, 10);
  const float deviation = std::sqrt((x.rowwise() - x.colwise().mean()).squaredNorm() / 32768.f);
  const double h32 = entropy(x, 32), h = entropy(x);
  for (const float offset : {10.f, 100.f}) {
    Matrix moved = x;
    moved.array() += offset * deviation;
    EXPECT_NEAR(entropy(moved, 32), h32, 1e-5) << offset;
    EXPECT_NEAR(entropy(moved), h, 1e-5) << offset;
    // The streaming form changes its meaning there, not its precision.
    Matrix units = moved;
    Eigen::MatrixXd exact = moved.cast<double>();
    exact.rowwise().normalize();
    exact.rowwise() -= exact.colwise().mean().eval();
    const Eigen::MatrixXd covariance = exact.transpose() * exact;
    const auto values =
        sorted(Eigen::SelfAdjointEigenSolver<Eigen::MatrixXd>(covariance).eigenvalues());
    // f32 has 24 bits, and the unit rows agree in the first 10 of them: what is left is data.
    EXPECT_NEAR(moments(moved, 64).entropy(32), truncated_entropy(values, 32), 1e-4) << offset;
  }
}

TEST(UnitMoments, BlocksDoNotMatter) {
  const Matrix x = rows_with_structure(1500, 64, 12);
  const double all = moments(x, 1500).entropy(16);
  for (const Index block : {1, 3, 17, 64, 100, 700})
    EXPECT_NEAR(moments(x, block).entropy(16), all, 1e-6) << block;
  Eigen::MatrixXd u = x.cast<double>();
  u.rowwise().normalize();
  u.rowwise() -= u.colwise().mean().eval();
  const Eigen::MatrixXd covariance = u.transpose() * u;
  EXPECT_NEAR(
      all,
      truncated_entropy(
          sorted(Eigen::SelfAdjointEigenSolver<Eigen::MatrixXd>(covariance).eigenvalues()), 16),
      2e-6);
  EXPECT_EQ(moments(x, 64).count(), 1500);
  EXPECT_LE(moments(x, 64).bytes(), std::size_t{4 * 64 * 64 + 16 * 64});
}

// ---- what the authors' own functions give on real queries, keys and values

double reference_entropy(const char* name, Index layer, Index h, Index heads) {
  const auto file =
      support::load_npy<float>(reference::path(std::string("uncomp/") + name + ".npy"));
  return double{file.data[uz(layer * heads + h)]} * std::log(64.0);
}
Matrix head_of(const reference::Tensor& tensor, int h) {
  Matrix out(tensor.tokens(), 64);
  for (Index t = 0; t < tensor.tokens(); ++t)
    detail::read_row(tensor.view(), t, h, 64, out.row(t).data());
  return out;
}

TEST(MatrixEntropy, EqualsTheReferenceOnRealTensors) {
  const double full = 2e-5 * std::log(64.0), cut = 2e-6 * std::log(64.0);
  const reference::Tensor q("q_l15");
  for (int h = 0; h < 9; ++h) {
    const Matrix x = head_of(q, h);
    EXPECT_NEAR(entropy(x), reference_entropy("H_full_q", 15, h, 9), full);
    EXPECT_NEAR(entropy(x, 16), reference_entropy("H_16_q", 15, h, 9), cut);
    EXPECT_NEAR(entropy(x, 32), reference_entropy("H_32_q", 15, h, 9), cut);
  }
  for (const int layer : {0, 15, 29})
    for (const char* side : {"k", "v"}) {
      const reference::Tensor tensor(side + ("_" + reference::layer_name(layer)));
      const auto name = [&](const char* cut_at) {
        std::string text = "H_";
        text += cut_at;
        text += "_";
        text += side;
        return text;
      };
      for (int h = 0; h < 3; ++h) {
        const Matrix x = head_of(tensor, h);
        EXPECT_NEAR(entropy(x), reference_entropy(name("full").c_str(), layer, h, 3), full);
        EXPECT_NEAR(entropy(x, 16), reference_entropy(name("16").c_str(), layer, h, 3), cut);
        EXPECT_NEAR(entropy(x, 32), reference_entropy(name("32").c_str(), layer, h, 3), cut);
      }
    }
}
TEST(MatrixEntropy, SpectrumAndOrderOfHeadsEqualTheReference) {
  const auto want = support::load_npy<float>(reference::path("uncomp/spectrum_q_l15.npy"));
  const auto order =
      support::load_npy<std::int32_t>(reference::path("uncomp/head_order_q_H16.npy"));
  const reference::Tensor q("q_l15");
  std::vector<double> h16;
  for (int h = 0; h < 9; ++h) {
    const Matrix x = head_of(q, h);
    const std::vector<double> got = spectrum(make_rows(x));
    for (std::size_t j = 0; j < 64; ++j)
      EXPECT_NEAR(got[j], double{want.data[uz(h * 64) + j]}, 1e-6);
    h16.push_back(entropy(x, 16));
  }
  for (std::size_t i = 1; i < 9; ++i)
    EXPECT_LT(h16[uz(order.data[15 * 9 + i - 1])], h16[uz(order.data[15 * 9 + i])]);
}
// How far the streaming form is from the reference on real queries: the heads' spread is .075.
TEST(UnitMoments, IsCloseToTheReferenceOnRealQueries) {
  const reference::Tensor q("q_l15");
  std::vector<double> want, got;
  for (int h = 0; h < 9; ++h) {
    want.push_back(reference_entropy("H_16_q", 15, h, 9));
    got.push_back(moments(head_of(q, h), 64).entropy(16));
    EXPECT_NEAR(got.back(), want.back(), 0.015);
  }
  const Eigen::Map<Eigen::VectorXd> a(want.data(), 9), b(got.data(), 9);
  const Eigen::VectorXd x = a.array() - a.mean(), y = b.array() - b.mean();
  EXPECT_GT(x.dot(y) / x.norm() / y.norm(), 0.99);
}

}  // namespace matrix_entropy_test
