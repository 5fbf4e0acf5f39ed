// SPDX-License-Identifier: MIT
// Centroids: what becomes of rows that leave: means of clusters of them stay in their place.
//
// Formula:  the rows of a head that leave are divided, in the order of the sequence, into stretches of
//           `near` clusters; in each, k-means on the keys, begun from runs of equal length, `rounds`
//           times. The mean key and the mean value of a cluster of m rows become one row, and log m is
//           added to its attention logits: m equal rows would get the same attention. Rows count in
//           means as much as their scores, if no score is negative: where the Scorer gathers attention,
//           a mean then lies where attention goes.
// Needs:    keys and values of the rows that leave.
// Cost:     rows that leave * near * rounds products of head_dim numbers, once for each row.
// Defaults: a tenth of the budget, taken from the rows that the Scorer would keep, goes to the heads in
//           proportion to the rows that leave them.
// Differs:  no paper's method. The nearest: SubGen (arXiv 2402.06082) clusters keys as they come; CaM
//           and D2O merge rows into kept ones without a mass. Mass, weights and share are measurements
//           of this project (examples/methods/centroids.md).
#pragma once

#include <algorithm>
#include <cmath>
#include <string_view>
#include <vector>

#include "../core/concepts.hpp"
#include "../kernels/row_products.hpp"

LESSKV_BEGIN_NAMESPACE

struct Centroids {
  double share = 0.1;    // part of the budget
  int rounds = 4;        // of k-means; 0: runs of equal length
  int near = 16;         // clusters among which a row looks for its own
  bool by_score = true;  // rows count as much as their scores

  static constexpr std::string_view name = "centroids";
  static constexpr std::string_view summary =
      "rows that leave become a few weighted means (k-means), which attention counts by their mass";
  template <class Self, class Visitor>
  static void parameters(Self& self, Visitor&& visit) {
    visit("share", self.share, "part of the budget that goes to means");
    visit("rounds", self.rounds, "of k-means; 0: runs of equal length");
    visit("near", self.near, "neighbouring clusters among which a row looks for its own");
    visit("by_score", self.by_score, "rows count in means as much as their scores");
  }

  bool weighs_scores() const { return by_score; }
  void check() const {
    if (!(share >= 0) || !(share < 1)) fail("Centroids::share must lie in [0, 1)");
    if (rounds < 0 || rounds > 100) fail("Centroids::rounds must lie between 0 and 100");
    if (near < 1) fail("Centroids::near must be positive");
  }

  void merge(const Head& leaving, std::span<const float> weight, Index count,
             std::span<std::int32_t> cluster) const {
    const Index rows = leaving.size(), stretches = (count + near - 1) / near;
    for (Index s = 0; s < stretches; ++s) {
      const Index first = rows * s / stretches, last = rows * (s + 1) / stretches;
      const Index base = count * s / stretches, end = count * (s + 1) / stretches;
      const Index n = std::min(end - base, last - first);
      for (Index r = first; r < last; ++r)
        cluster[detail::uz(r)] = static_cast<std::int32_t>(base + (r - first) * n / (last - first));
      for (int round = 0; round < rounds && n > 1; ++round)
        if (!improve(leaving, weight, first, last, base, n, cluster)) break;
    }
  }

 private:
  // One round of k-means over rows [first, last) and clusters [base, base + n); false: nothing moved.
  // A cluster that loses its rows gets none again.
  static bool improve(const Head& leaving, std::span<const float> weight, Index first, Index last,
                      Index base, Index n, std::span<std::int32_t> cluster) {
    using detail::uz;
    const Index dim = leaving.keys.cols(), stride = leaving.keys.outerStride();
    std::vector<float> means(uz(n * dim), 0.f), total(uz(n), 0.f), half(uz(n), 0.f);
    for (Index r = first; r < last; ++r) {
      const Index c = cluster[uz(r)] - base;
      const float* key = leaving.keys.data() + r * stride;
      for (Index i = 0; i < dim; ++i) means[uz(c * dim + i)] += weight[uz(r)] * key[i];
      total[uz(c)] += weight[uz(r)];
    }
    for (Index c = 0; c < n; ++c)
      for (Index i = 0; i < dim && total[uz(c)] > 0; ++i) {
        float& mean = means[uz(c * dim + i)];
        mean /= total[uz(c)];
        half[uz(c)] += 0.5f * mean * mean;
      }
    bool moved = false;
    constexpr Index block = detail::RowProducts::block;
    detail::RowProducts products(means.data(), n, dim);
    for (Index at = first; at < last; at += block) {
      const Index rows = std::min(block, last - at);
      const float* dot = products.of(leaving.keys.data() + at * stride, stride, rows);
      for (Index r = 0; r < rows; ++r) {
        const Index own = cluster[uz(at + r)] - base;
        Index best = own;
        for (Index c = 0; c < n; ++c)
          if (total[uz(c)] > 0 &&
              dot[c * block + r] - half[uz(c)] > dot[best * block + r] - half[uz(best)])
            best = c;
        moved = moved || best != own;
        cluster[uz(at + r)] = static_cast<std::int32_t>(base + best);
      }
    }
    return moved;
  }
};

LESSKV_END_NAMESPACE
