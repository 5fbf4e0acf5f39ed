// SPDX-License-Identifier: MIT
// EntropyWeight: where the budget goes, by a smooth weight of every head of the model.
//
// Formula:  the quota of a KV head is multiplied by the mean of exp(slope z) over its query heads,
//           z = (H_k - mean) / deviation over all query heads of the model, H_k the truncated matrix
//           entropy of a head's queries (matrix_entropy.hpp). The library scales to the exact total.
// Needs:    every query (or keys, or values, or a calibration file of the model).
// Cost:     as UNComp.
// Defaults: slope 1, k = d / 4. Not published: UNComp's measure (arXiv 2410.03090) without its
//           groups, which are mild (quotas differ 5 times at most; here 50 times between z = -2 and
//           2) and stay within a layer. On real text the split over all heads decides what can be
//           copied from the context: examples/methods/uncomp.md.
// Differs:  one query head that needs much is enough for its KV head: averaging entropies before the
//           exponent hides it behind its neighbours (examples/methods/uncomp.md). Keys and values
//           have one entropy a KV head. Heads without a trusted one have the factor of z = 0, which
//           is also the answer if all are equal.
#pragma once

#include <cmath>
#include <string_view>

#include "head_entropy.hpp"

LESSKV_BEGIN_NAMESPACE

struct EntropyWeight {
  double slope = 1;
  Index truncation = 0;  // k: eigenvalues that count; 0: a quarter of the channels
  EntropyOf of = EntropyOf::queries;
  CalibrationFile table = {};

  static constexpr std::string_view name = "entropy";
  static constexpr std::string_view summary =
      "budget of every head of the model, exp(slope * z-score of the entropy of its queries)";
  template <class Self, class Visitor>
  static void parameters(Self& self, Visitor&& visit) {
    visit("slope", self.slope, "of the exponent, -8 to 8; below zero low entropy gets more");
    visit("truncation", self.truncation, "eigenvalues that count; 0: a quarter of the channels");
    visit("of", self.of, "queries, keys or values");
    visit("table", self.table, "calibration file to read the entropies from");
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
    if (!std::isfinite(slope) || slope < -8 || slope > 8)
      fail("EntropyWeight::slope must lie between -8 and 8");
    detail::check_truncation("EntropyWeight", truncation, table, shape, of);
  }
  void observe(const Head& head, State& state) const { detail::observe_entropy(head, state); }
  void measure(const Head& head, State& state) const {
    detail::measure_entropy("EntropyWeight", of, truncation, head, state);
  }
  void share(const Shape& shape, std::span<const State> measured, std::span<double> quota) const {
    const std::vector<std::vector<double>> entropy = detail::entropies(shape, table, of, measured);
    double count = 0, sum = 0, squares = 0;
    for (const std::vector<double>& head : entropy)
      for (const double h : head) ++count, sum += h;
    const double mean = count > 0 ? sum / count : 0;
    for (const std::vector<double>& head : entropy)
      for (const double h : head) squares += (h - mean) * (h - mean);
    const double deviation = count > 0 ? std::sqrt(squares / count) : 0;
    // Entropies that differ by rounding only are equal.
    if (!(deviation > 1e-6)) return;
    for (std::size_t i = 0; i < entropy.size(); ++i) {
      if (entropy[i].empty()) continue;
      double factor = 0;
      for (const double h : entropy[i]) factor += std::exp(slope * (h - mean) / deviation);
      quota[i] *= factor / double(entropy[i].size());
    }
  }
};

LESSKV_END_NAMESPACE
