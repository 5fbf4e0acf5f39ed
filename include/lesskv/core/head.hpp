// SPDX-License-Identifier: MIT
// Head: what every policy sees of one KV head. All of it is borrowed and f32.
#pragma once

#include <Eigen/Core>
#include <new>
#include <span>
#include <vector>

#include "rope.hpp"
#include "types.hpp"

LESSKV_BEGIN_NAMESPACE

using Matrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

// Borrowed rows, row-major, with any distance between rows.
using Rows = Eigen::Map<const Matrix, 0, Eigen::OuterStride<>>;

inline Rows make_rows(const float* data, Index count, Index width, Index stride) {
  return Rows(data, count, width, Eigen::OuterStride<>(stride));
}
inline Rows make_rows(const Matrix& m) { return make_rows(m.data(), m.rows(), m.cols(), m.cols()); }

// What a policy needs to see, or-ed. Keys and values are only converted, attention only computed,
// when asked for.
enum class Need : unsigned {
  nothing = 0,
  keys = 1,
  values = 2,
  queries = 4,
  attention = 8,
  scores = 16,
  rope = 32,   // Shape::rope must be given
  probes = 64  // attention of probes, in observe(): queries that are no part of the sequence
};
constexpr Need operator|(Need a, Need b) {
  return static_cast<Need>(static_cast<unsigned>(a) | static_cast<unsigned>(b));
}
constexpr bool asks(Need all, Need one) {
  return (static_cast<unsigned>(all) & static_cast<unsigned>(one)) != 0;
}

struct Head {
  int layer = 0;
  int head = 0;         // KV head
  int group = 1;        // query heads that read it
  bool probes = false;  // in observe(): the queries are probes; rows at `step` and later are theirs
  Index step = 0;       // the next position of the sequence: seeds noise, gives rows their age
  // Rows shown: all rows of the head, or for a scorer with Chunks reach the chunk and what is ahead
  // of it. Position order.
  std::span<const Position> positions = {};
  Index first = 0;  // rows [first, last) are judged now; all others stay
  Index last = 0;
  Rows keys = make_rows(nullptr, 0, 0, 0);    // [rows, head_dim], with Need::keys
  Rows values = make_rows(nullptr, 0, 0, 0);  // [rows, value_dim], with Need::values
  Rows queries = make_rows(nullptr, 0, 0,
                           0);  // [w * group, head_dim], with Need::queries; query-major, then head
  Rows attention =
      make_rows(nullptr, 0, 0, 0);  // [w * group, rows], with Need::attention; each row sums to 1
  std::span<const Position> query_positions = {};  // of the w queries
  const Rotation* rotation = nullptr;              // of keys and queries, with Need::rope
  std::span<const float> scores = {};  // of rows [first, last), for a Budgeter with Need::scores
  std::vector<float>* column_data =
      nullptr;              // this policy's columns, each with a float per row of the head
  Index column_offset = 0;  // the row of the head that is shown first

  Index size() const { return static_cast<Index>(positions.size()); }
  // Column c of this policy: one float per row shown, moved along with the row by the library.
  std::span<float> column(int c) const {
    return std::span<float>(column_data[c]).subspan(detail::uz(column_offset), positions.size());
  }
};

namespace detail {
// out[c]: the mean of column c of rows [first, last), of the first out.size() columns.
inline void mean_of_rows(const Rows& rows, Index first, Index last, std::span<float> out) {
  for (float& x : out) x = 0;
  for (Index r = first; r < last; ++r) {
    const float* from = rows.data() + r * rows.outerStride();
    for (std::size_t c = 0; c < out.size(); ++c) out[c] += from[c];
  }
  for (float& x : out) x /= static_cast<float>(last - first);
}

// An Eigen::Map is re-pointed by building it anew in place.
inline void point(Rows& rows, const float* data, Index count, Index width, Index stride) {
  new (&rows) Rows(data, count, width, Eigen::OuterStride<>(stride));
}
}  // namespace detail

LESSKV_END_NAMESPACE
