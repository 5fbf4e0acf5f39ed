// SPDX-License-Identifier: MIT
// Gram matrices of centred unit rows, and the way to their eigenvalues: the hot loops of matrix
// entropies, chosen at run time as those of kernels.hpp are.
#pragma once

#include <cmath>

#include "kernels.hpp"

LESSKV_BEGIN_NAMESPACE

namespace detail {
inline constexpr Index gram_panel = 16;  // channels that lie side by side
inline constexpr Index gram_rows = 64;   // rows of a block: panels of 128 channels stay in L1
}  // namespace detail

// A block is at most gram_rows rows as panels: number (row t, channel c) at panels[(c / 16) * 16 *
// gram_rows + t * 16 + c % 16]; channels behind the last are 0. `centre` and `shift` are as long as
// a row rounded up to 16, zeros behind its end.
struct GramTable {
  const char* name;
  // sum[c] += the sum of channel c over n rows, n at most gram_rows.
  void (*add_rows)(const float* x, Index stride, Index n, Index dim, double* sum);
  // Block = (x - centre) / |x - centre| - shift. A row without direction becomes 0. Returns the
  // number of the others.
  Index (*unit_rows)(const float* x, Index stride, Index n, Index dim, const float* centre,
                     const float* shift, float* panels);
  // out[i][j] += the sum over n rows of block i * block j, i and j channels rounded up to 16; only
  // panels on and below the diagonal.
  void (*gram)(const float* panels, Index n, Index dim, float* out);
  // Symmetric a[n][n], lower triangle, destroyed: its tridiagonal form with the same eigenvalues.
  // off[i] lies between i - 1 and i; off[0] is 0.
  void (*tridiagonalise)(double* a, Index n, double* diagonal, double* off);
};

LESSKV_END_NAMESPACE

#if LESSKV_DECLARE_ONLY

LESSKV_BEGIN_NAMESPACE
// The table for an instruction set of kernels.hpp.
const GramTable& gram_kernels(const KernelTable& like);
LESSKV_END_NAMESPACE

#else

#define LESSKV_BODY "gram.inc"
#include "each_isa.inc"
#undef LESSKV_BODY

LESSKV_BEGIN_NAMESPACE

// The table for an instruction set of kernels.hpp.
LESSKV_FUNCTION const GramTable& gram_kernels(const KernelTable& like) {
#if defined(__x86_64__)
  if (like.lanes == 16) return detail::avx512::gram_table;
  if (like.lanes == 8) return detail::avx2::gram_table;
#endif
  static_cast<void>(like);
  return detail::base::gram_table;
}

LESSKV_END_NAMESPACE

#endif  // LESSKV_DECLARE_ONLY

LESSKV_BEGIN_NAMESPACE
inline const GramTable& gram_kernels() { return gram_kernels(kernels()); }

LESSKV_END_NAMESPACE
