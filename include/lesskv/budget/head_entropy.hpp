// SPDX-License-Identifier: MIT
// The entropy of every head, as budgets by entropy measure it: of queries as they stream by, of the
// keys or values held at the first compression, or from a calibration file.
//
// A KV head has as many entropies of queries as it has query heads. Queries are not kept: per query
// head the second moments of unit rows are (matrix_entropy.hpp; 4 d^2 + 16 d bytes), until the
// budget is measured; then they go and the entropies stay. Keys and values are there: two exact passes, the reference
// form. Entropies of fewer than 4 head_dim rows are not trusted: such a head has none. After
// remeasure() of the cache, queries are gathered anew; until there are enough the old value stands.
#pragma once

#include <array>
#include <cmath>
#include <limits>
#include <string>
#include <string_view>
#include <vector>

#include "../core/concepts.hpp"
#include "calibration.hpp"
#include "matrix_entropy.hpp"

LESSKV_BEGIN_NAMESPACE

enum class EntropyOf { queries, keys, values };

constexpr std::array<std::string_view, 3> names_of(EntropyOf) {
  return {"queries", "keys", "values"};
}

// Name of the table of a calibration file that holds them.
inline std::string entropy_table_name(EntropyOf of) {
  return "entropy_" + std::string(names_of(of)[static_cast<std::size_t>(of)]);
}

// State of one KV head.
struct HeadEntropy {
  std::vector<UnitMoments> moments = {};  // one a query head, while queries are gathered
  std::vector<float> entropy = {};        // in nats, one a query head, or the one; none: not known
  bool closed = false;                    // measured: nothing more is gathered

  bool known() const { return !entropy.empty(); }
  std::size_t bytes() const {
    std::size_t sum = moments.capacity() * sizeof(UnitMoments) + entropy.capacity() * sizeof(float);
    for (const UnitMoments& one : moments) sum += one.bytes();
    return sum;
  }
};

namespace detail {

inline void observe_entropy(const Head& head, HeadEntropy& state) {
  if (state.closed || head.queries.rows() == 0) return;
  const Index group = head.group, stride = head.queries.outerStride();
  state.moments.resize(uz(group));
  for (Index g = 0; g < group; ++g)
    state.moments[uz(g)].add(head.queries.data() + g * stride, group * stride,
                             head.queries.rows() / group, head.queries.cols());
}

// `who` names the policy in errors.
inline void measure_entropy(const char* who, EntropyOf of, Index truncation, const Head& head,
                            HeadEntropy& state) {
  if (head.size() == 0) return;
  if (of != EntropyOf::queries) {
    const Rows& rows = of == EntropyOf::keys ? head.keys : head.values;
    if (rows.rows() < 4 * rows.cols()) return;
    const Index k = truncation > 0 ? truncation : default_truncation(rows.cols());
    state.entropy = {static_cast<float>(matrix_entropy(rows, k))};
    return;
  }
  if (state.moments.empty()) {
    if (!state.known())
      fail("queries: ", who, " needs the queries of layer ", head.layer,
           "; call attend() or observe() after every append()");
    state.closed = false;  // asked again: gather anew
    return;
  }
  for (const UnitMoments& one : state.moments)
    if (one.seen() < 4 * one.dim()) return;
  state.entropy.clear();
  for (const UnitMoments& one : state.moments)
    state.entropy.push_back(static_cast<float>(
        one.entropy(truncation > 0 ? truncation : default_truncation(one.dim()))));
  state.closed = true;
  state.moments = std::vector<UnitMoments>();  // gives its memory back; = {} would not
}

inline void check_truncation(const char* who, Index truncation, const CalibrationFile& table,
                             const Shape& shape, EntropyOf of) {
  const Index dim = of == EntropyOf::values ? shape.value_width() : shape.head_dim;
  if (truncation < 0 || truncation > dim)
    fail(who, "::truncation is ", truncation, "; it must lie between 1 and the ", dim,
         " channels, or be 0 for a quarter of them");
  if (table.empty()) return;
  table.demand((std::string(who) + "::table").c_str(), entropy_table_name(of), shape.layers,
               shape.kv_heads, shape.query_heads);
  const Calibration& data = table.data;
  if (truncation > 0 && data.truncation > 0 && truncation != data.truncation)
    fail(who, "::truncation is ", truncation, ", but calibration file '", table.path,
         "' was made with ", data.truncation);
}

// Entropies of every KV head: of its query heads, or the one; none where none is known.
inline std::vector<std::vector<double>> entropies(const Shape& shape, const CalibrationFile& table,
                                                  EntropyOf of,
                                                  std::span<const HeadEntropy> measured) {
  std::vector<std::vector<double>> out(uz(shape.heads()));
  const Calibration::Table* own = table.empty() ? nullptr : table.data.find(entropy_table_name(of));
  for (Index i = 0; i < shape.heads(); ++i) {
    if (own) {
      const Index each = own->columns / shape.kv_heads;
      const auto from = own->values.begin() + i * each;
      out[uz(i)].assign(from, from + each);
    } else {
      out[uz(i)].assign(measured[uz(i)].entropy.begin(), measured[uz(i)].entropy.end());
    }
  }
  return out;
}

// Their means; NaN where there is none.
inline std::vector<double> head_entropies(const Shape& shape, const CalibrationFile& table,
                                          EntropyOf of, std::span<const HeadEntropy> measured) {
  std::vector<double> out;
  for (const std::vector<double>& head : entropies(shape, table, of, measured)) {
    double sum = 0;
    for (const double h : head) sum += h;
    out.push_back(head.empty() ? std::numeric_limits<double>::quiet_NaN()
                               : sum / double(head.size()));
  }
  return out;
}

}  // namespace detail

LESSKV_END_NAMESPACE
