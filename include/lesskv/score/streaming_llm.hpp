// SPDX-License-Identifier: MIT
// StreamingLLM: which rows stay, by age: the first few (attention sinks) and the newest.
//
// Paper:    Xiao et al., "Efficient Streaming Language Models with Attention Sinks", arXiv
//           2309.17453, section 3.2.
// Formula:  score = position; the sinks are Keep's.
// Needs:    nothing.
// Cost:     none.
// Defaults: 4 sinks, as in the paper and kvpress.
// Differs:  positions stay the original ones (kvpress does the same); the paper assigns positions
//           inside the cache.
#pragma once

#include <string_view>

#include "../core/concepts.hpp"

LESSKV_BEGIN_NAMESPACE

struct StreamingLLM {
  static constexpr std::string_view name = "streamingllm";
  static constexpr std::string_view summary =
      "attention sinks and the newest rows (arXiv 2309.17453), original positions";
  static constexpr Keep published{.sinks = 4};
  template <class Self, class Visitor>
  static void parameters(Self&, Visitor&&) {}

  static constexpr Need needs = Need::nothing;
  void score(const Head& head, std::span<float> out) const {
    // Counted from the oldest candidate: f32 is exact up to 2^24 rows of difference.
    for (Index r = head.first; r < head.last; ++r)
      out[detail::uz(r)] = static_cast<float>(r - head.first);
  }
};

LESSKV_END_NAMESPACE
