// SPDX-License-Identifier: MIT
// What the tests of budgets share: attention by its definition, and heads as a Budgeter sees them.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <lesskv/core/water_fill.hpp>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "score/reference.hpp"
#include "support/message.hpp"

namespace budget_test {

using namespace lesskv;

using support::message_of;

// Causal softmax attention in double of the last `w` queries (of the file with the newest 64, or
// all) of a reference layer: [w * 3][1024], query-major, then query head.
inline Matrix reference_attention(const Matrix& keys, const reference::Tensor& queries, int h,
                                  Index w) {
  Matrix out = Matrix::Zero(w * 3, keys.rows());
  std::vector<float> q(64);
  for (Index t = 0; t < w; ++t)
    for (int g = 0; g < 3; ++g) {
      detail::read_row(queries.view(), queries.tokens() - w + t, h * 3 + g, 64, q.data());
      const Index seen = keys.rows() - w + t + 1;
      Eigen::VectorXd e(seen);
      for (Index r = 0; r < seen; ++r) {
        double x = 0;
        for (int c = 0; c < 64; ++c) x += double{q[std::size_t(c)]} * double{keys(r, c)};
        e[r] = x / 8;
      }
      e = (e.array() - e.maxCoeff()).exp();
      out.row(t * 3 + g).head(seen) = (e / e.sum()).cast<float>();
    }
  return out;
}

inline std::vector<Index> fill(const std::vector<double>& weight, const std::vector<Index>& floor,
                               const std::vector<Index>& cap, Index total) {
  std::vector<Index> out(weight.size());
  detail::water_fill(weight, floor, cap, total, out);
  return out;
}

// Rows held per head.
template <class Cache>
std::vector<Index> sizes(const Cache& cache) {
  std::vector<Index> out;
  for (int l = 0; l < cache.shape().layers; ++l)
    for (int h = 0; h < cache.shape().kv_heads; ++h) out.push_back(cache.size(l, h));
  return out;
}

template <class Cache>
std::vector<std::vector<Position>> all_positions(const Cache& cache) {
  std::vector<std::vector<Position>> out;
  for (int l = 0; l < cache.shape().layers; ++l)
    for (int h = 0; h < cache.shape().kv_heads; ++h) out.push_back(cache.positions(l, h));
  return out;
}

}  // namespace budget_test
