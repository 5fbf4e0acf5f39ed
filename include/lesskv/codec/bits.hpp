// SPDX-License-Identifier: MIT
// Bits: Lloyd-Max codes whose bits, 2 to 6, differ by layer, head and side; `mean` of them on
// average. The role BitBudgeter: it looks at all heads before the first row is encoded.
//
// Source:   ours. Allocation of bits by convex distortions: Shoham and Gersho, "Efficient Bit
//           Allocation for an Arbitrary Set of Quantizers", 1988.
// Formula:  least sum of w D(bits) at the given bits, D the distortion of a Gaussian Lloyd-Max
//           quantiser (core/bit_fill.hpp). E_k, E_v: energy of a row, keys and values, less the mean
//           of its block of 64 rows; Q: energy of a query; d: channels of a key. An error of relative
//           energy D in the keys changes logits by the variance D L, L = Q E_k / d^2, and the output
//           by D L times what values spread; in the values, by D times that. Relative to what the
//           head puts out:
//             w_v = 1, w_k = L           (relative = false: both times E_v)
//           Both also have the factor sum p^2 of the attention weights p: not in it, so heads are
//           taken to be equally sharp. Inferred, to first order; what it pays is measured on
//           examples/methods/bits.md.
// Needs:    keys, values, all queries (energies only).
// Cost:     one pass over the queries as they come, one over the rows before the first are encoded.
// Defaults: mean 4.5, the bytes of lm(bits=5,value_bits=4); 4 exact sinks in the text form, as
//           LloydMax.
// Differs:  rows of a head that gets more of the rows cost more, and bits go by their cost. Bits stay
//           until clear(): blocks are not coded anew when the text changes.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <memory>
#include <span>
#include <string_view>
#include <vector>

#include "../core/bit_fill.hpp"
#include "../core/concepts.hpp"
#include "lloyd_max.hpp"

LESSKV_BEGIN_NAMESPACE

struct Bits {
  static constexpr int least = 2, most = 6;

  double mean = 4.5;      // bits of a number, of keys and values together
  bool relative = true;   // errors of a head's output count by its own energy
  double key_weight = 1;  // the weight of keys is multiplied by it
  // In place of what is measured: two weights a head, of keys and of values, [layer * kv_heads +
  // head].
  std::vector<double> weights = {};

  static constexpr std::string_view name = "bits";
  static constexpr std::string_view summary =
      "Lloyd-Max codes, bits by layer, head and side from what errors do";
  static constexpr Keep published{.sinks = 4};
  template <class Self, class Visitor>
  static void parameters(Self& self, Visitor&& visit) {
    visit("mean", self.mean, "bits a number on average, 2 to 6");
    visit("relative", self.relative, "errors of a head count by the energy of its own values");
    visit("key_weight", self.key_weight, "more than 1: more bits to keys");
    visit("weights", self.weights, "instead of measuring: of keys and of values of every head");
  }

  struct State {
    double queries = 0, asked = 0;  // sum of their energy, and their number
    double keys = 0, values = 0;    // energy of a row
  };

  Need needs() const {
    return weights.empty() ? Need::keys | Need::values | Need::queries : Need::nothing;
  }
  Need observe_needs() const { return Need::queries; }
  bool observes() const { return weights.empty(); }
  void observe(const Head& head, State& state) const {
    state.queries += static_cast<double>(head.queries.squaredNorm());
    state.asked += static_cast<double>(head.queries.rows());
  }
  void measure(const Head& head, State& state) const {
    if (!weights.empty()) return;
    if (head.keys.rows() > 0 && !(state.asked > 0))
      fail("Bits: layer ", head.layer, " saw no query; call attend() or observe() after append()");
    state.keys = energy(head.keys);
    state.values = energy(head.values);
  }

  // The bits of both sides of every head. rows: of each head, that will be coded.
  void allot(const Shape& shape, std::span<const State> measured, std::span<const Index> rows,
             std::span<SideBits> out) const {
    const std::size_t n = measured.size();
    std::vector<double> weight(2 * n), cost(2 * n);
    std::vector<int> bits(2 * n);
    const double d = shape.head_dim;
    double budget = 0;
    for (std::size_t i = 0; i < n; ++i) {
      const State& of = measured[i];
      const double logits = of.asked > 0 ? of.queries / of.asked * of.keys / (d * d) : 0;
      weight[2 * i + 1] = relative ? 1 : of.values;
      weight[2 * i] = key_weight * logits * weight[2 * i + 1];
      if (!weights.empty()) {
        weight[2 * i] = weights[2 * i];
        weight[2 * i + 1] = weights[2 * i + 1];
      }
      cost[2 * i] = static_cast<double>(rows[i]) * d;
      cost[2 * i + 1] = static_cast<double>(rows[i] * shape.value_width());
      budget += mean * (cost[2 * i] + cost[2 * i + 1]);
    }
    std::array<double, most - least + 1> distortion{};
    for (int b = least; b <= most; ++b) distortion[detail::uz(b - least)] = distortion_of(b);
    bit_fill(weight, cost, budget, distortion, least, bits);
    for (std::size_t i = 0; i < n; ++i)
      out[i] = rows[i] > 0 ? SideBits{bits[2 * i], bits[2 * i + 1]}
                           : SideBits{first(Side::keys), first(Side::values)};
  }

  // Before anything was measured, and where nothing is: at least `mean` together, keys first.
  int first(Side side) const {
    const int keys = static_cast<int>(std::ceil(mean - 1e-9));
    return side == Side::keys
               ? keys
               : std::max(least, static_cast<int>(std::ceil(2 * mean - keys - 1e-9)));
  }
  std::shared_ptr<const SideCodec> codec(Side side, int dim) const {
    return codec(side, dim, first(side));
  }
  std::shared_ptr<const SideCodec> codec(Side side, int dim, int bits) const {
    return LloydMax{.bits = bits}.codec(side, dim);
  }

  void check(const Shape& shape) const {
    if (!(mean >= least && mean <= most))
      fail("Bits::mean must lie between ", least, " and ", most);
    if (!(key_weight > 0) || !std::isfinite(key_weight)) fail("Bits::key_weight must be positive");
    if (weights.empty()) return;
    if (static_cast<Index>(weights.size()) != 2 * Index{shape.heads()})
      fail("Bits::weights has ", weights.size(), " entries; two for each of ", shape.heads(),
           " KV heads are needed");
    for (const double weight : weights)
      if (!(weight >= 0) || !std::isfinite(weight))
        fail("Bits::weights: a weight is negative or not finite");
  }

  // Mean square error of a unit Gaussian with 2^bits Lloyd-Max levels: what the levels do not
  // explain, each being the mean of its cell.
  static double distortion_of(int bits) {
    const std::vector<double> level = detail::gaussian_levels(bits);
    const auto below = [](double x) { return 0.5 * std::erfc(-x * 0.7071067811865476); };
    double explained = 0, before = 0;
    for (std::size_t i = 0; i < level.size(); ++i) {
      const double behind = i + 1 < level.size() ? below(0.5 * (level[i] + level[i + 1])) : 1;
      explained += (behind - before) * level[i] * level[i];
      before = behind;
    }
    return 1 - explained;
  }

 private:
  // Of a row, less the mean of the 64 that share a block.
  static double energy(const Rows& rows) {
    if (rows.rows() == 0) return 0;
    double energy = 0;
    for (Index first = 0; first < rows.rows(); first += 64) {
      const Index count = std::min<Index>(64, rows.rows() - first);
      for (Index c = 0; c < rows.cols(); ++c) {
        double sum = 0, squares = 0;
        for (Index r = first; r < first + count; ++r) {
          const double x = double{rows(r, c)};
          sum += x, squares += x * x;
        }
        energy += squares - sum * sum / double(count);
      }
    }
    return energy / static_cast<double>(rows.rows());
  }
};

LESSKV_END_NAMESPACE
