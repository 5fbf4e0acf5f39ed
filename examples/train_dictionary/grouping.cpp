// SPDX-License-Identifier: MIT
#include "grouping.hpp"

#include <Eigen/Eigenvalues>
#include <algorithm>
#include <cmath>
#include <lesskv/core/error.hpp>
#include <numeric>

namespace training {
namespace {

using Rows = Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
constexpr Index cells = 200;

struct Layer {
  Rows unit;
  Eigen::VectorXd sum;
  Eigen::MatrixXd squares;
};

std::vector<double> histogram(const Rows& points, const Eigen::Vector2d& low,
                              const Eigen::Vector2d& high) {
  std::vector<double> out(static_cast<std::size_t>(cells * cells), 0.0);
  for (Index i = 0; i < points.rows(); ++i) {
    Index at[2];
    for (int k = 0; k < 2; ++k) {
      const double width = high[k] - low[k];
      const double x = width > 0 ? (points(i, k) - low[k]) / width : 0;
      at[k] = std::clamp(static_cast<Index>(x * cells), Index{0}, cells - 1);
    }
    out[static_cast<std::size_t>(at[0] * cells + at[1])] += 1;
  }
  return out;
}

double divergence_of(const Layer& a, const Layer& b) {
  const double count = static_cast<double>(a.unit.rows() + b.unit.rows());
  const Eigen::VectorXd mean = (a.sum + b.sum) / count;
  const Eigen::MatrixXd covariance = (a.squares + b.squares) / count - mean * mean.transpose();
  const Eigen::SelfAdjointEigenSolver<Eigen::MatrixXd> solver(covariance);
  const Eigen::MatrixXd axes = solver.eigenvectors().rightCols(2);
  const Rows pa = a.unit * axes, pb = b.unit * axes;
  const Eigen::Vector2d low = pa.colwise().minCoeff().cwiseMin(pb.colwise().minCoeff()).transpose();
  const Eigen::Vector2d high =
      pa.colwise().maxCoeff().cwiseMax(pb.colwise().maxCoeff()).transpose();
  return jensen_shannon(histogram(pa, low, high), histogram(pb, low, high));
}

}  // namespace

double jensen_shannon(const std::vector<double>& p, const std::vector<double>& q) {
  const double sum_p = std::accumulate(p.begin(), p.end(), 0.0);
  const double sum_q = std::accumulate(q.begin(), q.end(), 0.0);
  double out = 0;
  for (std::size_t i = 0; i < p.size(); ++i) {
    const double a = p[i] / sum_p, b = q[i] / sum_q, m = (a + b) / 2;
    if (a > 0) out += a * std::log2(a / m) / 2;
    if (b > 0) out += b * std::log2(b / m) / 2;
  }
  return out;
}

std::vector<std::vector<double>> layer_divergence(const std::vector<std::vector<float>>& rows,
                                                  int dim) {
  if (dim < 2) lesskv::fail("layer_divergence::dim is ", dim, "; two components need 2");
  std::vector<Layer> layers;
  for (const std::vector<float>& layer : rows) {
    const Index count = static_cast<Index>(layer.size()) / dim;
    if (count < 1) lesskv::fail("layer_divergence::rows: a layer has none");
    Layer out;
    out.unit.resize(count, dim);
    for (Index i = 0; i < count; ++i) {
      double square = 0;
      for (Index c = 0; c < dim; ++c) {
        out.unit(i, c) = static_cast<double>(layer[static_cast<std::size_t>(i * dim + c)]);
        square += out.unit(i, c) * out.unit(i, c);
      }
      if (square > 0) out.unit.row(i) /= std::sqrt(square);
    }
    out.sum = out.unit.colwise().sum();
    out.squares = out.unit.transpose() * out.unit;
    layers.push_back(std::move(out));
  }
  std::vector<std::vector<double>> out(layers.size(), std::vector<double>(layers.size(), 0.0));
  for (std::size_t i = 0; i < layers.size(); ++i)
    for (std::size_t j = 0; j < i; ++j) out[i][j] = out[j][i] = divergence_of(layers[i], layers[j]);
  return out;
}

std::vector<int> group_layers(const std::vector<std::vector<double>>& divergence, double pair,
                              double chain) {
  std::vector<int> out;
  std::size_t first = 0;
  double sum = 0;
  for (std::size_t l = 0; l < divergence.size(); ++l) {
    bool joins = l > 0;
    for (std::size_t k = first; k < l; ++k) joins &= divergence[l][k] <= pair;
    if (l > 0) sum += divergence[l][l - 1];
    joins &= sum <= chain;
    if (!joins) {
      first = l;
      sum = 0;
    }
    out.push_back(l == 0 ? 0 : out.back() + (joins ? 0 : 1));
  }
  return out;
}

std::vector<int> group_layers_into(const std::vector<std::vector<double>>& divergence, int groups) {
  if (groups < 1) lesskv::fail("group_layers_into::groups is ", groups);
  // Candidates for `pair`: where either condition starts to hold.
  std::vector<double> limits = {0};
  for (std::size_t i = 0; i < divergence.size(); ++i) {
    double sum = 0;
    for (std::size_t j = i + 1; j < divergence.size(); ++j) {
      sum += divergence[j][j - 1];
      limits.push_back(divergence[i][j]);
      limits.push_back(sum / 3 * (1 + 1e-12));
    }
  }
  std::sort(limits.begin(), limits.end());
  for (const double pair : limits) {
    std::vector<int> out = group_layers(divergence, pair, 3 * pair);
    if (out.empty() || out.back() < groups) return out;
  }
  return std::vector<int>(divergence.size(), 0);
}

}  // namespace training
