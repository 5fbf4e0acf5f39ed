// SPDX-License-Identifier: MIT
// TOVA: which rows stay, by the attention of the newest query, averaged over all heads of the
// layer.
//
// Paper:    Oren et al., "Transformers are Multi-State RNNs", arXiv 2401.06104, section 3.2;
//           kvpress TOVAPress.
// Formula:  softmax attention of the last query, mean over the query heads of the layer; all KV
//           heads of a layer keep the same rows; the last row stays.
// Needs:    the newest query, or its attention weights.
// Cost:     one row of logits per query head, at each judgement.
// Defaults: none to set. Faithful decoding judges after every token: Keep{.every = 1}.
#pragma once

#include <string_view>

#include "../core/concepts.hpp"

LESSKV_BEGIN_NAMESPACE

struct TOVA {
  static constexpr std::string_view name = "tova";
  static constexpr std::string_view summary =
      "attention of the newest query, one set per layer (arXiv 2401.06104)";
  static constexpr Keep published{};
  template <class Self, class Visitor>
  static void parameters(Self&, Visitor&&) {}

  static constexpr Need needs = Need::attention;
  Index window_size() const { return 1; }
  Window reach() const { return {1}; }
  Shared shared() const { return Shared::layer; }
  void score(const Head& head, std::span<float> out) const {
    detail::mean_of_rows(head.attention, 0, head.attention.rows(),
                         out.first(detail::uz(head.last)));
  }
};

LESSKV_END_NAMESPACE
