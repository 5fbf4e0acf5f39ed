// SPDX-License-Identifier: MIT
// Coefficient levels for packed codes: per stage of the pursuit the Lloyd levels (Lloyd 1982; Max
// 1960) of coefficient / |x|, fitted in closed loop, i.e. on what is left after the quantised
// coefficients of the stages before. So stage k does not depend on how many follow, and one table
// serves every number of atoms up to its own. Stages differ: the first coefficients are large, the
// last ones small, which is why one table for all wastes half its levels.
#pragma once

#include <algorithm>
#include <vector>

#include "pursuit.hpp"

LESSKV_BEGIN_NAMESPACE
namespace detail {

// At most `count` levels that minimise the squared error, ascending; equal ones fill up.
inline void lloyd_levels(std::vector<float> x, int count, float* levels) {
  std::sort(x.begin(), x.end());
  std::vector<double> sums(x.size() + 1, 0.0);
  for (std::size_t i = 0; i < x.size(); ++i) sums[i + 1] = sums[i] + static_cast<double>(x[i]);
  for (int l = 0; l < count; ++l)  // start: equal numbers a level
    levels[l] = x.empty() ? 0.f
                          : x[x.size() * static_cast<std::size_t>(2 * l + 1) /
                              static_cast<std::size_t>(2 * count)];
  for (int round = 0; round < 60; ++round) {
    bool moved = false;
    std::size_t first = 0;
    for (int l = 0; l < count; ++l) {
      const auto end = l + 1 == count
                           ? x.end()
                           : std::upper_bound(x.begin() + static_cast<Index>(first), x.end(),
                                              0.5f * (levels[l] + levels[l + 1]));
      const std::size_t last = static_cast<std::size_t>(end - x.begin());
      if (last > first) {
        const float mean =
            static_cast<float>((sums[last] - sums[first]) / static_cast<double>(last - first));
        moved |= std::abs(mean - levels[l]) > 1e-6f;
        levels[l] = mean;
      }
      first = last;
    }
    std::sort(levels, levels + count);
    if (!moved) return;
  }
}

}  // namespace detail

// The dictionary of `coder` with levels for `stages` atoms, fitted to n rows [n][dim].
inline Dictionary fit_levels(const Pursuit& coder, const float* rows, Index n, int stages,
                             int levels) {
  const Dictionary& dictionary = coder.dictionary();
  if (n < 1) fail("fit_levels::rows: there are none");
  if (stages < 1 || stages > Pursuit::most_steps)
    fail("fit_levels::stages is ", stages, "; 1 to ", Pursuit::most_steps, " are possible");
  if (levels < 2 || levels > 256) fail("fit_levels::levels is ", levels, "; 2 to 256 are possible");
  const Index dim = dictionary.dim();
  using detail::uz;
  std::vector<float> residual(rows, rows + n * dim), norm(uz(n)), value(uz(n)), share,
      atom(uz(dim));
  std::vector<std::int32_t> index(uz(n)), count(uz(n));
  std::vector<float> table(static_cast<std::size_t>(stages * levels));
  for (Index i = 0; i < n; ++i) {
    double square = 0;
    for (Index c = 0; c < dim; ++c)
      square += static_cast<double>(rows[i * dim + c]) * static_cast<double>(rows[i * dim + c]);
    norm[uz(i)] = static_cast<float>(std::sqrt(square));
  }
  for (int stage = 0; stage < stages; ++stage) {
    coder.encode(residual.data(), n, dim, {.steps = 1},
                 {.index = index.data(), .coefficient = value.data(), .count = count.data()});
    share.clear();
    for (std::size_t i = 0; i < uz(n); ++i)
      if (count[i] > 0 && norm[i] > 0) share.push_back(value[i] / norm[i]);
    float* own = table.data() + stage * levels;
    detail::lloyd_levels(share, levels, own);
    for (Index i = 0; i < n; ++i) {
      if (count[uz(i)] == 0 || !(norm[uz(i)] > 0)) continue;
      const float x = value[uz(i)] / norm[uz(i)];
      const float* best = own;
      for (int l = 1; l < levels; ++l)
        if (std::abs(own[l] - x) < std::abs(*best - x)) best = own + l;
      dictionary.atom(index[uz(i)], atom.data());
      for (Index c = 0; c < dim; ++c)
        residual[uz(i * dim + c)] -= *best * norm[uz(i)] * atom[uz(c)];
    }
  }
  return dictionary.with_levels(stages, levels, table.data());
}

LESSKV_END_NAMESPACE
