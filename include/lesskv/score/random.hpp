// SPDX-License-Identifier: MIT
// Random: which rows stay, by lot. The baseline that every method has to beat.
//
// Formula:  a hash of (seed, layer, head, position), counter-based: no state, the same whatever the
//           thread, the split of the input or the standard library. A row keeps its number, so
//           judging again does not reshuffle.
// Needs:    nothing.
// Cost:     one hash a row.
// Defaults: seed 0; no pins.
#pragma once

#include <string_view>

#include "../core/concepts.hpp"
#include "../core/noise.hpp"

LESSKV_BEGIN_NAMESPACE

struct Random {
  std::uint64_t seed = 0;

  static constexpr std::string_view name = "random";
  static constexpr std::string_view summary = "rows by lot: the baseline";
  static constexpr Keep published{};
  template <class Self, class Visitor>
  static void parameters(Self& self, Visitor&& visit) {
    visit("seed", self.seed, "of the counter-based generator");
  }

  static constexpr Need needs = Need::nothing;
  void score(const Head& head, std::span<float> out) const {
    std::uint64_t stream = detail::noise(seed + 0x9e3779b97f4a7c15u);
    stream = detail::noise(stream ^ static_cast<std::uint64_t>(head.layer));
    stream = detail::noise(stream ^ static_cast<std::uint64_t>(head.head));
    for (Index r = head.first; r < head.last; ++r) {
      const std::uint64_t h =
          detail::noise(stream ^ static_cast<std::uint64_t>(to_int(head.positions[detail::uz(r)])));
      out[detail::uz(r)] = static_cast<float>(h >> 40);  // 24 bits: exact in f32
    }
  }
};

LESSKV_END_NAMESPACE
