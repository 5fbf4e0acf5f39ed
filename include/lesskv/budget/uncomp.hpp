// SPDX-License-Identifier: MIT
// UNComp: where the budget goes, by the truncated matrix entropy of every head.
//
// Paper:    Xiong et al., "UNComp: Can Matrix Entropy Uncover Sparsity?", arXiv 2410.03090 (v2,
//           EMNLP 2025), and its released code.
// Formula:  heads are ranked by the entropy H_k of their queries (matrix_entropy.hpp) and cut into
//           M groups; group g = 1 (highest) ... M multiplies the quota by
//             1 + rho (M - 1 - 2 (g - 1)) / (M - 1):
//           higher entropy, larger budget. Or by the `weights` of a list, lowest entropy first. The
//           library scales to the exact total.
// Needs:    every query (or keys, or values, or a calibration file of the model).
// Cost:     2 n d^2 operations a query head over the prompt, as much as d extra channels of
//           attention to d keys; d x d numbers a query head until the first compression, then one.
// Defaults: M = 8, rho = 2/3: 640, 566, ... 122 rows around a mean of 381 (v2). v1: groups = 2,
//           slope = 1/3, 512/256. k = d / 4 (its code: 32 of 128). Queries after RoPE.
// Selection: the paper pairs it with SnapKV{.window = 8, .pool = 7, .max_pool = true}, and goes on
//           evicting while decoding: Keep{.tokens = ..., .every = 1}.
// Differs:  entropies are the prompt's own, from moments of unit rows, unless a table is given (the
//           paper: a table made once, of 500 texts). One kept set and one entropy a KV head, the
//           mean of its query heads; the paper keeps a set per query head and so stores every key
//           group-size times. Group sizes differ by at most one, larger groups at both ends. Exact
//           totals (its two-group setting has budgets of 1.5 times their stated mean). Quotas count
//           rows beside the pins; the paper counts the window in. Heads without a trusted entropy
//           (4 head_dim rows; a short prompt) keep an equal share. Formulas are as read in the code
//           and in summaries of the paper.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <string_view>
#include <vector>

#include "../core/noise.hpp"
#include "head_entropy.hpp"

LESSKV_BEGIN_NAMESPACE

// Group of each of n heads in rank order, 0 ... groups - 1: sizes differ by at most one, and the
// larger groups lie at the ends (32 heads in 5 groups: 7, 6, 6, 6, 7).
inline std::vector<int> entropy_group_sizes(Index heads, int groups) {
  std::vector<int> size(detail::uz(groups), static_cast<int>(heads / groups));
  const int more = static_cast<int>(heads % groups);
  for (int i = 0; i < more; ++i) ++size[detail::uz(i % 2 == 0 ? i / 2 : groups - 1 - i / 2)];
  return size;
}

struct UNComp {
  int groups = 0;          // M; 0: 8, or one a head where there are fewer
  double slope = 2. / 3;   // rho, -1 to 1; below zero low entropy gets more: a control
  bool all_heads = false;  // groups over all heads of the model instead of within each layer
  std::vector<double> weights = {};  // budgets of the groups, lowest entropy first; replaces slope
  Index truncation = 0;              // k: eigenvalues that count; 0: a quarter of the channels
  EntropyOf of = EntropyOf::queries;
  CalibrationFile table = {};
  std::uint64_t random = 0;  // not 0: groups of the same sizes, by lot of this seed; a control

  static constexpr std::string_view name = "uncomp";
  static constexpr std::string_view summary =
      "budget of every head by the entropy of its queries, in groups (arXiv 2410.03090)";
  template <class Self, class Visitor>
  static void parameters(Self& self, Visitor&& visit) {
    visit("groups", self.groups, "groups of heads; 0: 8, or one a head where there are fewer");
    visit("slope", self.slope, "the last group gets 1 - slope, the first 1 + slope; -1 to 1");
    visit("all_heads", self.all_heads, "groups over all heads of the model, not in each layer");
    visit("weights", self.weights, "budgets of the groups instead, lowest entropy first");
    visit("truncation", self.truncation, "eigenvalues that count; 0: a quarter of the channels");
    visit("of", self.of, "queries, keys or values");
    visit("table", self.table, "calibration file to read the entropies from");
    visit("random", self.random, "not 0: a seed; groups of the same sizes by lot, a control");
  }

  using State = HeadEntropy;
  static constexpr bool all_layers = true;
  Need needs() const {
    if (!table.empty()) return Need::nothing;
    return of == EntropyOf::queries ? Need::queries
           : of == EntropyOf::keys  ? Need::keys
                                    : Need::values;
  }
  Need observe_needs() const { return observes() ? Need::queries : Need::nothing; }
  bool observes() const { return table.empty() && of == EntropyOf::queries; }
  bool measures() const { return table.empty(); }

  void check(const Shape& shape) const {
    const Index heads = all_heads ? shape.heads() : shape.kv_heads;
    if (groups < 0) fail("UNComp::groups is negative");
    if (groups > heads)
      fail("UNComp::groups is ", groups, ": more than the ", heads,
           all_heads ? " KV heads of the model" : " KV heads of a layer; all_heads ranks them all");
    if (!std::isfinite(slope) || slope < -1 || slope > 1)
      fail("UNComp::slope must lie between -1 and 1");
    if (!weights.empty()) {
      const Index n = static_cast<Index>(weights.size());
      if (groups != 0 && groups != n)
        fail("UNComp::weights has ", n, " entries for ", groups, " groups");
      if (n > heads)
        fail("UNComp::weights has ", n, " entries: more groups than the ", heads,
             " KV heads that are ranked together");
      double sum = 0;
      for (const double weight : weights) {
        if (!(weight >= 0) || !std::isfinite(weight))
          fail("UNComp::weights: a weight is negative or not finite");
        sum += weight;
      }
      if (!(sum > 0)) fail("UNComp::weights: all of them are zero");
    }
    detail::check_truncation("UNComp", truncation, table, shape, of);
  }

  void observe(const Head& head, State& state) const { detail::observe_entropy(head, state); }
  void measure(const Head& head, State& state) const {
    detail::measure_entropy("UNComp", of, truncation, head, state);
  }
  void share(const Shape& shape, std::span<const State> measured, std::span<double> quota) const {
    std::vector<double> entropy = detail::head_entropies(shape, table, of, measured);
    if (random != 0)
      for (std::size_t i = 0; i < entropy.size(); ++i)
        if (!std::isnan(entropy[i]))
          entropy[i] = static_cast<double>(detail::noise(detail::noise(random) ^ i));
    const Index scope = all_heads ? shape.heads() : shape.kv_heads;
    for (Index first = 0; first < shape.heads(); first += scope)
      share_scope(entropy, first, scope, quota);
  }

 private:
  // Factor of group i of m, lowest entropy first.
  double factor(int i, int m) const {
    if (!weights.empty()) return weights[detail::uz(i)];
    return m == 1 ? 1 : 1 + slope * (2 * i - (m - 1)) / (m - 1);
  }
  void share_scope(const std::vector<double>& entropy, Index first, Index scope,
                   std::span<double> quota) const {
    std::vector<Index> order;  // equal entropies: the earlier head counts as lower
    for (Index i = first; i < first + scope; ++i)
      if (!std::isnan(entropy[detail::uz(i)])) order.push_back(i);
    const Index n = static_cast<Index>(order.size());
    const int wanted = !weights.empty() ? static_cast<int>(weights.size())
                       : groups > 0     ? groups
                                        : 8;
    if (n == 0 || (n < wanted && !weights.empty())) return;
    std::stable_sort(order.begin(), order.end(), [&](Index a, Index b) {
      return entropy[detail::uz(a)] < entropy[detail::uz(b)];
    });
    const int m = static_cast<int>(std::min<Index>(wanted, n));
    const std::vector<int> size = entropy_group_sizes(n, m);
    std::size_t at = 0;
    for (int i = 0; i < m; ++i)
      for (int j = 0; j < size[detail::uz(i)]; ++j) quota[detail::uz(order[at++])] *= factor(i, m);
  }
};

LESSKV_END_NAMESPACE
