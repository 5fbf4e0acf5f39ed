// SPDX-License-Identifier: MIT
// View: the engine's keys, values or queries of one layer, borrowed. Nothing is copied to describe
// them.
#pragma once

#include <cmath>
#include <span>
#include <string>

#include "../kernels/kernels.hpp"
#include "error.hpp"
#include "scratch.hpp"
#include "types.hpp"

LESSKV_BEGIN_NAMESPACE

// Element (token t, head h, channel c) is number row(t) * token_stride + h * head_stride + c *
// channel_stride, counted in elements of `dtype`; row(t) is t, or rows[t] when a slot table is
// given (pages, cells). A channel_stride other than 1 is a transposed tensor: V stored as
// [channel][token] has channel_stride = tokens and token_stride = 1. `read`, when set, replaces the
// arithmetic: it writes the channels of one row as f32 (block-quantised caches).
struct View {
  const void* data = nullptr;
  DType dtype = DType::f32;
  Index tokens = 0;
  Index token_stride = 0;
  Index head_stride = 0;
  Index channel_stride = 1;
  std::span<const std::int32_t> rows = {};
  using Reader = void (*)(const void* data, Index row, int head, int channels, float* out);
  Reader read = nullptr;

  // [token][head][channel], contiguous.
  static View packed(const void* data, DType dtype, Index tokens, int heads, int width) {
    return {.data = data,
            .dtype = dtype,
            .tokens = tokens,
            .token_stride = Index{heads} * width,
            .head_stride = width};
  }
  static View packed(const float* data, Index tokens, int heads, int width) {
    return packed(data, DType::f32, tokens, heads, width);
  }
  // [head][token][channel], contiguous; `capacity` tokens are allocated per head (0: exactly
  // `tokens`).
  static View by_head(const void* data, DType dtype, Index tokens, int width, Index capacity = 0) {
    return {.data = data,
            .dtype = dtype,
            .tokens = tokens,
            .token_stride = width,
            .head_stride = (capacity > 0 ? capacity : tokens) * width};
  }

  // The same tensor from token `first` on, `count` tokens. Needs no slot table entry outside that
  // range.
  View tokens_from(Index first, Index count) const {
    View part = *this;
    part.tokens = count;
    if (!rows.empty())
      part.rows = rows.subspan(detail::uz(first), detail::uz(count));
    else if (read)
      fail("View: a view with `read` has no sub-range without a slot table");
    else
      part.data = static_cast<const char*>(data) + first * token_stride * size_of(dtype);
    return part;
  }
};

namespace detail {
inline void check(const View& view, const char* name) {
  if (view.tokens < 0) fail(name, ": negative number of tokens");
  if (view.tokens > 0 && !view.data && !view.read) fail(name, ": data is null");
  if (!view.rows.empty() && static_cast<Index>(view.rows.size()) < view.tokens)
    fail(name, ": the slot table `rows` has ", view.rows.size(), " entries for ", view.tokens,
         " tokens");
  if (view.dtype != DType::f32 && view.dtype != DType::f16 && view.dtype != DType::bf16)
    fail(name, ": dtype is none of f32, f16, bf16");
}

// One row of one head as f32.
inline void read_row(const View& view, Index token, int head, int width, float* out) {
  const Index row = view.rows.empty() ? token : Index{view.rows[uz(token)]};
  if (view.read) return view.read(view.data, row, head, width, out);
  const Index at = row * view.token_stride + head * view.head_stride;
  const char* data = static_cast<const char*>(view.data) + at * size_of(view.dtype);
  const Index step = view.channel_stride;
  if (step == 1) return kernels().to_f32(view.dtype, data, out, width);
  const auto gather = [&]<class T>(const T* x) {
    for (int c = 0; c < width; ++c) out[c] = to_float(x[c * step]);
  };
  if (view.dtype == DType::f32)
    gather(reinterpret_cast<const float*>(data));
  else if (view.dtype == DType::f16)
    gather(reinterpret_cast<const f16*>(data));
  else
    gather(reinterpret_cast<const bf16*>(data));
}

// All rows of all heads as f32, [token][head][width], in `scratch`.
inline const float* read_all(const View& view, int heads, int width, Floats& scratch) {
  float* out = scratch.reserve(view.tokens * heads * width);
  for (Index t = 0; t < view.tokens; ++t)
    for (int h = 0; h < heads; ++h) read_row(view, t, h, width, out + (t * heads + h) * width);
  return out;
}

// True if every number is finite and fits the storage type. Integer compare, so that it vectorises
// and catches NaN.
inline bool fits(const float* x, Index n, DType type) {
  const std::uint32_t limit = std::bit_cast<std::uint32_t>(largest(type));
  std::uint32_t over = 0;
  for (Index i = 0; i < n; ++i)
    over |= static_cast<std::uint32_t>((std::bit_cast<std::uint32_t>(x[i]) & 0x7fffffffu) > limit);
  return over == 0;
}
}  // namespace detail

LESSKV_END_NAMESPACE
