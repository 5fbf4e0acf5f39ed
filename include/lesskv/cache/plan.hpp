// SPDX-License-Identifier: MIT
// Plan: which rows of every head stay. Made by a planner, carried out by whoever owns the memory,
// then committed.
#pragma once

#include <algorithm>
#include <cstddef>
#include <memory>
#include <span>
#include <vector>

#include "../core/error.hpp"
#include "../core/types.hpp"
#include "../core/view.hpp"

LESSKV_BEGIN_NAMESPACE

// Rows that are written over rows that stay, each the mean of some that leave.
struct MergedRows {
  std::vector<std::int32_t> rows;   // rows before the plan, ascending, all of them kept
  std::vector<float> keys, values;  // [rows][head_dim], [rows][value_dim]
  std::vector<float> log_mass;      // to be added to their attention logits

  std::size_t bytes() const {
    return rows.capacity() * sizeof(rows[0]) +
           (keys.capacity() + values.capacity() + log_mass.capacity()) * sizeof(float);
  }
  // Forgets those that were to be written over rows [first, last).
  void drop(std::int32_t first, std::int32_t last, Index key_dim, Index value_dim) {
    const auto from = std::lower_bound(rows.begin(), rows.end(), first) - rows.begin();
    const auto to = std::lower_bound(rows.begin(), rows.end(), last) - rows.begin();
    const auto cut = [&](auto& v, std::ptrdiff_t width) {
      v.erase(v.begin() + from * width, v.begin() + to * width);
    };
    cut(rows, 1);
    cut(log_mass, 1);
    cut(keys, key_dim);
    cut(values, value_dim);
  }
};

// One KV head. With `all`, nothing leaves and `kept` is empty.
struct HeadPlan {
  bool all = true;
  std::vector<std::int32_t> kept;  // rows before the plan, ascending
  Index closed = 0;                // rows [0, closed) of the kept ones will never be judged again
  MergedRows merged = {};          // with a Merger
};

struct Plan {
  std::vector<HeadPlan> heads;               // [layer * kv_heads + head]
  bool judged = false;                       // rows were judged, even if all of them stay
  std::uint64_t version = 0;                 // of the ledger it was made from
  std::shared_ptr<void> measured = nullptr;  // by Budgeters, for commit
  int layer = -1;                            // made by plan(layer): only layers up to this one
  std::vector<std::vector<float>> scores = {}, raw = {};  // of that layer, for commit

  // True if no row leaves any head.
  bool empty() const {
    for (const HeadPlan& head : heads)
      if (!head.all) return false;
    return true;
  }
};

// What rows cost, for a limit in bytes.
class Pricing {
 public:
  virtual ~Pricing() = default;
  // Bytes held if head i had rows[i] rows: while decoding goes on, what rows lose to their storage
  // included. `least`: right after a compression that encodes all it can and gives back every spare
  // row.
  virtual std::size_t rows(std::span<const Index> rows, bool least) const = 0;
  // The most that is held from the moment when this was carried out until `steps` more rows came to
  // every head. No heads: nothing leaves.
  virtual std::size_t most(std::span<const HeadPlan> heads, Index steps) const = 0;
};

// Moves the kept rows of one head (view of K or V, data at the head, `width` channels) to rows 0,
// 1, 2, ... in place. A row never moves up, so nothing is overwritten before it was read. With a
// slot table the contents move between slots; afterwards the first kept.size() slots of the table
// are in use and the others are free.
void move_rows(const View& view, int width, std::span<const std::int32_t> kept);

// Writes numbers [rows][width] over the given rows of one head (a view as for move_rows): with a
// Merger, HeadPlan::merged, before the rows move.
void write_rows(const View& view, int width, std::span<const std::int32_t> rows,
                const float* numbers);

LESSKV_END_NAMESPACE
