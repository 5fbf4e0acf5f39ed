// SPDX-License-Identifier: MIT
// A bound for codecs: no code of so many bits a number has a smaller squared error on Gaussian rows
// of the same covariance (KLT, reverse water-filling). The rows are sent through the channel that
// attains it. No method, and a bound of the squared error, not of what the model makes of it.
#pragma once

#include <Eigen/Eigenvalues>
#include <random>

#include "evaluate.hpp"

namespace compare {

// The water level: variances below it get no bits, the others half a bit each halving.
inline double water_level(const Eigen::ArrayXd& variances, double bits) {
  double low = 0, high = variances.maxCoeff();
  for (int i = 0; i < 200 && high > 0; ++i) {
    const double level = (low + high) / 2;
    const double spent = (0.5 * (variances / level).max(1).log() / std::log(2.0)).mean();
    (spent > bits ? low : high) = level;
  }
  return high;
}

// Rows [rows, channels] after the channel, at `bits` a number.
inline lesskv::Matrix through_channel(const lesskv::Matrix& rows, double bits, std::uint64_t seed) {
  const Eigen::MatrixXd x = rows.cast<double>();
  const Eigen::RowVectorXd mean = x.colwise().mean();
  const Eigen::MatrixXd centred = x.rowwise() - mean;
  const Eigen::SelfAdjointEigenSolver<Eigen::MatrixXd> klt(
      Eigen::MatrixXd(centred.transpose() * centred / static_cast<double>(rows.rows())));
  const Eigen::ArrayXd variances = klt.eigenvalues().array().max(0);
  const double level = water_level(variances, bits);
  Eigen::MatrixXd out = centred * klt.eigenvectors();
  std::mt19937_64 random(seed);
  std::normal_distribution<double> normal;
  for (Index c = 0; c < out.cols(); ++c) {
    const double error = std::min(variances[c], level);
    const double share = variances[c] > 0 ? 1 - error / variances[c] : 0;
    const double noise = std::sqrt(share * error);
    for (Index r = 0; r < out.rows(); ++r) out(r, c) = share * out(r, c) + noise * normal(random);
  }
  return ((out * klt.eigenvectors().transpose()).rowwise() + mean).cast<float>();
}

// Every head and side alone, all at the same bits; tables are not counted.
inline DocumentResult evaluate_rate_distortion(engine::Run& run, double bits, const Pass& pass,
                                               const DocumentTasks& tasks,
                                               const std::string& name) {
  const lesskv::Shape& shape = pass.exact.shape();
  const Index context = pass.tensors.tokens();
  lesskv::KVCache<> cache(shape);
  for (int layer = 0; layer < shape.layers; ++layer) {
    lesskv::Matrix keys(context, shape.kv_heads * shape.head_dim),
        values(context, shape.kv_heads * shape.value_width());
    for (int head = 0; head < shape.kv_heads; ++head) {
      const auto seed = mix(static_cast<std::uint64_t>(layer * shape.kv_heads + head));
      keys.middleCols(head * shape.head_dim, shape.head_dim) =
          through_channel(pass.exact.keys(layer, head), bits, seed);
      values.middleCols(head * shape.value_width(), shape.value_width()) =
          through_channel(pass.exact.values(layer, head), bits, seed + 1);
    }
    cache.append(layer, View::packed(keys.data(), context, shape.kv_heads, shape.head_dim),
                 View::packed(values.data(), context, shape.kv_heads, shape.value_width()));
  }
  cache.compress();
  DocumentResult out;
  out.document = name;
  out.footprint.bytes_exact = pass.exact.bytes();
  out.footprint.bytes =
      static_cast<std::size_t>(static_cast<double>(pass.exact.bytes()) * bits / 16);
  out.footprint.peak_bytes = out.footprint.bytes;
  out.footprint.kept_share = 1;
  out.running = tasks.score_running(run, cache, context);
  out.copies = tasks.score_copies(run, cache, context);
  return out;
}

}  // namespace compare
