// SPDX-License-Identifier: MIT
// Products of many rows with a few directions, as attention makes its logits: a block of rows lies with
// rows in lanes, the directions are its queries.
#pragma once

#include <algorithm>

#include "../core/scratch.hpp"
#include "kernels.hpp"

LESSKV_BEGIN_NAMESPACE
namespace detail {

class RowProducts {
 public:
  static constexpr Index block = kernel_block;

  // directions: [count][dim], borrowed.
  RowProducts(const float* directions, Index count, Index dim)
      : dim_(dim), lanes_(block * dim), products_(std::max<Index>(1, count) * block) {
    std::fill_n(lanes_.data(), block * dim, 0.f);
    task_.blocks = &shown_;
    task_.block_count = 1;
    task_.dtype = DType::f32;
    task_.key_dim = static_cast<int>(dim);
    task_.queries = directions;
    task_.query_rows = count;
    task_.scale = 1;
    shown_ = {lanes_.data(), lanes_.data(), block};  // values are not read
    task_.workspace = workspace_.reserve(attend_workspace(task_));
  }
  RowProducts(const RowProducts&) = delete;
  RowProducts& operator=(const RowProducts&) = delete;

  // Of n rows, `block` at most, `stride` floats apart: [direction][block].
  const float* of(const float* rows, Index stride, Index n) {
    kernels().pack_keys(DType::f32, lanes_.data(), static_cast<int>(dim_), 0, rows, stride, n);
    shown_.rows = n;
    kernels().logits(task_, products_.data(), block);
    return products_.data();
  }
  // Channel c of row r of the last call.
  float at(Index r, Index c) const {
    return lanes_.data()[(r / kernel_tile * dim_ + c) * kernel_tile + r % kernel_tile];
  }

 private:
  Index dim_;
  Floats lanes_, products_, workspace_;
  BlockRef shown_{};
  AttendTask task_{};
};

}  // namespace detail
LESSKV_END_NAMESPACE
