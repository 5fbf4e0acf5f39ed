// SPDX-License-Identifier: MIT
// What the model looks like, and how much of its cache may stay.
#pragma once

#include <cmath>
#include <optional>
#include <string>

#include "error.hpp"
#include "rope.hpp"
#include "types.hpp"

LESSKV_BEGIN_NAMESPACE

// The attention shape of a model. Query head h reads KV head h / group().
struct Shape {
  int layers = 1;
  int query_heads = 1;
  int kv_heads = 1;
  int head_dim = 64;         // channels of a key and a query
  int value_dim = 0;         // channels of a value; 0: as head_dim
  DType dtype = DType::f16;  // how rows are stored; converted once, at append
  // How keys and queries were rotated before they came; for policies that look at them as they were
  // (Need::rope).
  std::optional<Rope> rope = {};

  int heads() const { return layers * kv_heads; }
  int group() const { return query_heads / kv_heads; }
  int value_width() const { return value_dim > 0 ? value_dim : head_dim; }
};

// Who must keep the same rows: nobody, all heads of a layer, all heads of the model (one slot table
// for everything). The mean score of those that share decides.
enum class Shared { head, layer, model };

// How much stays. One of fraction, tokens, bytes and compression.
struct Keep {
  // Share of all candidates ever seen; pins (sinks, recent rows, what a scorer cannot judge yet)
  // come on top. A scorer that judges chunk by chunk keeps floor(fraction * chunk) rows of each
  // chunk.
  double fraction = 0;
  Index tokens =
      0;  // rows per head, averaged over all heads, pins included; never exceeded after compress()
  // What bytes() may say after compress(), everything included; before it too while decoding goes on
  // token by token: exact rows that will wait for their block and what coded blocks waste when rows
  // leave them are priced before they are there. Exact blocks then grow by 16 rows, not by 64.
  std::size_t bytes = 0;
  // Bytes of all keys and values seen, at 2 bytes a number, over bytes() right after a prompt was
  // compressed: 8 keeps as many rows as an eighth of the bytes allows, everything included, whatever the
  // length; what is left over is less than 16 rows a head. Like a fraction it never refuses: pins stay, and while decoding goes on what waits for the
  // next judgement (rows for their block, queries for their window) comes on top. A scorer that judges chunk by chunk keeps the share of each chunk that
  // would do if heads got equal shares.
  double compression = 0;
  Index sinks = 0;   // the first rows of the sequence: never judged, never dropped
  Index recent = 0;  // the newest rows: likewise
  Shared shared = Shared::head;
  // With a codec: the recent rows, and those that a scorer cannot judge yet, are stored by it as
  // soon as they fill a block. By default they stay exact; the sinks always do.
  bool coded_recent = false;
  // New rows before rows are judged again (1: after every token, as most papers do). tokens and
  // bytes are held by cutting that much lower, so that steady decoding judges once in `every`
  // steps.
  Index every = 64;
};

namespace detail {
inline void check(const Shape& shape) {
  const auto positive = [](int value, const char* name) {
    if (value < 1) fail("Shape::", name, " is ", value, "; it must be at least 1");
  };
  positive(shape.layers, "layers");
  positive(shape.query_heads, "query_heads");
  positive(shape.kv_heads, "kv_heads");
  positive(shape.head_dim, "head_dim");
  if (shape.value_dim < 0) fail("Shape::value_dim is negative");
  if (shape.query_heads % shape.kv_heads != 0)
    fail("Shape::query_heads (", shape.query_heads, ") is not a multiple of Shape::kv_heads (",
         shape.kv_heads, ")");
  if (shape.group() > 128) fail("Shape: more than 128 query heads per KV head");
  if (shape.dtype != DType::f32 && shape.dtype != DType::f16 && shape.dtype != DType::bf16)
    fail("Shape::dtype is none of f32, f16, bf16");
}

inline void check(const Keep& keep, bool judge_once) {
  if (!std::isfinite(keep.fraction) || keep.fraction < 0 || keep.fraction > 1)
    fail("Keep::fraction must lie between 0 and 1");
  if (keep.tokens < 0) fail("Keep::tokens is negative");
  if (keep.sinks < 0) fail("Keep::sinks is negative");
  if (keep.recent < 0) fail("Keep::recent is negative");
  if (keep.every < 1) fail("Keep::every must be at least 1");
  if (!std::isfinite(keep.compression) || (keep.compression != 0 && keep.compression < 1))
    fail("Keep::compression must be at least 1");
  const int limits = (keep.tokens > 0) + (keep.bytes > 0);
  const int shares = (keep.fraction > 0) + (keep.compression > 0);
  if (limits > 1) fail("Keep: set tokens or bytes, not both");
  if (shares > 1) fail("Keep: set fraction or compression, not both");
  if (judge_once) {
    if (shares == 0)
      fail(
          "Keep::fraction must be set, or Keep::compression: this scorer judges every chunk once "
          "and "
          "keeps that share of it");
  } else {
    if (limits + shares > 1) fail("Keep: set one of fraction, tokens, bytes and compression");
    if (limits + shares == 0)
      fail("Keep: set fraction, tokens, bytes or compression; nothing says how much to keep");
  }
  if (keep.tokens > 0 && keep.tokens < keep.sinks + keep.recent)
    fail("Keep::tokens is below sinks + recent: an impossible budget");
}
}  // namespace detail

LESSKV_END_NAMESPACE
