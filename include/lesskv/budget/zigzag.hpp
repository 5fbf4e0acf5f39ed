// SPDX-License-Identifier: MIT
// ZigZagKV: where the budget goes, by how many tokens each layer needs to keep its attention.
//
// Paper:    Zhong et al., "ZigZagKV: Dynamic KV Cache Compression for Long-context Modeling based
//           on Layer Uncertainty", arXiv 2412.09036 (COLING 2025). No code was published, and the
//           text of the paper could not be read when this was written: what is inferred from its
//           abstract, from reviews and from others' implementations is marked (*).
// Formula:  MBA = the fewest keys whose attention sums to the share p, per query head, of the mean
//           attention of the last `window` queries (*); LMBA = its mean over the query heads of a
//           layer; U = LMBA / sum of LMBA over the layers; budget of a layer B (beta + (1 - beta)
//           layers U), "Eq. 6" (*): every layer is sure of the part beta of an equal share, the
//           rest goes by uncertainty. B counts candidates: sinks, and the window of SnapKV, come on
//           top in every layer. Which rows stay in a layer is a Scorer's: the paper's selection is
//           SnapKV{.window = 32} (*).
// Needs:    the newest queries, or their attention weights, at the first compression; or a profile.
// Cost:     window x rows logits per query head, once; counting is linear, see rows_for_mass.hpp.
// Defaults: p .9, window 32, beta .2, gamma 1 (*): the values of the implementations that cite the
//           paper; for budgets of 128 rows and less a beta of .5 is safer.
// Differs:  the total is exact; when a layer would get more rows than it has, the surplus goes to
//           the others in proportion to their budgets. The factors are measured once and stay
//           (remeasure() asks for new ones): the paper compresses prompts only.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <string_view>
#include <vector>

#include "../core/concepts.hpp"
#include "rows_for_mass.hpp"

LESSKV_BEGIN_NAMESPACE

// Whose attention is counted. mean: the mean over the window, once. per_query: each query of the
// window, then the mean of the counts. last: the newest query. beyond: as mean, but the rows of the
// window stay anyway and only those needed besides are counted (at least 1).
enum class MassCount : std::uint8_t { mean, per_query, last, beyond };
constexpr std::array<std::string_view, 4> names_of(MassCount) {
  return {"mean", "per_query", "last", "beyond"};
}

struct ZigZagKV {
  double p = 0.9;     // share of the attention to be kept
  Index window = 32;  // newest queries whose attention counts
  double beta = 0.2;  // part of an equal share that every layer is sure of
  double gamma = 1;   // exponent of LMBA; below 1 tempers a layer that is far from the others
  MassCount count = MassCount::mean;
  std::vector<double> profile = {};  // LMBA of every layer, measured before: nothing is measured

  static constexpr std::string_view name = "zigzag";
  static constexpr std::string_view summary =
      "budget of every layer, by the tokens its attention needs (arXiv 2412.09036)";
  template <class Self, class Visitor>
  static void parameters(Self& self, Visitor&& visit) {
    visit("p", self.p, "share of the attention to be kept");
    visit("window", self.window, "newest queries whose attention counts");
    visit("beta", self.beta, "part of an equal share that every layer is sure of");
    visit("gamma", self.gamma, "exponent of the uncertainty");
    visit("count", self.count, "mean of the window, per_query, last query, or beyond the window");
    visit("profile", self.profile, "LMBA of every layer, instead of measuring");
  }

  // Sum of the MBA of the query heads of a KV head, and of how many. 0: nothing to measure.
  struct State {
    double sum = 0;
    int heads = 0;
  };

  static constexpr bool all_layers = true;
  Need needs() const { return profile.empty() ? Need::attention : Need::nothing; }
  bool measures() const { return profile.empty(); }
  Index window_size() const { return profile.empty() ? window : 0; }
  void check(const Shape& shape) const {
    if (!(p > 0) || !(p <= 1)) fail("ZigZagKV::p must lie in (0, 1]");
    if (window < 1) fail("ZigZagKV::window is ", window, "; it must be at least 1");
    if (!(beta >= 0) || !(beta <= 1)) fail("ZigZagKV::beta must lie between 0 and 1");
    if (!(gamma >= 0) || !std::isfinite(gamma)) fail("ZigZagKV::gamma must not be negative");
    if (profile.empty()) return;
    if (static_cast<Index>(profile.size()) != shape.layers)
      fail("ZigZagKV::profile has ", profile.size(), " entries; the model has ", shape.layers,
           " layers");
    for (const double lmba : profile)
      if (!(lmba > 0) || !std::isfinite(lmba))
        fail("ZigZagKV::profile: an entry is not a positive number");
  }

  // MBA of one query head. rows: its attention over all keys, one row per query; the rows of the
  // window are the last ones.
  double mba(const Rows& rows) const {
    thread_local std::vector<float> weights;
    const auto counted = [&](Index from, Index queries, Index keys, double extra) {
      weights.resize(detail::uz(keys));
      detail::mean_of_rows(rows, from, from + queries, weights);
      return double(rows_for_mass(weights, p, extra));
    };
    const Index w = rows.rows(), n = rows.cols();
    if (count == MassCount::last) return counted(w - 1, 1, n, 0);
    if (count == MassCount::mean) return counted(0, w, n, 0);
    if (count == MassCount::per_query) {
      double sum = 0;
      for (Index t = 0; t < w; ++t) sum += counted(t, 1, n, 0);
      return sum / double(w);
    }
    const Index before = std::max<Index>(0, n - w);
    const double inside = double(rows.rightCols(n - before).sum()) / double(w);
    return std::max(1.0, counted(0, w, before, inside));
  }

  void measure(const Head& head, State& state) const {
    state = {};
    if (head.first >= head.last || head.attention.rows() < head.group) return;
    const Index group = head.group, w = head.attention.rows() / group;
    for (Index g = 0; g < group; ++g) {
      // Rows of one query head: every group-th.
      const Rows rows = make_rows(head.attention.data() + g * head.attention.outerStride(), w,
                                  head.attention.cols(), group * head.attention.outerStride());
      if (const double one = mba(rows); one > 0) {
        state.sum += one;
        ++state.heads;
      }
    }
  }

  // LMBA of every layer; 0 for a layer without attention.
  std::vector<double> lmba(const Shape& shape, std::span<const State> measured) const {
    if (!profile.empty()) return profile;
    std::vector<double> out(detail::uz(shape.layers), 0.0);
    for (int l = 0; l < shape.layers; ++l) {
      State layer;
      for (int h = 0; h < shape.kv_heads; ++h) {
        const State& one = measured[detail::uz(l * shape.kv_heads + h)];
        layer.sum += one.sum;
        layer.heads += one.heads;
      }
      if (layer.heads > 0) out[detail::uz(l)] = layer.sum / layer.heads;
    }
    return out;
  }

  void share(const Shape& shape, std::span<const State> measured, std::span<double> quota) const {
    std::vector<double> weight = lmba(shape, measured);
    double sum = 0;
    int known = 0;
    for (double& x : weight)
      if (x > 0) {
        x = std::pow(x, gamma);
        sum += x;
        ++known;
      }
    if (known == 0) return;
    const double mean = sum / known;
    for (Index i = 0; i < shape.heads(); ++i) {
      const double own = weight[detail::uz(i / shape.kv_heads)];
      // A layer without attention gets an equal share.
      quota[detail::uz(i)] *= own > 0 ? beta + (1 - beta) * own / mean : 1;
    }
  }

  // The cascade: while layers to come are unknown, their LMBA may sum to anything between nothing
  // and all rows each. For pieces of that range of the sum, what a layer gets is bounded by its
  // largest factor in the piece, at a level that is reached with the smallest factors of all others.
  // Rows beyond it cannot stay; with the last layer the bound becomes the budget.
  static constexpr bool cascades = true;
  void most(const Shape& shape, int seen, std::span<const State> measured,
            std::span<const Index> cap, Index rows, double total, std::span<double> out) const {
    struct Layer {
      double need;  // LMBA^gamma; 0: an equal share
      double cap;
    };
    std::vector<Layer> known;
    const std::vector<double> own = lmba(shape, measured);
    const int told = profile.empty() ? seen : shape.layers;
    double sum = 0, spare = INFINITY;  // spare: the smallest cap of a layer to come
    int counted = 0, coming = 0;
    for (int l = 0; l < shape.layers; ++l) {
      const double room = double(cap[detail::uz(l * shape.kv_heads)]);
      if (l >= told) {
        if (room > 0) {
          ++coming;
          spare = std::min(spare, room);
        }
        continue;
      }
      const double lmba_of_layer = own[detail::uz(l)];
      known.push_back({lmba_of_layer > 0 ? std::pow(lmba_of_layer, gamma) : 0, room});
      sum += known.back().need;
      counted += lmba_of_layer > 0;
    }
    const double share = total / shape.kv_heads, largest = std::pow(double(rows), gamma);
    const double layers = counted + coming;
    const auto factor = [&](double need, double of_sum) {
      return need > 0 ? beta + (1 - beta) * need * layers / of_sum : 1;
    };
    std::fill(out.begin(), out.end(), 0.0);
    const int pieces = coming > 0 ? 128 : 1;
    const double low = std::max(sum, 1.0), high = std::max(low, sum + coming * largest);
    for (int piece = 0; piece < pieces; ++piece) {
      const double a = coming > 0 ? low * std::pow(high / low, double(piece) / pieces) : low;
      const double b = coming > 0 ? low * std::pow(high / low, double(piece + 1) / pieces) : low;
      // Layers to come take least when few of them need all they can.
      const double mass = std::max(0.0, a - sum);
      const double full = std::min(double(coming), std::floor(mass / largest));
      const auto taken = [&](double level) {
        double at_least = 0;
        for (const Layer& layer : known)
          at_least += std::min(layer.cap, level * factor(layer.need, b));
        if (coming == 0) return at_least;
        at_least += full * std::min(spare, level * factor(largest, b));
        if (full < coming) {
          const double rest = beta + (1 - beta) * (mass - full * largest) * layers / b;
          at_least += std::min(spare, level * rest);
          at_least += (coming - full - 1) * std::min(spare, level * beta);
        }
        return at_least;
      };
      double below = 0, above = 1;
      while (taken(above) < share && above < 1e18) above *= 2;
      for (int step = 0; step < 60; ++step)
        (taken((below + above) / 2) < share ? below : above) = (below + above) / 2;
      for (Index i = 0; i < Index{seen} * shape.kv_heads; ++i) {
        const Layer& layer = known[detail::uz(i / shape.kv_heads)];
        out[detail::uz(i)] =
            std::max(out[detail::uz(i)], std::min(layer.cap, above * factor(layer.need, a)));
      }
    }
  }
};

// A profile: LMBA of every layer, averaged over samples (texts of the kind that will come, through
// the same model), as the paper averages it. A sample is what lmba() gives, for example
// policy.lmba(shape, cache.states<ZigZagKV>()) after a compression.
inline std::vector<double> mean_lmba(std::span<const std::vector<double>> samples) {
  std::vector<double> sum;
  std::vector<Index> count;
  for (const std::vector<double>& sample : samples) {
    if (!sum.empty() && sample.size() != sum.size())
      fail("samples: one has ", sample.size(), " layers, another ", sum.size());
    sum.resize(sample.size());
    count.resize(sample.size());
    for (std::size_t l = 0; l < sample.size(); ++l)
      if (sample[l] > 0) {
        sum[l] += sample[l];
        ++count[l];
      }
  }
  for (std::size_t l = 0; l < sum.size(); ++l) {
    if (count[l] == 0) fail("samples: layer ", l, " was never measured");
    sum[l] /= double(count[l]);
  }
  return sum;
}

LESSKV_END_NAMESPACE
