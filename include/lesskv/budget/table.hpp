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
#include "calibration.hpp"

LESSKV_BEGIN_NAMESPACE

struct TableBudget {
  std::vector<double> shares =
      {};  // one per layer, or one per layer and KV head [layer * kv_heads + head]; not negative
  CalibrationFile file = {};  // instead: a calibration file with a table "shares", per KV head

  static constexpr std::string_view name = "table";
  static constexpr std::string_view summary =
      "budget of every layer, or of every head, from a table of shares";
  template <class Self, class Visitor>
  static void parameters(Self& self, Visitor&& visit) {
    visit("shares", self.shares, "one per layer, or one per layer and KV head");
    visit("file", self.file, "or a calibration file with a table 'shares'");
  }

  static constexpr bool all_layers = true;
  void check(const Shape& shape) const {
    if (!file.empty()) {
      if (!shares.empty()) fail("TableBudget::shares and TableBudget::file are both given");
      file.demand("TableBudget::file", "shares", shape.layers, shape.kv_heads, shape.kv_heads);
    }
    const std::vector<double>& own = values();
    const Index n = static_cast<Index>(own.size());
    if (n != shape.layers && n != shape.heads())
      fail("TableBudget::shares has ", n, " entries; the model has ", shape.layers, " layers and ",
           shape.heads(), " KV heads in all");
    double sum = 0;
    for (const double share : own) {
      if (!(share >= 0) || !std::isfinite(share))
        fail("TableBudget::shares: a share is negative or not finite");
      sum += share;
    }
    if (!(sum > 0)) fail("TableBudget::shares: all of them are zero");
  }
  void share(const Shape& shape, std::span<const NoState>, std::span<double> quota) const {
    const std::vector<double>& own = values();
    const bool per_head = static_cast<Index>(own.size()) == shape.heads();
    for (Index i = 0; i < shape.heads(); ++i)
      quota[detail::uz(i)] *= own[detail::uz(per_head ? i : i / shape.kv_heads)];
  }

 private:
  const std::vector<double>& values() const {
    const Calibration::Table* own = file.data.find("shares");
    return own ? own->values : shares;
  }
};

LESSKV_END_NAMESPACE
