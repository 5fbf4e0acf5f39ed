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

#if defined(__clang__)
#define LESSKV_UNROLL _Pragma("clang loop unroll(full)")
#else
#define LESSKV_UNROLL _Pragma("GCC unroll 16")
#endif
#define LESSKV_INLINE inline __attribute__((always_inline))

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wpsabi"  // vectors are passed to inlined functions only
#if !defined(__clang__)
#pragma GCC diagnostic ignored "-Wignored-attributes"
#endif

#define LESSKV_KERNELS gram_base
#define LESSKV_LANES 4
#include "gram.inc"

#if defined(__x86_64__)

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#endif
#define LESSKV_KERNELS gram_avx2
#define LESSKV_LANES 8
#include "gram.inc"
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#if defined(__clang__)
#pragma clang attribute push(                                                    \
    __attribute__((target("avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq"))), \
    apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq")
#endif
#define LESSKV_KERNELS gram_avx512
#define LESSKV_LANES 16
#include "gram.inc"
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#endif  // __x86_64__

#pragma GCC diagnostic pop
#undef LESSKV_UNROLL
#undef LESSKV_INLINE

LESSKV_BEGIN_NAMESPACE

// The table for an instruction set of kernels.hpp.
inline const GramTable& gram_kernels(const KernelTable& like) {
#if defined(__x86_64__)
  if (like.lanes == detail::gram_avx512::lanes) return detail::gram_avx512::table;
  if (like.lanes == detail::gram_avx2::lanes) return detail::gram_avx2::table;
#endif
  static_cast<void>(like);
  return detail::gram_base::table;
}
inline const GramTable& gram_kernels() { return gram_kernels(kernels()); }

LESSKV_END_NAMESPACE
