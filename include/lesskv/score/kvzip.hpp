// SPDX-License-Identifier: MIT
// KVzip: which rows stay, by the largest attention that any probe pays them; probes are the queries
// of a model that reads its context once more.
//
// Paper:    Kim et al., "KVzip: Query-Agnostic KV Cache Compression with Context Reconstruction",
//           arXiv 2505.23416; kvpress KVzipPress.
// Formula:  the largest softmax weight over all probes and the query heads of the KV head.
// Needs:    probes: begin_probes(), a forward pass over "Repeat the previous context exactly." and
//           the context itself, end_probes(), before compress(); one number per row.
//           examples/engine/replay.hpp does it.
// Cost:     the replay, as much as the prompt itself and more: each of its queries attends to twice
//           the rows. Beside that inside attend() a pass over weights that it computes anyway.
// Defaults: none. 4 sinks, as in kvpress. One cut over all heads of the model, as published:
//           KVzip + GlobalCut.
// Differs:  the softmax is over all rows held and the probe's own; the published code takes the
//           sinks, the chunk of 2048 rows that is being repeated and the probe's own, so that a row
//           has the score of its own chunk's probes alone. Rows that came after the last probe are not
//           known: they stay (score 1, the largest there is).
#pragma once

#include <limits>
#include <string_view>

#include "../core/concepts.hpp"

LESSKV_BEGIN_NAMESPACE

struct KVzip {
  static constexpr std::string_view name = "kvzip";
  static constexpr std::string_view summary =
      "largest attention that probes pay, of a replay of the context (arXiv 2505.23416)";
  static constexpr Keep published{.sinks = 4};
  template <class Self, class Visitor>
  static void parameters(Self&, Visitor&&) {}

  static constexpr Need needs = Need::probes;
  static constexpr int columns = 1;
  void observe(const Head& head, NoState&) const {
    Eigen::Map<Eigen::ArrayXf> most(head.column(0).data(), head.size());
    // A column of 0 says that no probe has seen the row.
    most = most.max(std::numeric_limits<float>::min());
    for (Index i = 0; i < head.attention.rows(); ++i)
      most = most.max(head.attention.row(i).array().transpose());
  }
  void score(const Head& head, std::span<float> out) const {
    const std::span<const float> most = head.column(0);
    for (Index r = head.first; r < head.last; ++r)
      out[detail::uz(r)] = most[detail::uz(r)] > 0 ? most[detail::uz(r)] : 1.f;
  }
};

LESSKV_END_NAMESPACE
