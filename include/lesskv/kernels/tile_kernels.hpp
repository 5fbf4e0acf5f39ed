// SPDX-License-Identifier: MIT
// The kernels of compression: scores on rows as they are stored, selection, and the moving of the
// rows that stay. Built and chosen like the kernels of attention (kernels.hpp), in a table of their
// own.
#pragma once

#include <cmath>
#include <cstdint>

#include "kernels.hpp"

LESSKV_BEGIN_NAMESPACE

// One side (keys or values) of rows [first, first + (chunks + 1) * lag) of a head; every block but
// the last holds 64 rows.
struct LagTask {
  const BlockRef* blocks;
  DType dtype;
  bool keys;  // the keys of the blocks, else the values
  int dim;
  Index first;
  Index lag;
  Index chunks;
  float* workspace;  // lag_workspace(dim) floats, 64-byte aligned
};

// Scores. A table of its own, so that who scores otherwise does not compile them.
struct ScoreKernelTable {
  const char* name;
  // out[c * lag + i]: the standard deviation over the channels of row i of chunk c, each channel
  // scaled by its range in chunk c + 1; see score/lagkv.hpp.
  void (*lag_deviations)(const LagTask&, float* out);
  // The Euclidean length of the keys of rows [first, last).
  void (*key_norms)(DType, const BlockRef* blocks, int dim, Index first, Index last, float* out);
  // The same lengths, and the sum of these keys at length 1 on top of sum[dim]. workspace: 16 * dim
  // floats, 64-byte aligned.
  void (*key_directions)(DType, const BlockRef* blocks, int dim, Index first, Index last,
                         float* lengths, double* sum, float* workspace);
  // Products of the keys of rows [first, last) with one direction.
  void (*key_products)(DType, const BlockRef* blocks, int dim, Index first, Index last,
                       const float* direction, float* out);
};

// Selection, and rows that move.
struct TileKernelTable {
  const char* name;
  // Scores to ordered integers: larger float, larger integer; NaN least. Also their range.
  void (*order_keys)(const float* x, Index n, std::int32_t* keys, std::int32_t* least,
                     std::int32_t* most);
  // A bound with at least k keys at or above it and fewer than k above: the k-th largest key, or
  // any number between it and the next smaller one; *reach: how many are at or above it. 1 <= k <=
  // n, keys lie in [least, most].
  std::int32_t (*kth_largest)(const std::int32_t* keys, Index n, Index k, std::int32_t least,
                              std::int32_t most, std::int32_t* scratch, Index* reach);
  Index (*count_at_least)(const std::int32_t* keys, Index n, std::int32_t bound);
  // Appends base + i for every i in [first, last) with keys[i] >= bound to out[count], never more
  // than `room` in all; returns the new count.
  Index (*list_at_least)(const std::int32_t* keys, Index first, Index last, std::int32_t bound,
                         std::int32_t base, std::int32_t* out, Index count, Index room);

  // Rows rows[0..count), ascending, of a head to the tiles or rows of one block from its beginning
  // on. `to` may be a block of the same head if no row moves up. Missing rows of the last tile
  // become 0.
  void (*gather_keys)(DType, const BlockRef* blocks, int dim, const std::int32_t* rows, Index count,
                      void* to);
  void (*gather_values)(DType, const BlockRef* blocks, int dim, const std::int32_t* rows,
                        Index count, void* to);
};

namespace detail {
inline constexpr Index select_buckets = 2048;

// What a row is scored with: z = x * scale + offset, or (x - offset) * scale where storage is f32.
struct LagScales {
  const float* scale;
  const float* offset;
  Index dim;
  Index live;  // channels with a range
};

// The deviation of one row, mean first and in double: for rows whose squares all but cancel, or
// leave f32.
template <class T>
inline float deviation_again(const T* x, Index stride, const LagScales& by) {
  const auto number = [&](Index c) {
    const double v = double{to_float(x[c * stride])}, s = double{by.scale[c]};
    const double shift = double{by.offset[c]};
    return sizeof(T) == 4 ? (v - shift) * s : v * s + shift;
  };
  double mean = 0, squares = 0;
  for (Index c = 0; c < by.dim; ++c)
    if (by.scale[c] != 0) mean += number(c);
  mean /= static_cast<double>(by.live);
  for (Index c = 0; c < by.dim; ++c)
    if (by.scale[c] != 0) squares += (number(c) - mean) * (number(c) - mean);
  // Squares beyond f32: as far from the next chunk as can be said.
  constexpr float most = std::numeric_limits<float>::max();
  return squares < double{most}
             ? static_cast<float>(std::sqrt(squares / static_cast<double>(by.live - 1)))
             : most;
}

#if defined(__x86_64__)
// The lanes named in a mask of 8, side by side.
struct CompressOrder {
  unsigned char lane[256][8] = {};
  constexpr CompressOrder() {
    for (int mask = 0; mask < 256; ++mask) {
      int n = 0;
      for (int i = 0; i < 8; ++i)
        if ((mask >> i) & 1) lane[mask][n++] = static_cast<unsigned char>(i);
    }
  }
};
inline constexpr CompressOrder compress_order;
#endif
}  // namespace detail

// Integers of scratch for kth_largest.
inline Index select_scratch(Index n) { return 4 * detail::select_buckets + n + 16; }
// Floats of workspace for lag_deviations: three running extremes of a tile, a scale and an offset.
inline Index lag_workspace(int dim) {
  const Index tile = detail::round_up(dim, 2) * detail::kernel_tile;
  return 3 * tile + 2 * detail::round_up(dim, detail::kernel_tile);
}

LESSKV_END_NAMESPACE

#if LESSKV_DECLARE_ONLY

LESSKV_BEGIN_NAMESPACE
// The tables of the same instruction set as an attention table.
const TileKernelTable& tile_kernels(const KernelTable& of);
const ScoreKernelTable& score_kernels(const KernelTable& of);
LESSKV_END_NAMESPACE

#else

#define LESSKV_BODY "tile_body.inc"
#include "each_isa.inc"
#undef LESSKV_BODY

LESSKV_BEGIN_NAMESPACE

// The tables of the same instruction set as an attention table.
LESSKV_FUNCTION const TileKernelTable& tile_kernels(const KernelTable& of) {
#if defined(__x86_64__)
  if (of.lanes == 16) return detail::avx512::tile_table;
  if (of.lanes == 8) return detail::avx2::tile_table;
#endif
  static_cast<void>(of);
  return detail::base::tile_table;
}
LESSKV_FUNCTION const ScoreKernelTable& score_kernels(const KernelTable& of) {
#if defined(__x86_64__)
  if (of.lanes == 16) return detail::avx512::score_table;
  if (of.lanes == 8) return detail::avx2::score_table;
#endif
  static_cast<void>(of);
  return detail::base::score_table;
}

LESSKV_END_NAMESPACE

#endif  // LESSKV_DECLARE_ONLY

LESSKV_BEGIN_NAMESPACE
inline const TileKernelTable& tile_kernels() {
  static const TileKernelTable& chosen = tile_kernels(kernels());
  return chosen;
}
inline const ScoreKernelTable& score_kernels() {
  static const ScoreKernelTable& chosen = score_kernels(kernels());
  return chosen;
}

LESSKV_END_NAMESPACE
