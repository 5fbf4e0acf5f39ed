// SPDX-License-Identifier: MIT
// Tiles: the rows of a head as they are stored, for a scorer whose time is that of reading them.
// Policies see f32; such a scorer may say, beside score(), how it reads storage itself:
//
//   void score_tiles(const Head& head, const Tiles& rows, std::span<float> out) const
//
// It is called instead of score() where rows can be lent, with head.keys and head.values empty, and
// gives the same scores within rounding. With Chunks reach, [head.first, head.last) may then be
// several chunks in a row, each of which is judged with the rows that follow it.
#pragma once

#include <span>

#include "../kernels/kernels.hpp"
#include "concepts.hpp"

LESSKV_BEGIN_NAMESPACE

struct Tiles {
  std::span<const BlockRef> blocks = {};
  Index offset = 0;  // row r of the Head is row offset + r of the blocks
  DType dtype = DType::f16;
  int key_dim = 0;
  int value_dim = 0;
};

template <class P>
concept TileScorer = requires(const P p, const Head& head, const Tiles& rows,
                              std::span<float> out) {
  { p.score_tiles(head, rows, out) } -> std::same_as<void>;
};

// Whether a TileScorer really has score_tiles(): `bool scores_tiles() const` for a type that only
// knows at run time.
template <class P>
bool scores_tiles(const P& policy) {
  if constexpr (!TileScorer<P>)
    return false;
  else if constexpr (requires {
                       { policy.scores_tiles() } -> std::same_as<bool>;
                     })
    return policy.scores_tiles();
  else
    return true;
}

LESSKV_END_NAMESPACE
