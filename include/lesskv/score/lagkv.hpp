// SPDX-License-Identifier: MIT
// LagKV: which rows stay, by comparing each chunk with the chunk that follows it.
//
// Paper:    Liang et al., "LagKV: Lag-Relative Information of the KV Cache Tells Which Tokens Are
//           Important", arXiv 2504.04704, Eqs. 5-10; official code lag_kv.py
//           (AI-Lab-China-Merchants-Bank/LagKV).
// Formula:  min and max of every channel over the next chunk; z = (x - min) / (max - min); a
//           token's score is the standard deviation of z over its channels (divisor: channels - 1),
//           soft-maxed over the chunk; the score of keys plus value_weight times the score of
//           values.
// Variants: what its ablation compares it with, in the same chunks. localkv: min and max of the chunk
//           itself. l2norm: minus the length of the key (its code skips layers 0 and 1 then:
//           skip_layers).
// Needs:    keys (after RoPE) and values; no queries, no attention.
// Cost:     one pass over keys and values as they are stored, linear in the length (16-bit numbers
//           are not widened to find a minimum); measured by bench/compress_bench.cpp.
// Defaults: lag 128 as in the paper's RULER runs (kvpress's default too; the official class has
//           1024), value weight 1; 16 sinks as in the official class (kvpress: 4). How much stays
//           is Keep's: the paper's S and r.
// Differs:  a channel that is constant in the next chunk says nothing and is left out (the official
//           code gives NaN for the whole chunk); scores are f32 whatever the cache stores;
//           survivors stay in position order.
#pragma once

#include <array>
#include <cmath>
#include <cstdint>
#include <limits>
#include <string_view>
#include <vector>

#include "../core/scratch.hpp"
#include "../core/tiles.hpp"
#include "../kernels/tile_kernels.hpp"

LESSKV_BEGIN_NAMESPACE

// By what the rows of a chunk are told apart.
enum class LagVariant : std::uint8_t { lagkv, localkv, l2norm };
constexpr std::array<std::string_view, 3> names_of(LagVariant) {
  return {"lagkv", "localkv", "l2norm"};
}

struct LagKV {
  Index lag = 128;                    // chunk length, and how far ahead a chunk looks
  float value_weight = 1;             // weight of the value score; 0: keys alone
  std::vector<int> skip_layers = {};  // layers that stay whole
  LagVariant variant = LagVariant::lagkv;

  static constexpr std::string_view name = "lagkv";
  static constexpr std::string_view summary =
      "chunks compared with the chunk that follows (arXiv 2504.04704)";
  static constexpr Keep published{.sinks = 16};
  template <class Self, class Visitor>
  static void parameters(Self& self, Visitor&& visit) {
    visit("lag", self.lag, "chunk length, and how far ahead a chunk looks");
    visit("value_weight", self.value_weight, "weight of the value score beside the key score");
    visit("skip_layers", self.skip_layers, "layers that stay whole");
    visit("variant", self.variant, "lagkv, or of its ablation: localkv, l2norm");
  }

  static constexpr Need needs = Need::keys | Need::values;
  Chunks reach() const { return {lag, lag}; }
  bool skips(int layer) const {
    for (const int skipped : skip_layers)
      if (skipped == layer) return true;
    return false;
  }
  void check(const Shape& shape) const {
    if (lag < 2) fail("LagKV::lag is ", lag, "; a chunk has at least 2 rows");
    if (!(value_weight >= 0) || !std::isfinite(value_weight))
      fail("LagKV::value_weight must not be negative");
    if (shape.head_dim < 2 || shape.value_width() < 2)
      fail("LagKV: a head needs at least 2 channels");
    for (const int layer : skip_layers)
      if (layer < 0 || layer >= shape.layers)
        fail("LagKV::skip_layers: ", layer, " is not a layer");
  }

  // Scores of a chunk sum to 1 + value_weight in every head, so they may be compared across heads
  // (not those of l2norm).
  void score(const Head& head, std::span<float> out) const {
    for (Index r = head.first; r < head.last; ++r)
      out[detail::uz(r)] = variant == LagVariant::l2norm ? -head.keys.row(r).norm() : 0.f;
    if (variant == LagVariant::l2norm) return;
    add(head.keys, head.first, head.last, 1, out);
    if (value_weight > 0) add(head.values, head.first, head.last, value_weight, out);
  }

  // The same for any number of chunks in a row, from storage.
  bool scores_tiles() const { return variant == LagVariant::lagkv; }
  void score_tiles(const Head& head, const Tiles& rows, std::span<float> out) const {
    const Index count = head.last - head.first;
    thread_local detail::Floats scratch;
    float* side = scratch.reserve(detail::round_up(count, 16) +
                                  lag_workspace(std::max(rows.key_dim, rows.value_dim)));
    LagTask task{.blocks = rows.blocks.data(),
                 .dtype = rows.dtype,
                 .keys = true,
                 .dim = rows.key_dim,
                 .first = rows.offset + head.first,
                 .lag = lag,
                 .chunks = count / lag,
                 .workspace = side + detail::round_up(count, 16)};
    float* score = out.data() + head.first;
    score_kernels().lag_deviations(task, score);
    kernels().softmax_rows(score, task.chunks, lag, nullptr, lag);
    if (value_weight <= 0) return;
    task.keys = false;
    task.dim = rows.value_dim;
    score_kernels().lag_deviations(task, side);
    kernels().softmax_rows(side, task.chunks, lag, nullptr, lag);
    for (Index r = 0; r < count; ++r) score[r] += value_weight * side[r];
  }

 private:
  void add(const Rows& x, Index first, Index last, float weight, std::span<float> out) const {
    const Index width = x.cols(), stride = x.outerStride(), count = last - first;
    // Per channel the lowest value of the next chunk (localkv: of this one), and the reciprocal of
    // its range; 0 for a channel without one (or one beyond f32), which then adds nothing to any sum.
    const Index from = variant == LagVariant::localkv ? first : last;
    std::vector<float> low(x.data() + from * stride, x.data() + from * stride + width);
    std::vector<float> scale = low, z(low.size()), deviation(detail::uz(count), 0.f);
    for (Index r = from; r < from + lag; ++r)
      for (std::size_t c = 0; c < low.size(); ++c) {
        const float one = x.data()[r * stride + static_cast<Index>(c)];
        low[c] = std::min(low[c], one);
        scale[c] = std::max(scale[c], one);
      }
    Index live = 0;
    for (std::size_t c = 0; c < low.size(); ++c) {
      const float range = scale[c] - low[c], inverse = 1 / range;
      const bool counts = range > 0 && std::isfinite(range) && std::isfinite(inverse);
      if (!counts) low[c] = 0;
      scale[c] = counts ? inverse : 0;
      live += counts;
    }
    for (Index r = 0; r < count && live > 1; ++r) {
      float mean = 0, squares = 0;
      for (std::size_t c = 0; c < low.size(); ++c) {
        z[c] = (x.data()[(first + r) * stride + static_cast<Index>(c)] - low[c]) * scale[c];
        mean += z[c];
      }
      mean /= static_cast<float>(live);
      for (const float one : z) squares += (one - mean) * (one - mean);
      // Channels that do not count hold 0, so each of them adds mean^2 to the sum of squares.
      squares -= static_cast<float>(width - live) * mean * mean;
      // Squares beyond f32: as far from the next chunk as can be said.
      deviation[detail::uz(r)] =
          squares < std::numeric_limits<float>::max()
              ? std::sqrt(std::max(0.f, squares / static_cast<float>(live - 1)))
              : std::numeric_limits<float>::max();
    }
    float most = 0, sum = 0;
    for (const float one : deviation) most = std::max(most, one);
    for (float& one : deviation) sum += one = std::exp(one - most);
    for (Index r = 0; r < count; ++r)
      out[detail::uz(first + r)] += weight / sum * deviation[detail::uz(r)];
  }
};

LESSKV_END_NAMESPACE
