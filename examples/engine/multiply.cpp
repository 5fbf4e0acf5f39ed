// SPDX-License-Identifier: MIT
// The matrix products, where nearly all the time of a model without attention goes.
#include "dequantize.hpp"
#include "dot.hpp"
#include "panels.hpp"
#include "vector.hpp"

namespace engine {
namespace {

// So many rows that the accumulators of a tile fill the registers: 2 x 12 of 32 with AVX-512, 2 x 6
// of 16 otherwise.
constexpr Index tile_rows = lanes == 16 ? 12 : 6;

// tile_rows rows of weights times `vectors` vectors of tokens. Weights are broadcast from
// [row][weight_stride], tokens read from [feature][width]. All sums live in registers for the whole
// length.
template <int vectors>
void multiply_tile(const float* weights, Index weight_stride, Index columns, const float* in,
                   Index width, float* out, Index rows, bool add) {
  Vector sums[tile_rows][vectors] = {};
  for (Index c = 0; c < columns; ++c) {
    Vector x[vectors];
    for (int v = 0; v < vectors; ++v) x[v] = load(in + c * width + v * lanes);
#pragma GCC unroll 12
    for (Index r = 0; r < tile_rows; ++r) {
      const float w = weights[r * weight_stride + c];
      for (int v = 0; v < vectors; ++v) sums[r][v] += w * x[v];
    }
  }
#pragma GCC unroll 12
  for (Index r = 0; r < tile_rows; ++r) {
    if (r >= rows) break;
    for (int v = 0; v < vectors; ++v) {
      float* const to = out + r * width + v * lanes;
      store(to, add ? load(to) + sums[r][v] : sums[r][v]);
    }
  }
}

// Rows [first, first + rows) for all tokens.
void multiply_rows(const Weights& weights, Index first, Index rows, const Panels& in, Panels& out,
                   bool add) {
  thread_local Buffer scratch;
  // One line of slack per row: rows a power of two apart would all fall into the same set of the
  // first-level cache.
  const Index columns = weights.columns, stride = columns + 16;
  float* const block = scratch.reserve(((rows + tile_rows - 1) / tile_rows * tile_rows) * stride);
  for (Index r = 0; r < rows; ++r)
    dequantize(weights.type, weights.row(first + r), block + r * stride, columns);
  for (Index p = 0; p < in.count(); ++p) {
    const Index width = in.width(p);
    for (Index r = 0; r < rows; r += tile_rows) {
      const Index used = std::min(tile_rows, rows - r);
      float* const to = out.panel(p) + (first + r) * width;
      for (Index lane = 0; lane < width;) {
        if (width - lane >= 2 * lanes) {
          multiply_tile<2>(block + r * stride, stride, columns, in.panel(p) + lane, width,
                           to + lane, used, add);
          lane += 2 * lanes;
        } else {
          multiply_tile<1>(block + r * stride, stride, columns, in.panel(p) + lane, width,
                           to + lane, used, add);
          lane += lanes;
        }
      }
    }
  }
}

template <class Task>
void in_blocks(Index rows, Index block, const Executor& executor, const Task& task) {
  const Index blocks = (rows + block - 1) / block;
  const auto run = [&](Index b) { task(b * block, std::min(block, rows - b * block)); };
  if (executor && blocks > 1)
    executor(blocks, run);
  else
    for (Index b = 0; b < blocks; ++b) run(b);
}

}  // namespace

void multiply(const Weights& weights, const float* in, float* out, bool add,
              const Executor& executor) {
  thread_local Buffer scratch;
  float* const sums = scratch.reserve(weights.columns / dot_block);
  block_sums(in, weights.columns, sums);
  in_blocks(weights.rows, 128, executor, [&](Index first, Index rows) {
    for (Index r = first; r < first + rows; ++r) {
      const float product = dot(weights.type, weights.row(r), in, sums, weights.columns);
      out[r] = add ? out[r] + product : product;
    }
  });
}

void multiply(const Weights& weights, const Panels& in, Panels& out, bool add,
              const Executor& executor) {
  if (!add) out.resize(weights.rows, in.tokens());
  if (in.tokens() == 1) return multiply(weights, in.panel(0), out.panel(0), add, executor);
  // A block of rows stays in the second-level cache while all tokens pass by.
  const Index block = std::max<Index>(1, 65536 / weights.columns / tile_rows) * tile_rows;
  in_blocks(weights.rows, block, executor,
            [&](Index first, Index rows) { multiply_rows(weights, first, rows, in, out, add); });
}

}  // namespace engine
