// SPDX-License-Identifier: MIT
// KeyNorm: which rows stay, by the length of their keys: short keys attract attention.
//
// Paper:    Devoto et al., "A Simple and Effective L2 Norm-Based Strategy for KV Cache
//           Compression", arXiv 2406.11430; kvpress KnormPress.
// Formula:  score = -||k||.
// Needs:    keys.
// Cost:     one pass over the keys.
// Defaults: no pins (kvpress has none); the paper skips layers 0 and 1.
// Differs:  the norm is summed in f32 from the stored keys (kvpress: in the type of the cache
//           before 0.5.5).
#pragma once

#include <string_view>
#include <vector>

#include "../core/tiles.hpp"
#include "../kernels/tile_kernels.hpp"

LESSKV_BEGIN_NAMESPACE

struct KeyNorm {
  std::vector<int> skip_layers = {};

  static constexpr std::string_view name = "keynorm";
  static constexpr std::string_view summary = "short keys stay (arXiv 2406.11430)";
  static constexpr Keep published{};
  template <class Self, class Visitor>
  static void parameters(Self& self, Visitor&& visit) {
    visit("skip_layers", self.skip_layers, "layers that stay whole");
  }

  static constexpr Need needs = Need::keys;
  bool skips(int layer) const {
    for (const int skipped : skip_layers)
      if (skipped == layer) return true;
    return false;
  }
  void score(const Head& head, std::span<float> out) const {
    for (Index r = head.first; r < head.last; ++r) out[detail::uz(r)] = -head.keys.row(r).norm();
  }
  // The same from storage.
  void score_tiles(const Head& head, const Tiles& rows, std::span<float> out) const {
    float* score = out.data() + head.first;
    score_kernels().key_norms(rows.dtype, rows.blocks.data(), rows.key_dim,
                              rows.offset + head.first, rows.offset + head.last, score);
    for (Index r = 0; r < head.last - head.first; ++r) score[r] = -score[r];
  }
};

LESSKV_END_NAMESPACE
