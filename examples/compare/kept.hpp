// SPDX-License-Identifier: MIT
// What a compressed cache still holds, as counts that a picture can be drawn from.
#pragma once

#include <algorithm>
#include <lesskv/any.hpp>
#include <vector>

namespace compare {

struct Kept {
  static constexpr lesskv::Index bins = 64;  // equal parts of the context

  std::vector<lesskv::Index> heads;      // rows held, [layer][kv head]
  std::vector<lesskv::Index> positions;  // rows held of each part, [layer][bin], all heads together
};

inline Kept kept_rows(const lesskv::AnyCache& cache, lesskv::Index context) {
  const lesskv::Shape& shape = cache.shape();
  Kept out;
  out.positions.assign(static_cast<std::size_t>(shape.layers * Kept::bins), 0);
  for (int layer = 0; layer < shape.layers; ++layer)
    for (int head = 0; head < shape.kv_heads; ++head) {
      const std::vector<lesskv::Position> held = cache.positions(layer, head);
      out.heads.push_back(static_cast<lesskv::Index>(held.size()));
      for (const lesskv::Position position : held) {
        const lesskv::Index bin = lesskv::to_int(position) * Kept::bins / context;
        ++out.positions[static_cast<std::size_t>(layer * Kept::bins +
                                                 std::min(bin, Kept::bins - 1))];
      }
    }
  return out;
}

}  // namespace compare
