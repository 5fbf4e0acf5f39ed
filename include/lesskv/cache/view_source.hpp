// SPDX-License-Identifier: MIT
// ViewSource: rows in the engine's memory, as a RowSource.
#pragma once

#include <algorithm>

#include "../core/scratch.hpp"
#include "../core/shape.hpp"
#include "../kernels/kernels.hpp"
#include "row_source.hpp"

LESSKV_BEGIN_NAMESPACE
namespace detail {

class ViewSource final : public RowSource {
 public:
  ViewSource(const Shape& shape, const Source& source) : shape_(shape), source_(source) {}

  void read(int layer, int head, Index first, Index count, float* keys,
            float* values) const override {
    const HeadView view = source_(layer, head);
    if (keys) copy(view.keys, "source keys", first, count, shape_.head_dim, keys);
    if (values) copy(view.values, "source values", first, count, shape_.value_width(), values);
  }

  void logits(int layer, int head, const float* queries, Index query_rows, Index rows, float scale,
              float* out, Index out_stride) const override {
    constexpr Index step = 64;  // a block at a time: the keys stay where they are
    const int dim = shape_.head_dim;
    Floats plain(step * dim), lanes(step * dim);
    std::fill_n(lanes.data(), step * dim, 0.f);
    Floats workspace;
    for (Index first = 0; first < rows; first += step) {
      const Index count = std::min(step, rows - first);
      read(layer, head, first, count, plain.data(), nullptr);
      kernels().pack_keys(DType::f32, lanes.data(), dim, 0, plain.data(), dim, count);
      const BlockRef block{lanes.data(), lanes.data(), count};  // values are prefetched, not read
      AttendTask task{};
      task.blocks = &block;
      task.block_count = 1;
      task.dtype = DType::f32;
      task.key_dim = dim;
      task.value_dim = 0;
      task.queries = queries;
      task.query_rows = query_rows;
      task.scale = scale;
      task.workspace = workspace.reserve(attend_workspace(task));
      kernels().logits(task, out + first, out_stride);
    }
  }

 private:
  static void copy(const View& view, const char* name, Index first, Index count, int width,
                   float* out) {
    check(view, name);
    if (view.tokens < first + count)
      fail(name, ": the view has ", view.tokens, " rows, the plan needs ", first + count);
    for (Index r = 0; r < count; ++r) read_row(view, first + r, 0, width, out + r * width);
    if (!fits(out, count * width, DType::f32)) fail(name, ": a number is NaN or infinite");
  }

  const Shape& shape_;
  const Source& source_;
};

}  // namespace detail
LESSKV_END_NAMESPACE
