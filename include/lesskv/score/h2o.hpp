// SPDX-License-Identifier: MIT
// H2O: which rows stay, by the attention they were paid by all queries so far (heavy hitters).
//
// Paper:    Zhang et al., "H2O: Heavy-Hitter Oracle for Efficient Generative Inference of Large
//           Language Models", arXiv 2306.14048, section 4; kvpress ObservedAttentionPress.
// Formula:  the column sum of the causal attention matrix, mean over the query heads of the KV
//           head. With age_normalised (kvpress) the sum is divided by the number of queries that
//           could see the row.
// Needs:    every query, or all attention weights; one number per row, moved along with it.
// Cost:     inside attend() a pass over the weights that it computes anyway, else the attention matrix
//           once more, block by block.
// Defaults: the plain sum, as published. The paper keeps as many recent rows as heavy hitters:
//           Keep{.recent = ...}.
// Differs:  after rows left, weights are over the rows held (they sum to 1 over them), as in the
//           released code.
#pragma once

#include <string_view>

#include "../core/concepts.hpp"

LESSKV_BEGIN_NAMESPACE

struct H2O {
  bool age_normalised = false;

  static constexpr std::string_view name = "h2o";
  static constexpr std::string_view summary = "attention received so far (arXiv 2306.14048)";
  static constexpr Keep published{};
  template <class Self, class Visitor>
  static void parameters(Self& self, Visitor&& visit) {
    visit("age_normalised", self.age_normalised,
          "divide by the number of queries that could see the row (kvpress)");
  }

  static constexpr Need needs = Need::attention;
  static constexpr int columns = 1;
  void observe(const Head& head, NoState&) const {
    const std::span<float> sum = head.column(0);
    const float share = 1.f / static_cast<float>(head.group);
    Eigen::Map<Eigen::RowVectorXf> to(sum.data(), head.size());
    // By rows, as they lie in memory.
    const Rows& weights = head.attention;
    Index i = 0;
    for (; i + 4 <= weights.rows(); i += 4)
      to += share *
            ((weights.row(i) + weights.row(i + 1)) + (weights.row(i + 2) + weights.row(i + 3)));
    for (; i < weights.rows(); ++i) to += share * weights.row(i);
  }
  void score(const Head& head, std::span<float> out) const {
    const std::span<const float> sum = head.column(0);
    for (Index r = head.first; r < head.last; ++r) {
      const auto seen_by = static_cast<float>(head.step - to_int(head.positions[detail::uz(r)]));
      out[detail::uz(r)] = age_normalised ? sum[detail::uz(r)] / seen_by : sum[detail::uz(r)];
    }
  }
};

LESSKV_END_NAMESPACE
