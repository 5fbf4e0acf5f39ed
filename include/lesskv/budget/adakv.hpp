// SPDX-License-Identifier: MIT
// AdaKV: where the budget of a layer goes, by one cut on the scores of all its heads.
//
// Paper:    Feng et al., "Ada-KV: Optimizing KV Cache Eviction by Adaptive Budget Allocation for
//           Efficient LLM Inference", arXiv 2407.11550, Algorithm 1; kvpress AdaKVPress.
// Formula:  the budget of a layer, T rows, goes to the T largest scores of all its heads; each head
//           is first sure of its own alpha T / heads largest.
// Needs:    scores that may be compared between the heads of a layer: attention (SnapKV, H2O), the
//           cosine of KeyDiff; LagKV's sum to the same in every head.
// Cost:     a selection in linear time, at each judgement.
// Defaults: alpha .2, as in kvpress and in the code of the paper's authors' later framework (their
//           first code: .5).
// Differs:  sinks and the window of SnapKV are pins here and outside T, as in the authors' code
//           (kvpress counts the window among the alpha T / heads, so its safeguard is lower by the
//           window); equal scores go to the earlier head.
#pragma once

#include <string_view>
#include <vector>

#include "../core/concepts.hpp"
#include "cut.hpp"

LESSKV_BEGIN_NAMESPACE

struct AdaKV {
  double alpha = 0.2;  // part of an equal share that every head is sure of

  static constexpr std::string_view name = "adakv";
  static constexpr std::string_view summary =
      "budget of every head, by one cut on the scores of its layer (arXiv 2407.11550)";
  template <class Self, class Visitor>
  static void parameters(Self& self, Visitor&& visit) {
    visit("alpha", self.alpha, "part of an equal share that every head is sure of");
  }

  using State = std::vector<float>;  // scores of the candidates
  static constexpr Need needs = Need::scores;
  void check() const {
    if (!(alpha >= 0) || !(alpha <= 1)) fail("AdaKV::alpha must lie between 0 and 1");
  }
  void measure(const Head& head, State& state) const {
    state.assign(head.scores.begin(), head.scores.end());
  }
  void share(const Shape& shape, std::span<const State> measured, std::span<double> quota) const {
    const std::size_t heads = static_cast<std::size_t>(shape.kv_heads);
    for (std::size_t first = 0; first < quota.size(); first += heads) {
      const std::span<double> own = quota.subspan(first, heads);
      double total = 0;
      for (const double q : own) total += q;
      const std::vector<std::span<const float>> scores(
          measured.begin() + static_cast<std::ptrdiff_t>(first),
          measured.begin() + static_cast<std::ptrdiff_t>(first + heads));
      const std::vector<double> counts =
          detail::cut_scores(scores, total, alpha * total / double(heads));
      std::copy(counts.begin(), counts.end(), own.begin());
    }
  }
};

LESSKV_END_NAMESPACE
