// SPDX-License-Identifier: MIT
// RowSource: where a planner reads the rows of a head from. The cache reads its own blocks; an
// engine that owns the memory lends views.
#pragma once

#include <functional>
#include <vector>

#include "../core/tiles.hpp"
#include "../core/view.hpp"

LESSKV_BEGIN_NAMESPACE

// Per call one head, never one row: the virtual call is outside all loops.
class RowSource {
 public:
  virtual ~RowSource() = default;
  // Rows [first, first + count) as f32, contiguous; keys or values may be null.
  virtual void read(int layer, int head, Index first, Index count, float* keys,
                    float* values) const = 0;
  // out[i][r] = scale * queries[i] . keys[r] for the first `rows` rows. queries:
  // [query_rows][head_dim] f32.
  virtual void logits(int layer, int head, const float* queries, Index query_rows, Index rows,
                      float scale, float* out, Index out_stride) const = 0;
  // The first row behind the last coded one: from there on rows may be written over.
  virtual Index exact_from(int layer, int head) const {
    static_cast<void>(layer), static_cast<void>(head);
    return 0;
  }
  // Lends rows [first, first + count) as they are stored: `blocks` receives those they lie in, and
  // keeps them. False: it cannot, read() them.
  virtual bool lend(int layer, int head, Index first, Index count, std::vector<BlockRef>& blocks,
                    Tiles& out) const {
    static_cast<void>(layer), static_cast<void>(head), static_cast<void>(first);
    static_cast<void>(count), static_cast<void>(blocks), static_cast<void>(out);
    return false;
  }
};

// Keys and values of one KV head in the engine's memory, rows in position order. head_stride is not
// used: data already points to the head.
struct HeadView {
  View keys;
  View values;
};

// source(layer, head): the engine's adaptor.
using Source = std::function<HeadView(int layer, int head)>;

LESSKV_END_NAMESPACE
