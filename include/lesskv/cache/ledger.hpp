// SPDX-License-Identifier: MIT
// The ledger: everything that follows the rows of a head, except keys and values.
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <vector>

#include "../core/types.hpp"
#include "plan.hpp"

LESSKV_BEGIN_NAMESPACE
namespace detail {

// One head. Positions are 32 bits wide: a sequence has fewer than 2^32 tokens.
struct Ledger {
  std::vector<std::uint32_t> positions;
  Index judged =
      0;           // rows [0, judged) are closed: a scorer with Chunks reach never sees them again
  Index seen = 0;  // rows ever appended
  std::int64_t newest_dropped = -1;         // position of the newest row that ever left
  std::vector<std::vector<float>> columns;  // of all policies, one after the other

  // Rows that are means of several (Merger), ascending, and the log of how many.
  std::vector<std::int32_t> merged_rows;
  std::vector<float> log_mass;

  Index rows() const { return static_cast<Index>(positions.size()); }

  // Grows in the same steps as the blocks of rows, so that decoding allocates for all of them at
  // once and no vector holds twice what it needs.
  void append(std::span<const Position> added) {
    const std::size_t n = positions.size() + added.size();
    reserve(positions, n);
    for (const Position p : added) positions.push_back(static_cast<std::uint32_t>(to_int(p)));
    for (auto& column : columns) {
      reserve(column, n);
      column.resize(n, 0.f);
    }
    seen += static_cast<Index>(added.size());
  }

  void keep(std::span<const std::int32_t> kept, bool trim) {
    std::size_t next = 0;
    for (std::size_t r = 0; r < positions.size(); ++r)
      if (next < kept.size() && static_cast<std::size_t>(kept[next]) == r)
        ++next;
      else
        newest_dropped = std::max(newest_dropped, std::int64_t{positions[r]});
    const auto close_up = [&](auto& v) {
      for (std::size_t i = 0; i < kept.size(); ++i) v[i] = v[static_cast<std::size_t>(kept[i])];
      v.resize(kept.size());
      const std::size_t most = uz(round_up(static_cast<Index>(kept.size()), 64) + 64);
      if (trim || v.capacity() > most) v.shrink_to_fit();
    };
    close_up(positions);
    for (auto& column : columns) close_up(column);
    next = 0;
    std::size_t n = 0;
    for (std::size_t i = 0; i < merged_rows.size(); ++i) {
      while (next < kept.size() && kept[next] < merged_rows[i]) ++next;
      if (next == kept.size() || kept[next] != merged_rows[i]) continue;
      log_mass[n] = log_mass[i];
      merged_rows[n++] = static_cast<std::int32_t>(next);
    }
    resize_merged(n);
  }

  // Rows that have become means; some may have been.
  void merge(const MergedRows& fresh, std::span<const std::int32_t> kept) {
    if (fresh.rows.empty()) return;
    std::vector<std::int32_t> rows;
    std::vector<float> mass;
    const std::size_t n = merged_rows.size() + fresh.rows.size();
    rows.reserve(n);
    mass.reserve(n);
    std::size_t old = 0, next = 0;
    const auto take_old = [&](std::int32_t before) {
      for (; old < merged_rows.size() && merged_rows[old] < before; ++old) {
        rows.push_back(merged_rows[old]);
        mass.push_back(log_mass[old]);
      }
    };
    for (std::size_t i = 0; i < fresh.rows.size(); ++i) {
      while (kept[next] != fresh.rows[i]) ++next;
      const auto row = static_cast<std::int32_t>(next);
      take_old(row);
      if (old < merged_rows.size() && merged_rows[old] == row) ++old;
      rows.push_back(row);
      mass.push_back(fresh.log_mass[i]);
    }
    take_old(static_cast<std::int32_t>(this->rows()));
    merged_rows = std::move(rows);
    log_mass = std::move(mass);
  }

  // Null for a row that stands for itself.
  const float* log_mass_of(std::int32_t row) const {
    const auto found = std::lower_bound(merged_rows.begin(), merged_rows.end(), row);
    return found == merged_rows.end() || *found != row
               ? nullptr
               : &log_mass[static_cast<std::size_t>(found - merged_rows.begin())];
  }

  void truncate(Index rows) {
    positions.resize(uz(rows));
    judged = std::min(judged, rows);
    for (auto& column : columns) column.resize(uz(rows));
    resize_merged(static_cast<std::size_t>(
        std::lower_bound(merged_rows.begin(), merged_rows.end(), static_cast<std::int32_t>(rows)) -
        merged_rows.begin()));
  }

  // Gives room back that many rows more had taken.
  void trim() {
    const std::size_t most = uz(round_up(rows(), 64) + 64);
    const auto one = [&](auto& v) {
      if (v.capacity() > most) v.shrink_to_fit();
    };
    one(positions);
    for (auto& column : columns) one(column);
  }

  // First row whose position is not below p.
  Index find(std::int64_t p) const {
    return std::lower_bound(positions.begin(), positions.end(), p,
                            [](std::uint32_t a, std::int64_t b) { return std::int64_t{a} < b; }) -
           positions.begin();
  }

  std::size_t bytes() const {
    std::size_t sum = sizeof(*this) + positions.capacity() * sizeof(std::uint32_t);
    for (const auto& column : columns) sum += sizeof(column) + column.capacity() * sizeof(float);
    return sum + merged_bytes(merged_rows.capacity());
  }
  static std::size_t merged_bytes(std::size_t rows) {
    return rows * (sizeof(std::int32_t) + sizeof(float));
  }
  // What a head of that many rows needs, growth steps included, and this one after `step` more.
  std::size_t bytes_for(Index rows) const { return bytes_with(uz(round_up(rows, 64))); }
  std::size_t bytes_after(Index step) const {
    const std::size_t n = positions.size() + uz(step);
    return n <= positions.capacity() ? bytes()
                                     : bytes_with(uz(round_up(static_cast<Index>(n), 64)));
  }

 private:
  void resize_merged(std::size_t n) {
    merged_rows.resize(n);
    log_mass.resize(n);
    merged_rows.shrink_to_fit();
    log_mass.shrink_to_fit();
  }
  std::size_t bytes_with(std::size_t capacity) const {
    return sizeof(*this) + columns.size() * sizeof(std::vector<float>) +
           (1 + columns.size()) * 4 * capacity;
  }
  template <class T>
  static void reserve(std::vector<T>& v, std::size_t n) {
    if (n > v.capacity()) v.reserve(uz(round_up(static_cast<Index>(n), 64)));
  }
};

}  // namespace detail
LESSKV_END_NAMESPACE
