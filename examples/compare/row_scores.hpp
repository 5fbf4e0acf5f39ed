// SPDX-License-Identifier: MIT
// Scores that were worked out before, in place of a scorer: what a future pays (oracle.hpp), what a
// replay paid (pass.hpp).
#pragma once

#include <lesskv/lesskv.hpp>
#include <memory>
#include <vector>

namespace compare {

using lesskv::Index;

// A number for every row of a context, [layer][kv head][row].
struct RowNumbers {
  Index context = 0;
  int kv_heads = 0;
  std::vector<float> data;

  RowNumbers(const lesskv::Shape& shape, Index rows)
      : context(rows),
        kv_heads(shape.kv_heads),
        data(static_cast<std::size_t>(shape.heads() * rows), 0.f) {}
  float* of(int layer, int head) {
    return data.data() + (Index{layer} * kv_heads + head) * context;
  }
  const float* of(int layer, int head) const {
    return data.data() + (Index{layer} * kv_heads + head) * context;
  }
};

struct RowScores {
  std::shared_ptr<const RowNumbers> numbers;
  int numbers_a_row = 0;  // that the scorer it stands for keeps: they count in bytes()

  static constexpr lesskv::Need needs = lesskv::Need::nothing;
  int columns() const { return numbers_a_row; }
  // Rows that came later have the largest score there is.
  void score(const lesskv::Head& head, std::span<float> out) const {
    const float* own = numbers->of(head.layer, head.head);
    for (Index r = head.first; r < head.last; ++r) {
      const Index at = lesskv::to_int(head.positions[static_cast<std::size_t>(r)]);
      out[static_cast<std::size_t>(r)] = at < numbers->context ? own[at] : 1.f;
    }
  }
};

}  // namespace compare
