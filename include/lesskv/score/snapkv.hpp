// SPDX-License-Identifier: MIT
// SnapKV: which rows stay, by the attention that the newest queries pay them.
//
// Paper:    Li et al., "SnapKV: LLM Knows What You are Looking for Before Generation", arXiv
//           2404.14469, section 4; kvpress SnapKVPress.
// Formula:  attention of the last `window` queries, averaged over the queries and over the query
//           heads of the KV head, average-pooled over `pool` neighbouring rows; the window itself
//           stays.
// Needs:    the newest queries, or their attention weights. Call compress() once after the last
//           part of a prompt.
// Cost:     window x rows logits per query head, at each judgement.
// Defaults: window 64, average pooling over 5, as in kvpress (the paper's code: 32 and max pooling
//           over 7 or average 5).
// Differs:  the window is a pin, not a score; one kept set per KV head, as in kvpress (the paper's
//           code: per query head).
#pragma once

#include <string_view>

#include "../core/concepts.hpp"

LESSKV_BEGIN_NAMESPACE

struct SnapKV {
  Index window = 64;
  int pool = 5;
  bool max_pool = false;

  static constexpr std::string_view name = "snapkv";
  static constexpr std::string_view summary =
      "attention of the newest queries, pooled (arXiv 2404.14469)";
  static constexpr Keep published{};
  template <class Self, class Visitor>
  static void parameters(Self& self, Visitor&& visit) {
    visit("window", self.window, "newest queries whose attention counts; their rows stay");
    visit("pool", self.pool, "width of the pooling over neighbouring rows, odd");
    visit("max_pool", self.max_pool, "maximum instead of average");
  }

  static constexpr Need needs = Need::attention;
  Index window_size() const { return window; }
  Window reach() const { return {window}; }
  Pooling pooling() const { return {max_pool ? PoolKind::max : PoolKind::average, pool}; }
  void check() const {
    if (window < 1) fail("SnapKV::window is ", window, "; it must be at least 1");
    if (pool < 1 || pool % 2 == 0) fail("SnapKV::pool is ", pool, "; it must be odd");
  }
  // All rows before the window get a score: the pooling looks at neighbours among the sinks too.
  void score(const Head& head, std::span<float> out) const {
    detail::mean_of_rows(head.attention, 0, head.attention.rows(),
                         out.first(detail::uz(head.last)));
  }
};

LESSKV_END_NAMESPACE
