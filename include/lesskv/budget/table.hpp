// SPDX-License-Identifier: MIT
// TableBudget: where the budget goes, by a table of shares, for example from a calibration run.
//
// Formula:  the quota of a head is multiplied by its share; the library scales the quotas to the
//           exact total.
// Needs:    nothing.
// Cost:     none.
#pragma once

#include <cmath>
#include <string_view>
#include <vector>

#include "../core/concepts.hpp"

LESSKV_BEGIN_NAMESPACE

struct TableBudget {
  std::vector<double> shares =
      {};  // one per layer, or one per layer and KV head [layer * kv_heads + head]; not negative

  static constexpr std::string_view name = "table";
  static constexpr std::string_view summary =
      "budget of every layer, or of every head, from a table of shares";
  template <class Self, class Visitor>
  static void parameters(Self& self, Visitor&& visit) {
    visit("shares", self.shares, "one per layer, or one per layer and KV head");
  }

  static constexpr bool all_layers = true;
  void check(const Shape& shape) const {
    const Index n = static_cast<Index>(shares.size());
    if (n != shape.layers && n != shape.heads())
      fail("TableBudget::shares has ", n, " entries; the model has ", shape.layers, " layers and ",
           shape.heads(), " KV heads in all");
    double sum = 0;
    for (const double share : shares) {
      if (!(share >= 0) || !std::isfinite(share))
        fail("TableBudget::shares: a share is negative or not finite");
      sum += share;
    }
    if (!(sum > 0)) fail("TableBudget::shares: all of them are zero");
  }
  void share(const Shape& shape, std::span<const NoState>, std::span<double> quota) const {
    const bool per_head = static_cast<Index>(shares.size()) == shape.heads();
    for (Index i = 0; i < shape.heads(); ++i)
      quota[detail::uz(i)] *= shares[detail::uz(per_head ? i : i / shape.kv_heads)];
  }
};

LESSKV_END_NAMESPACE
