// SPDX-License-Identifier: MIT
// A Scorer inside another policy: what the library does for a scorer of its own, done for a part.
#pragma once

#include <algorithm>
#include <limits>
#include <span>
#include <vector>

#include "../core/select.hpp"

LESSKV_BEGIN_NAMESPACE
namespace detail {

// The head as the part would see it: its own columns, from number `column` on, and the queries that
// it asked for and not those of a wider window.
template <class P>
Head head_of_part(const P& part, Head head, int column) {
  if (head.column_data) head.column_data += column;
  const Index w = window_of(part);
  const auto newest = [&](Rows& rows) {
    if (w > 0 && rows.rows() > w * head.group)
      point(rows, rows.data() + (rows.rows() - w * head.group) * rows.outerStride(), w * head.group,
            rows.cols(), rows.outerStride());
  };
  newest(head.attention);
  newest(head.queries);
  if (w > 0 && static_cast<Index>(head.query_positions.size()) > w)
    head.query_positions = head.query_positions.last(uz(w));
  return head;
}

// Scores of rows [first, last) by a part, pooled as it asks for. A part with Chunks reach is asked
// chunk by chunk; rows that no whole chunk with enough rows behind it covers get the lowest score.
template <class P>
void score_part(const P& part, const Head& shown, int column, const state_of<P>& state,
                std::span<float> out) {
  const Head head = head_of_part(part, shown, column);
  const Reach reach = reach_of(part);
  if (reach.chunk > 0) {
    Index at = head.first;
    for (; at + reach.chunk <= head.last && at + reach.chunk + reach.ahead <= head.size();
         at += reach.chunk) {
      const Index count = reach.chunk + reach.ahead;
      Head chunk = head;
      chunk.positions = head.positions.subspan(uz(at), uz(count));
      chunk.first = 0;
      chunk.last = reach.chunk;
      chunk.column_offset += at;
      const auto cut_rows = [&](Rows& rows) {
        if (rows.size() > 0)
          point(rows, rows.data() + at * rows.outerStride(), count, rows.cols(),
                rows.outerStride());
      };
      cut_rows(chunk.keys);
      cut_rows(chunk.values);
      if (head.attention.size() > 0)
        point(chunk.attention, head.attention.data() + at, head.attention.rows(), count,
              head.attention.outerStride());
      call_score(part, chunk, state, out.subspan(uz(at), uz(count)));
    }
    for (; at < head.last; ++at) out[uz(at)] = -std::numeric_limits<float>::infinity();
    return;
  }
  call_score(part, head, state, out);
  if (const Pooling pooling = pooling_of(part);
      pooling.kind != PoolKind::none && pooling.width > 1) {
    const std::vector<float> raw(out.begin(), out.begin() + head.last);
    pool(raw, pooling, out.first(uz(head.last)));
  }
}

}  // namespace detail
LESSKV_END_NAMESPACE
