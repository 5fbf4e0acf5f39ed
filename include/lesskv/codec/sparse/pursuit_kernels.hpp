// SPDX-License-Identifier: MIT
// The hot loops of sparse coding, one body per instruction set, as kernels/kernels.hpp has them.
//
// How a vector is coded. The products of a block of vectors with all atoms are one matrix product.
// Each step of the pursuit then subtracts a row of the Gram matrix from the products and finds the
// largest in the same pass. The row is stored in 8 bits: a quarter of the memory (16 MiB instead of
// 64 for 4096 atoms, which no cache holds) and of the traffic, which is what a step costs. The
// choice stays exact, because the error of 8 bits is known: all atoms that it could hide are
// compared by their true products (1 to 2 a step), and the coefficient is always a true product.
#pragma once

#include "../../kernels/kernels.hpp"

#include "formats.hpp"

LESSKV_BEGIN_NAMESPACE

struct AtomSource {
  DType dtype;
  int dim;
  const void* base;  // [base_atoms][dim]
  Index base_atoms;
  const void* own;  // the atoms behind them
};

struct PursuitTask {
  // The dictionary.
  DType dtype;
  Index dim, atoms, padded;  // padded: a multiple of pursuit_chunk
  const void* base;
  Index base_atoms;
  const void* own;
  const float* panels;
  const std::int8_t* gram;                  // [atoms][padded]
  const float *gram_scale, *gram_diagonal;  // [atoms]
  // What is asked for.
  PursuitMethod method;
  int steps;
  float tolerance;      // stop at |residual| <= tolerance * |x|; 0: all steps
  const float* levels;  // [steps][level_count] or null: coefficients are not quantised
  int level_count;
  // The vector and its products with the atoms, [padded]; these are overwritten.
  const float* x;
  float* alpha;
  // Work space.
  float *residual, *most, *other, *basis, *triangle, *projection;
  std::int32_t* candidates;
  float exact_slack;
  // Out: [steps]; energy [steps + 1] or null; level [steps] with levels.
  std::int32_t* index;
  float* coefficient;
  float* energy;
  std::int32_t* level;
};

struct PursuitKernels {
  const char* name;
  Index panel_atoms;
  // out[vector][out_stride] = products of n vectors, [n][dim], with `padded` atoms in panels:
  // panels[(atom / panel_atoms * dim + c) * panel_atoms + atom % panel_atoms].
  void (*correlate)(const float* panels, Index padded, Index dim, const float* x, Index n,
                    float* out, Index out_stride);
  float (*quantise_row)(const float* row, Index padded, Index diagonal, std::int8_t* out);
  // Up to pursuit_walkers vectors with the same dictionary and options, each with work space of
  // its own (candidates may be shared); how many atoms each got.
  void (*pursue)(const PursuitTask* tasks, int n, std::int32_t* counts);
  void (*combine)(const AtomSource&, const std::uint16_t* index, const float* coefficient,
                  int count, float* out);
  // Codes of a block are [slot][n] indices and coefficients. `count` rows of it, decoded:
  // out[row * out_stride + c] += sum over slots of coefficient * atom.
  void (*combine_rows)(const AtomSource&, const std::uint16_t* index, const float* coefficient,
                       Index slots, Index n, Index count, float* out, Index out_stride);
  // Rows [n][dim] to their positions (direction 1) or back (-1), by the table of core/rope.hpp.
  void (*rotate_rows)(const float* table, Index pairs, bool interleaved,
                      const std::uint32_t* positions, float direction, float* rows, Index n,
                      Index dim);
  // out[query * out_stride + row] = query . row. Queries come four at a time.
  void (*multiply_rows)(const float* rows, Index n, Index dim, const float* queries,
                        Index query_rows, float* out, Index out_stride);
  // Attention over codes. Tables and sums of a query lie `stride` apart:
  //   table[query][atom] = atom . query
  //   out[query * out_stride + row] += sum over slots of coefficient * table[query][index]
  //   sums[query][index] += coefficient * weights[query * weight_stride + row]
  //   out[query * out_stride + c] += sum over atoms of sums[query][atom] * atom[c]
  void (*multiply_atoms)(DType, const void* atoms, Index count, Index dim, const float* queries,
                         Index query_rows, float* table, Index stride);
  void (*gather_codes)(const float* table, Index stride, Index query_rows,
                       const std::uint16_t* index, const float* coefficient, Index slots, Index n,
                       float* out, Index out_stride);
  void (*sum_codes)(DType, const void* atoms, Index count, Index dim, const float* sums,
                    Index stride, Index query_rows, float* out, Index out_stride);
  void (*scatter_codes)(const float* weights, Index weight_stride, Index query_rows,
                        const std::uint16_t* index, const float* coefficient, Index slots, Index n,
                        float* sums, Index stride);
};

namespace detail {
inline constexpr Index pursuit_chunk = 64;  // atoms whose largest product is remembered
inline constexpr int pursuit_walkers = 4;   // vectors that are coded in turn
}  // namespace detail

LESSKV_END_NAMESPACE

#if LESSKV_DECLARE_ONLY

LESSKV_BEGIN_NAMESPACE
// The pursuit kernels that go with a kernel table.
const PursuitKernels& pursuit_kernels(const KernelTable& table);
LESSKV_END_NAMESPACE

#else

#define LESSKV_BODY "../codec/sparse/pursuit_body.inc"
#include "../../kernels/each_isa.inc"
#undef LESSKV_BODY

LESSKV_BEGIN_NAMESPACE

// The pursuit kernels that go with a kernel table.
LESSKV_FUNCTION const PursuitKernels& pursuit_kernels(const KernelTable& table) {
#if defined(__x86_64__)
  if (table.lanes == 16) return detail::avx512::pursuit_table;
  if (table.lanes == 8) return detail::avx2::pursuit_table;
#endif
  (void)table;
  return detail::base::pursuit_table;
}

LESSKV_END_NAMESPACE

#endif  // LESSKV_DECLARE_ONLY

LESSKV_BEGIN_NAMESPACE

inline const PursuitKernels& pursuit_kernels() { return pursuit_kernels(kernels()); }

LESSKV_END_NAMESPACE
