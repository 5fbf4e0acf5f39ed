// SPDX-License-Identifier: MIT
// PyramidKV: where the budget goes, by depth: much to the first layers, little to the last.
//
// Paper:    Cai et al., "PyramidKV: Dynamic KV Cache Compression based on Pyramidal Information
//           Funneling", arXiv 2406.02069, section 3.2; kvpress PyramidKVPress; the authors'
//           KVCache-Factory.
// Formula:  budgets fall linearly from max = 2C - C / beta at the first layer to min = C / beta at
//           the last, C being the mean; when max exceeds the n candidates, max = n and
//           min = 2C - n.
// Needs:    nothing.
// Cost:     none.
// Defaults: beta 20, as in the paper and kvpress. The papers' selection inside a layer is SnapKV.
// Differs:  the total is exact (the authors' code rounds the step down and exceeds its budget);
//           the formula is over the candidates, the window of SnapKV comes on top, as in the
//           authors' code (kvpress: over all rows, and equal budgets when min is below the window).
#pragma once

#include <algorithm>
#include <cmath>
#include <string_view>
#include <vector>

#include "../core/concepts.hpp"

LESSKV_BEGIN_NAMESPACE

struct PyramidKV {
  double beta = 20;  // slope: the last layer gets a beta-th of the mean

  static constexpr std::string_view name = "pyramid";
  static constexpr std::string_view summary =
      "budget of every layer, falling with depth (arXiv 2406.02069)";
  template <class Self, class Visitor>
  static void parameters(Self& self, Visitor&& visit) {
    visit("beta", self.beta, "slope: the last layer gets a beta-th of the mean");
  }

  // Budgets of all layers with that mean, none above `most`. All equal if the mean is above it.
  std::vector<double> budgets(int layers, double mean, double most) const {
    double low = mean / beta, high = 2 * mean - low;
    if (high >= most) {
      high = most;
      low = 2 * mean - high;
    }
    if (low > high) low = high = mean;
    std::vector<double> out(detail::uz(layers), mean);
    const double step = layers > 1 ? (high - low) / (layers - 1) : 0;
    if (layers > 1)
      for (int l = 0; l < layers; ++l) out[detail::uz(l)] = high - l * step;
    return out;
  }

  struct State {
    Index candidates = 0;
  };
  static constexpr bool all_layers = true;
  static constexpr Need needs = Need::nothing;
  void check() const {
    if (!(beta >= 1) || !std::isfinite(beta)) fail("PyramidKV::beta must be at least 1");
  }
  void measure(const Head& head, State& state) const { state.candidates = head.last - head.first; }
  void share(const Shape& shape, std::span<const State> measured, std::span<double> quota) const {
    Index most = 0, heads = 0;
    double total = 0;
    for (std::size_t i = 0; i < quota.size(); ++i) {
      most = std::max(most, measured[i].candidates);
      heads += measured[i].candidates > 0;
      total += quota[i];
    }
    if (heads == 0 || !(total > 0)) return;
    const double mean = total / double(heads);
    const std::vector<double> layer = budgets(shape.layers, mean, double(most));
    for (std::size_t i = 0; i < quota.size(); ++i)
      quota[i] *= layer[i / static_cast<std::size_t>(shape.kv_heads)] / mean;
  }
};

LESSKV_END_NAMESPACE
