// SPDX-License-Identifier: MIT
// GlobalCut: where the budget goes, by one cut on the scores of all heads of all layers.
//
// Formula:  the budget of the model, T rows, goes to the T largest scores of all heads; each head is
//           first sure of its own alpha T / heads largest. GlobalCut<> cuts the scores by which rows
//           stay: the counts are the quotas, whatever they were. GlobalCut<KeyDiff> cuts the scores
//           of another Scorer and leaves the rows to the one that is named beside it: the counts are
//           factors of the quotas, and multiply with those of other budgets in any order.
// Needs:    scores that may be compared between all heads of the model: KeyDiff's cosine, ranks of
//           the model. What the other Scorer needs, at the first compression.
// Cost:     a selection in linear time: of own scores at each judgement, of another's once.
// Defaults: alpha 0: a head may lose everything but its pins.
// Differs:  the idea is in many papers (DynamicKV, arXiv 2412.14838, counts winners per layer;
//           KVzip, arXiv 2505.23416, cuts over all heads); KeyDiff's scores as a budget for other
//           scorers come from measurements of this project, not from the KeyDiff paper.
#pragma once

#include <string_view>
#include <vector>

#include "../core/concepts.hpp"
#include "../score/part.hpp"
#include "cut.hpp"

LESSKV_BEGIN_NAMESPACE

// The scores by which rows stay.
struct OwnScores {};

// By another Scorer: counted at the first compression that can drop rows; the shares then stay.
template <class By = OwnScores>
struct GlobalCut {
  static_assert(Scorer<By>,
                "lesskv: GlobalCut counts the scores of a Scorer, for example GlobalCut<KeyDiff>");
  By by = {};
  double alpha = 0;  // part of an equal share that every head is sure of

  static constexpr bool all_layers = true;
  struct State {
    std::vector<float> scores;  // until the cut was made
    double part = 0;            // of the budget, which is the factor, once it was
    state_of<By> of_by = {};
    std::size_t bytes() const {
      return scores.capacity() * sizeof(float) + detail::state_bytes(of_by);
    }
  };
  State make_state() const { return {{}, 0, detail::make_state(by)}; }
  Need needs() const { return needs_of(by); }
  Need observe_needs() const { return observe_needs_of(by); }
  bool measures_again() const { return false; }
  int columns() const { return columns_of(by); }
  Index window_size() const { return window_of(by); }
  void check(const Shape& shape) const {
    if (!(alpha >= 0) || !(alpha <= 1)) fail("GlobalCut::alpha must lie between 0 and 1");
    check_policy(by, shape);
  }
  bool observes() const { return lesskv::observes(by); }
  void observe(const Head& head, State& state) const {
    if constexpr (Observer<By>) by.observe(head, state.of_by);
  }
  void measure(const Head& head, State& state) const {
    state.scores.clear();
    if (head.first >= head.last) return;
    std::vector<float> out(head.positions.size(), 0.f);
    detail::score_part(by, head, 0, state.of_by, out);
    state.scores.assign(out.begin() + head.first, out.begin() + head.last);
  }
  void share(const Shape&, std::span<State> measured, std::span<double> quota) const {
    double total = 0;
    for (const double q : quota) total += q;
    bool fresh = false;
    std::vector<std::span<const float>> scores;
    for (const State& state : measured) {
      fresh = fresh || !state.scores.empty();
      scores.emplace_back(state.scores);
    }
    if (fresh && total > 0) {
      const std::vector<double> counts =
          detail::cut_scores(scores, total, alpha * total / double(quota.size()));
      for (std::size_t i = 0; i < counts.size(); ++i) {
        measured[i].part = counts[i] / total;
        measured[i].scores = std::vector<float>();  // gives its memory back; = {} would not
      }
    }
    // A product, which the library scales to the total: of equal quotas it makes the counts.
    for (std::size_t i = 0; i < quota.size(); ++i) quota[i] *= measured[i].part;
  }
};

// By the scores of the Scorer beside it, anew at each judgement.
template <>
struct GlobalCut<OwnScores> {
  double alpha = 0;  // part of an equal share that every head is sure of

  static constexpr std::string_view name = "globalcut";
  static constexpr std::string_view summary =
      "budget of every head, by one cut on the scores of the whole model; by=SCORER: its scores";
  template <class Self, class Visitor>
  static void parameters(Self& self, Visitor&& visit) {
    visit("alpha", self.alpha, "part of an equal share that every head is sure of");
  }

  static constexpr bool all_layers = true;
  using State = std::vector<float>;
  static constexpr Need needs = Need::scores;
  void check() const {
    if (!(alpha >= 0) || !(alpha <= 1)) fail("GlobalCut::alpha must lie between 0 and 1");
  }
  void measure(const Head& head, State& state) const {
    state.assign(head.scores.begin(), head.scores.end());
  }
  void share(const Shape&, std::span<const State> measured, std::span<double> quota) const {
    double total = 0;
    for (const double q : quota) total += q;
    const std::vector<std::span<const float>> scores(measured.begin(), measured.end());
    const std::vector<double> counts =
        detail::cut_scores(scores, total, alpha * total / double(quota.size()));
    std::copy(counts.begin(), counts.end(), quota.begin());
  }
};

LESSKV_END_NAMESPACE
