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

  static constexpr Need needs = Need::keys;
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
    Matrix means = Matrix::Zero(n, leaving.keys.cols());
    std::vector<float> total(detail::uz(n), 0.f), half(detail::uz(n));
    for (Index r = first; r < last; ++r) {
      const Index c = cluster[detail::uz(r)] - base;
      means.row(c) += weight[detail::uz(r)] * leaving.keys.row(r);
      total[detail::uz(c)] += weight[detail::uz(r)];
    }
    for (Index c = 0; c < n; ++c)
      if (total[detail::uz(c)] > 0) {
        means.row(c) /= total[detail::uz(c)];
        half[detail::uz(c)] = 0.5f * means.row(c).squaredNorm();
      }
    bool moved = false;
    for (Index r = first; r < last; ++r) {
      Index best = cluster[detail::uz(r)] - base;
      float most = leaving.keys.row(r).dot(means.row(best)) - half[detail::uz(best)];
      for (Index c = 0; c < n; ++c) {
        if (!(total[detail::uz(c)] > 0)) continue;
        const float near_to = leaving.keys.row(r).dot(means.row(c)) - half[detail::uz(c)];
        if (near_to > most) {
          most = near_to;
          best = c;
        }
      }
      moved = moved || best != cluster[detail::uz(r)] - base;
      cluster[detail::uz(r)] = static_cast<std::int32_t>(base + best);
    }
    return moved;
  }
};

LESSKV_END_NAMESPACE
