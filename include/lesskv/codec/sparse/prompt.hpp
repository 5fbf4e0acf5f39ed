// SPDX-License-Identifier: MIT
// Atoms from the prompt itself, to extend a dictionary with: CSR's online sampled part and its
// guard part (arXiv 2412.11741). Each costs 16 bits a channel, as much as a row kept in f16, so
// they are counted (Dictionary::own_bytes) and few.
//   sampled_atoms   the newest vectors first ("reverse sequential sampling", the paper's choice);
//   guard_atoms     the vectors that the dictionary codes worst. How the paper picks its guard
//                   atoms is not described; this is the rule of Lexico's adaptive dictionary
//                   (arXiv 2412.08890) with a fixed number instead of a threshold. Inferred, not
//                   read.
// Both normalise the vector, so that it takes one atom with its norm as coefficient.
#pragma once

#include <algorithm>
#include <vector>

#include "pursuit.hpp"

LESSKV_BEGIN_NAMESPACE
namespace detail {

// Appends the row at unit norm; false if it is nothing.
inline bool append_unit(const float* row, Index dim, std::vector<float>& out) {
  double square = 0;
  for (Index c = 0; c < dim; ++c)
    square += static_cast<double>(row[c]) * static_cast<double>(row[c]);
  if (!(square > 0) || !std::isfinite(square)) return false;
  for (Index c = 0; c < dim; ++c)
    out.push_back(static_cast<float>(static_cast<double>(row[c]) / std::sqrt(square)));
  return true;
}

}  // namespace detail

// Up to `count` atoms [..][dim] from n rows.
inline std::vector<float> sampled_atoms(const float* rows, Index n, Index dim, Index count) {
  std::vector<float> out;
  for (Index i = n; i-- > 0 && static_cast<Index>(out.size()) < count * dim;)
    detail::append_unit(rows + i * dim, dim, out);
  return out;
}

inline std::vector<float> guard_atoms(const Pursuit& coder, const float* rows, Index n, Index count,
                                      const PursuitOptions& options) {
  const Index dim = coder.dictionary().dim(), steps = options.steps;
  using detail::uz;
  std::vector<std::int32_t> index(uz(n * steps)), counts(uz(n)), level(uz(n * steps));
  std::vector<float> coefficient(uz(n * steps)), energy(uz(n * (steps + 1)));
  coder.encode(rows, n, dim, options,
               {index.data(), coefficient.data(), counts.data(), level.data(), energy.data()});
  std::vector<std::pair<float, Index>> worst;
  for (Index i = 0; i < n; ++i) worst.emplace_back(-energy[uz(i * (steps + 1) + counts[uz(i)])], i);
  std::sort(worst.begin(), worst.end());
  std::vector<float> out;
  for (const auto& [minus_energy, i] : worst) {
    if (static_cast<Index>(out.size()) >= count * dim || !(minus_energy < 0)) break;
    detail::append_unit(rows + i * dim, dim, out);
  }
  return out;
}

LESSKV_END_NAMESPACE
