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
#if LESSKV_DECLARE_ONLY
Index rows_for_output(std::span<const AttendedValues> heads, double similarity);
#else
LESSKV_FUNCTION Index rows_for_output(std::span<const AttendedValues> heads, double similarity) {
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
  std::vector<double> whole, sum;  // outputs of one query head: with all keys, with k of them
  for (const AttendedValues& head : heads)
    for (Index g = 0; g < head.attention.rows(); ++g) {
      const float* weights = head.attention.data() + g * head.attention.outerStride();
      order.resize(detail::uz(head.attention.cols()));
      std::iota(order.begin(), order.end(), Index{0});
      std::sort(order.begin(), order.end(), [&](Index a, Index b) {
        return weights[a] != weights[b] ? weights[a] > weights[b] : a > b;
      });
      const std::size_t width = detail::uz(head.values.cols());
      // sum += weight * row
      const auto add = [&](std::vector<double>& to, double weight, Index row) {
        const float* value = head.values.data() + row * head.values.outerStride();
        for (std::size_t c = 0; c < width; ++c) to[c] += weight * double{value[c]};
      };
      whole.assign(width, 0.0);
      double all = 0;
      for (Index k = 0; k < head.values.rows(); ++k) {
        add(whole, double{weights[k]}, k);
        all += double{weights[k]};
      }
      for (double& x : whole) x /= std::max(1e-300, all);
      full += std::inner_product(whole.begin(), whole.end(), whole.begin(), 0.0);
      sum.assign(width, 0.0);
      double mass = 0;
      std::size_t at = 0;
      for (std::size_t k = 0; k < order.size(); ++k) {
        const double weight = double{weights[order[k]]};
        add(sum, weight, order[k]);
        mass += weight;
        const bool last = k + 1 == order.size();
        // A head with fewer keys than others has all of them from there on.
        for (; at < grid.size() && (grid[at] == static_cast<Index>(k) + 1 || last); ++at) {
          const double scale = mass > 0 ? 1 / mass : 0;
          product[at] += scale * std::inner_product(sum.begin(), sum.end(), whole.begin(), 0.0);
          squares[at] +=
              scale * scale * std::inner_product(sum.begin(), sum.end(), sum.begin(), 0.0);
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
#endif

LESSKV_END_NAMESPACE
