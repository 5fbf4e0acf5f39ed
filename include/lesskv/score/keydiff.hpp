// SPDX-License-Identifier: MIT
// KeyDiff: which rows stay, by how much their keys differ from the mean key of the head.
//
// Paper:    Park et al., "KeyDiff: Key Similarity-Based KV Cache Eviction for Long-Context LLM
//           Inference in Resource-Constrained Environments", arXiv 2504.15364, section 3; kvpress
//           KeyDiffPress.
// Formula:  score = -cos(k, mean of the L2-normalised keys), over all rows held, pins included.
// Needs:    keys.
// Cost:     two passes over the keys.
// Defaults: no pins (kvpress has none).
// Differs:  a key of zero length has cosine 0 (kvpress: the same, by its epsilon).
#pragma once

#include <algorithm>
#include <cmath>
#include <string_view>
#include <vector>

#include "../core/scratch.hpp"
#include "../core/tiles.hpp"
#include "../kernels/tile_kernels.hpp"

LESSKV_BEGIN_NAMESPACE

struct KeyDiff {
  static constexpr std::string_view name = "keydiff";
  static constexpr std::string_view summary = "keys unlike the mean key stay (arXiv 2504.15364)";
  static constexpr Keep published{};
  template <class Self, class Visitor>
  static void parameters(Self&, Visitor&&) {}

  static constexpr Need needs = Need::keys;
  void score(const Head& head, std::span<float> out) const {
    Eigen::RowVectorXd anchor = Eigen::RowVectorXd::Zero(head.keys.cols());
    for (Index r = 0; r < head.size(); ++r) {
      const float norm = head.keys.row(r).norm();
      if (norm > 0) anchor += (head.keys.row(r) / norm).cast<double>();
    }
    const Eigen::RowVectorXf mean =
        (anchor / double(std::max<Index>(1, head.size()))).cast<float>();
    const float length = mean.norm();
    for (Index r = head.first; r < head.last; ++r) {
      const float product = head.keys.row(r).norm() * length;
      out[detail::uz(r)] = product > 0 ? -head.keys.row(r).dot(mean) / product : 0.f;
    }
  }
  // The same from storage, in two passes over the keys.
  void score_tiles(const Head& head, const Tiles& rows, std::span<float> out) const {
    using detail::uz;
    const Index dim = rows.key_dim, first = rows.offset, size = head.size();
    const BlockRef* blocks = rows.blocks.data();
    thread_local detail::Floats workspace, lengths;
    workspace.reserve(16 * dim);
    lengths.reserve(std::max<Index>(1, size));
    std::vector<double> sum(uz(dim), 0.0);
    score_kernels().key_directions(rows.dtype, blocks, rows.key_dim, first, first + size,
                                   lengths.data(), sum.data(), workspace.data());
    double squares = 0;
    for (double& x : sum) {
      x /= double(std::max<Index>(1, size));
      squares += x * x;
    }
    float* direction = workspace.data();
    std::copy(sum.begin(), sum.end(), direction);
    const auto length = static_cast<float>(std::sqrt(squares));
    score_kernels().key_products(rows.dtype, blocks, rows.key_dim, first + head.first,
                                 first + head.last, direction, out.data() + head.first);
    for (Index r = head.first; r < head.last; ++r) {
      float& score = out[uz(r)];
      const float product = lengths.data()[r] * length;
      score = product > 0 ? -score / product : 0.f;
    }
  }
};

LESSKV_END_NAMESPACE
