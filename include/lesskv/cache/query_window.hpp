// SPDX-License-Identifier: MIT
// The newest queries of one layer, kept for scorers that look at the attention of a window.
#pragma once

#include <algorithm>
#include <cstddef>
#include <span>
#include <vector>

#include "../core/types.hpp"
#include "../kernels/kernels.hpp"

LESSKV_BEGIN_NAMESPACE
namespace detail {

// A ring, stored in the type of the rows.
class QueryWindow {
 public:
  // The last `limit` of the tokens seen are held. Positions belong to the queries.
  void push(const float* queries, Index tokens, Index width, Index limit, DType dtype,
            std::span<const Position> positions) {
    if (limit == 0) return;
    if (limit != limit_ || width != width_) {
      limit_ = limit;
      width_ = width;
      dtype_ = dtype;
      data_.assign(uz(limit * width * size_of(dtype)), std::byte{0});
      positions_.assign(uz(limit), Position{});
      start_ = count_ = 0;
    }
    for (Index t = std::max<Index>(0, tokens - limit); t < tokens; ++t) {
      const Index slot = (start_ + count_) % limit_;
      kernels().from_f32(dtype_, queries + t * width, row(slot), width);
      positions_[uz(slot)] = positions[uz(t)];
      if (count_ < limit_)
        ++count_;
      else
        start_ = (start_ + 1) % limit_;
    }
  }

  Index count() const { return count_; }
  Position position(Index i) const { return positions_[uz((start_ + i) % limit_)]; }
  void read(Index i, float* out) const {
    kernels().to_f32(dtype_, row((start_ + i) % limit_), out, width_);
  }

  // Forgets all but the newest n; with none left the memory goes too.
  void shrink(Index n) {
    if (n <= 0) {
      *this = QueryWindow();
    } else if (n < count_) {
      start_ = (start_ + count_ - n) % limit_;
      count_ = n;
    }
  }
  // Forgets queries at p and later.
  void truncate(Position p) {
    while (count_ > 0 && position(count_ - 1) >= p) --count_;
  }
  std::size_t bytes() const { return data_.capacity() + positions_.capacity() * sizeof(Position); }
  static std::size_t bytes_for(Index limit, Index width, DType dtype) {
    return uz(limit * width * size_of(dtype)) + uz(limit) * sizeof(Position);
  }

 private:
  std::byte* row(Index slot) { return data_.data() + slot * width_ * size_of(dtype_); }
  const std::byte* row(Index slot) const { return data_.data() + slot * width_ * size_of(dtype_); }

  Index limit_ = 0, width_ = 0, start_ = 0, count_ = 0;
  DType dtype_ = DType::f32;
  std::vector<std::byte> data_;
  std::vector<Position> positions_;
};

}  // namespace detail
LESSKV_END_NAMESPACE
