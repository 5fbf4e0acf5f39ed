// SPDX-License-Identifier: MIT
// How many keys a layer needs for its output to stay what it is: LMBO of ZigZagKV (arXiv
// 2412.09036), the fewest tokens that keep the similarity of the output to the full one. An
// analysis: the budget of ZigZagKV uses attention alone (LMBA). The similarity is taken to be the
// cosine (inferred; the text of the paper could not be read).
#pragma once

#include <algorithm>
#include <cmath>
#include <numeric>
#include <span>
#include <vector>

#include "../core/error.hpp"
#include "../core/head.hpp"

LESSKV_BEGIN_NAMESPACE

// What one query sees of a KV head: weights [query heads of the KV head, keys] and values [keys,
// channels].
struct AttendedValues {
  Rows attention;
  Rows values;
};

// The fewest keys k per query head, those with the largest weights, renormalised, with which the
// outputs of all heads together have at least this cosine with the full ones. k runs over a
// geometric grid (1, 2, 3, 4, 5, 6, 8, 10, 12, ...); the answer is the first from which all larger
// ones pass: the curve need not rise everywhere. All keys always pass.
inline Index rows_for_output(std::span<const AttendedValues> heads, double similarity) {
  if (!(similarity > 0) || !(similarity <= 1))
    fail("rows_for_output: similarity must lie in (0, 1]");
  Index keys = 0;
  for (const AttendedValues& head : heads) {
    if (head.attention.cols() != head.values.rows())
      fail("rows_for_output: ", head.attention.cols(), " weights for ", head.values.rows(),
           " values");
    keys = std::max(keys, head.values.rows());
  }
  std::vector<Index> grid;
  for (Index k = 1; k < keys; k = std::max(k + 1, static_cast<Index>(double(k) * 1.25)))
    grid.push_back(k);
  if (keys > 0) grid.push_back(keys);
  // Sums over all heads at each k: product with the full output, and squared length.
  std::vector<double> product(grid.size(), 0.0), squares(grid.size(), 0.0);
  double full = 0;
  std::vector<Index> order;
  for (const AttendedValues& head : heads)
    for (Index g = 0; g < head.attention.rows(); ++g) {
      const auto weights = head.attention.row(g);
      order.resize(detail::uz(weights.cols()));
      std::iota(order.begin(), order.end(), Index{0});
      std::sort(order.begin(), order.end(), [&](Index a, Index b) {
        return weights[a] != weights[b] ? weights[a] > weights[b] : a > b;
      });
      const Eigen::RowVectorXd whole = weights.cast<double>() * head.values.cast<double>() /
                                       std::max(1e-300, double(weights.cast<double>().sum()));
      full += whole.squaredNorm();
      Eigen::RowVectorXd sum = Eigen::RowVectorXd::Zero(head.values.cols());
      double mass = 0;
      std::size_t at = 0;
      for (std::size_t k = 0; k < order.size(); ++k) {
        const double weight = double{weights[order[k]]};
        sum += weight * head.values.row(order[k]).cast<double>();
        mass += weight;
        const bool last = k + 1 == order.size();
        // A head with fewer keys than others has all of them from there on.
        for (; at < grid.size() && (grid[at] == static_cast<Index>(k) + 1 || last); ++at) {
          const double scale = mass > 0 ? 1 / mass : 0;
          product[at] += scale * sum.dot(whole);
          squares[at] += scale * scale * sum.squaredNorm();
        }
      }
    }
  Index answer = keys;
  for (std::size_t at = grid.size(); at-- > 0;) {
    const double length = std::sqrt(squares[at] * full);
    const bool passes = at + 1 == grid.size() || product[at] >= similarity * length * (1 - 1e-12);
    if (!passes) break;
    answer = grid[at];
  }
  return answer;
}

LESSKV_END_NAMESPACE
