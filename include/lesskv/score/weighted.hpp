// SPDX-License-Identifier: MIT
// ValueWeighted, AgeWeighted: which rows stay, by the score of another scorer times what their
// values can add to the output, or divided by their age.
//
// Paper:    value norms: Guo et al., "Attention Score is not All You Need for Token Importance
//           Indicator in KV Cache Reduction: Value Also Matters" (VATP), arXiv 2406.12335; kvpress
//           ExpectedAttentionPress. Age: kvpress ObservedAttentionPress.
// Formula:  (score + epsilon) ||v||_norm; score / (number of queries that could see the row)^power.
// Needs:    what the scorer needs; values, for their norm.
// Cost:     the scorer, and a pass over the values.
// Defaults: norm 1 and epsilon 0, as in VATP; power 1, as in kvpress: AgeWeighted<H2O> is
//           H2O{.age_normalised = true}.
// Differs:  meant for scores that are not negative, such as attention. The paper's pins for the
//           first rows are Keep's sinks. Pooled scores are weighted after the pooling.
#pragma once

#include <cmath>
#include <string_view>
#include <utility>

#include "rank.hpp"

LESSKV_BEGIN_NAMESPACE

template <class P>
struct ValueWeighted : detail::Parts<P> {
  using State = typename detail::Parts<P>::State;
  int norm = 1;        // 1: sum of magnitudes; 2: length
  double epsilon = 0;  // added to the score: rows without attention are told apart by their values

  ValueWeighted() = default;
  explicit ValueWeighted(P of, int n = 1, double e = 0)
      : detail::Parts<P>{{std::move(of)}}, norm(n), epsilon(e) {}

  static constexpr std::string_view name = "valueweighted";
  static constexpr std::string_view summary =
      "score times the norm of the value (arXiv 2406.12335): valueweighted(h2o)";
  template <class Self, class Visitor>
  static void parameters(Self& self, Visitor&& visit) {
    visit("norm", self.norm, "1: sum of magnitudes; 2: length");
    visit("epsilon", self.epsilon, "added to the score");
  }

  Need needs() const { return detail::Parts<P>::needs() | Need::values; }
  void check(const Shape& shape) const {
    this->check_parts(shape);
    if (norm != 1 && norm != 2) fail("ValueWeighted::norm is ", norm, "; it must be 1 or 2");
    if (!(epsilon >= 0) || !std::isfinite(epsilon))
      fail("ValueWeighted::epsilon must not be negative");
  }
  void score(const Head& head, const State& state, std::span<float> out) const {
    this->template score_one<0>(head, 0, state, out);
    for (Index r = head.first; r < head.last; ++r) {
      const auto value = head.values.row(r);
      out[detail::uz(r)] = (out[detail::uz(r)] + static_cast<float>(epsilon)) *
                           (norm == 1 ? value.template lpNorm<1>() : value.norm());
    }
  }
};

template <class P>
struct AgeWeighted : detail::Parts<P> {
  using State = typename detail::Parts<P>::State;
  double power = 1;  // of the age

  AgeWeighted() = default;
  explicit AgeWeighted(P of, double p = 1) : detail::Parts<P>{{std::move(of)}}, power(p) {}

  static constexpr std::string_view name = "ageweighted";
  static constexpr std::string_view summary =
      "score divided by the number of queries that could see the row: ageweighted(h2o)";
  template <class Self, class Visitor>
  static void parameters(Self& self, Visitor&& visit) {
    visit("power", self.power, "of the age");
  }

  void check(const Shape& shape) const {
    this->check_parts(shape);
    if (!std::isfinite(power)) fail("AgeWeighted::power is not finite");
  }
  void score(const Head& head, const State& state, std::span<float> out) const {
    this->template score_one<0>(head, 0, state, out);
    for (Index r = head.first; r < head.last; ++r) {
      const auto seen_by = static_cast<float>(head.step - to_int(head.positions[detail::uz(r)]));
      out[detail::uz(r)] /= power == 1 ? seen_by : std::pow(seen_by, static_cast<float>(power));
    }
  }
};

LESSKV_END_NAMESPACE
