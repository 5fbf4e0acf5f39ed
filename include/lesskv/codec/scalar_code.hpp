// SPDX-License-Identifier: MIT
// Scalar codes: every number of a row becomes 2 to 8 bits, a row (or 32 channels of it) has one f16
// scale. This file is the format and its kernels; which levels, and what happens to a row before,
// is said by the codecs (lloyd_max.hpp, int_code.hpp).
//
// A number is scale * level / 127, level an 8-bit integer out of a table of 2^bits. Attention stays
// in integers: levels times an 8-bit query for the scores, levels times a weight for the values, of
// 8 bits where levels have up to 4, else of 16; sums are exact, so that every instruction set gives
// the same result. Levels of up to 4 bits are small multiples of a step: as numbers without a sign
// (`units`) times 8-bit numbers their products add up in 16 bits, many to an instruction.
//
// One side (keys or values) of a block of up to 64 rows:
//   mean    f16[dim], if the code removes it: the mean of the rows
//   tiles   of 16 rows: scales f16[groups][16], then the codes in bit planes
// Codes are cut into lines. Keys: a line is 4 channels of 16 rows, byte 4 * row + channel. Values of
// up to 4 bits: a line is 4 rows of half the channels, byte 4 * channel + row; of more bits: 2 rows
// of all channels, byte 2 * channel + row. A plane of b bits packs 8 / b lines into one: bits
// [b * k, b * k + b) of a byte belong to line k. Codes of 3, 5 and 6 bits are two planes, the first
// with the low bits.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <vector>

#include "../core/scratch.hpp"
#include "../core/side_codec.hpp"
#include "../kernels/kernels.hpp"

LESSKV_BEGIN_NAMESPACE
namespace detail {

// What a row of one side is turned into.
struct ScalarFormat {
  Side side = Side::keys;
  int dim = 0;           // channels
  int bits = 4;          // 2, 3, 4, 5, 6 or 8
  int group = 0;         // channels that share a scale: 32; 0: all of a row
  bool mean = false;     // the mean of the block is removed first
  bool rotated = false;  // Hadamard over the channels first
  float top = 0;         // > 0: levels are those of a unit Gaussian, 127 stands for this number
  bool fit = false;      // the scale is fitted to the levels by least squares
  alignas(16) std::array<std::int8_t, 64> levels{};  // of every code, ascending; unused for 8 bits
  // Up to 4 bits: level = (unit << shift) + base. `products` pairs of a unit times a number of up to
  // `limit` add up in 16 bits.
  alignas(16) std::array<std::int8_t, 16> units{};
  int shift = 0, base = 0, products = 1, limit = 127;
  // For encoding: in half units, the number below which code i ends, less one.
  std::array<std::int8_t, 16> borders{};
  // For encoding, by set_levels(): the levels as f32; of 5 and 6 bits also the nearest level of every
  // half level from -128 on, and below it, in its low byte, the code.
  std::array<float, 64> values{};
  std::array<std::int16_t, 512> nearest{};

  // Up to 4 bits: `unit(code)` for all codes, ascending, from 0 on.
  template <class Unit>
  void set_units(int shift_by, int from, Unit&& unit) {
    shift = shift_by;
    base = from;
    for (int i = 0; i < 1 << bits; ++i) units[uz(i)] = static_cast<std::int8_t>(unit(i));
    for (int i = 0; i + 1 < 1 << bits; ++i)
      borders[uz(i)] = static_cast<std::int8_t>(units[uz(i)] + units[uz(i + 1)] - 1);
    const int largest = units[uz((1 << bits) - 1)];
    // Four at least, eight where that leaves the numbers 7 bits.
    products = 16 * 127 * largest <= 32767 ? 8 : 4;
    limit = std::min(127, 32767 / (2 * products * largest));
    set_levels([&](int code) { return (units[uz(code)] << shift) + base; });
  }

  // `level(code)` for all codes, ascending, in [-128, 127].
  template <class Level>
  void set_levels(Level&& level) {
    const int n = 1 << bits;
    for (int i = 0; i < n; ++i) {
      levels[uz(i)] = static_cast<std::int8_t>(level(i));
      values[uz(i)] = static_cast<float>(levels[uz(i)]);
    }
    if (bits <= 4) return;
    for (int half = 0, code = 0; half < 512; ++half) {
      // The border of two codes is a whole number of half levels.
      while (code + 1 < n && half - 256 >= levels[uz(code)] + levels[uz(code + 1)]) ++code;
      nearest[uz(half)] = static_cast<std::int16_t>(levels[uz(code)] * 256 + code);
    }
  }

  int padded() const { return static_cast<int>(round_up(dim, side == Side::keys ? 4 : 32)); }
  int groups() const { return group > 0 ? (dim + 31) / 32 : 1; }
  int group_width() const { return group > 0 ? 32 : padded(); }
  int group_of(Index channel) const { return group > 0 ? static_cast<int>(channel / 32) : 0; }
  // Values: rows and channels of a line.
  bool has_units() const { return bits <= 4; }
  Index line_rows() const { return has_units() ? 4 : 2; }
  Index line_channels() const { return has_units() ? padded() / 2 : padded(); }
  // The line of a row of a tile that has channel 0; further channels follow in the next lines.
  Index first_line(Index lane) const { return has_units() ? lane / 4 * 2 : lane / 2; }
  // Where the code of a value lies, planes apart.
  Index byte_of_value(Index lane, Index channel) const {
    const Index width = line_channels();
    return (first_line(lane) + channel / width) * line_bytes() + line_rows() * (channel % width) +
           lane % line_rows();
  }
  Index lines() const { return side == Side::keys ? padded() / 4 : 8; }
  Index line_bytes() const { return side == Side::keys ? 64 : 2 * padded(); }
  // Bits of the first plane and of the second.
  int low_bits() const { return bits == 3 ? 2 : bits == 5 || bits == 6 ? 4 : bits; }
  int high_bits() const { return bits - low_bits(); }
  static Index plane_lines(Index lines, int b) { return b == 0 ? 0 : (lines * b + 7) / 8; }

  Index mean_bytes() const { return mean ? round_up(2 * dim, 32) : 0; }
  Index scale_bytes() const { return 2 * 16 * groups(); }
  Index tile_bytes() const {
    return scale_bytes() +
           (plane_lines(lines(), low_bits()) + plane_lines(lines(), high_bits())) * line_bytes();
  }
  // Of a block with room for `rows` rows.
  Index bytes(Index rows) const { return mean_bytes() + (rows + 15) / 16 * tile_bytes(); }
};

// The length of the Hadamard transform: the largest power of two that divides the channels; it is
// applied to each such part of a row.
inline Index hadamard_width(Index dim) { return dim & -dim; }

// The kernels of one instruction set.
struct ScalarKernels {
  const char* name;
  // As in SideCode; context is the ScalarFormat.
  void (*prepare)(const SideCode&, const float*, Index, Index, float*);
  void (*scores)(const SideCode&, const BlockRef&, float*, Index, float*, const char*, Index);
  void (*values)(const SideCode&, const BlockRef&, const float*, Index, float*, float*, const char*,
                 Index);
  void (*finish)(const SideCode&, float*, Index, float*);
  void (*decode)(const SideCode&, const void*, const std::uint32_t*, Index, Index, float*);
  // Rows [n][dim] into a block, everything behind them zero.
  void (*encode)(const ScalarFormat&, const float* rows, Index n, void* block);
};

}  // namespace detail
LESSKV_END_NAMESPACE

#if LESSKV_DECLARE_ONLY

LESSKV_BEGIN_NAMESPACE
namespace detail {
// The table of the same instruction set as a table of attention.
const ScalarKernels& scalar_kernels(const KernelTable& table);
}  // namespace detail
LESSKV_END_NAMESPACE

#else

#define LESSKV_BODY "../codec/scalar_code.inc"
#include "../kernels/each_isa.inc"
#undef LESSKV_BODY

LESSKV_BEGIN_NAMESPACE
namespace detail {

// The table of the same instruction set as a table of attention.
LESSKV_FUNCTION const ScalarKernels& scalar_kernels(const KernelTable& table) {
#if defined(__x86_64__)
  if (table.lanes == 16) return avx512::scalar_kernels;
  if (table.lanes == 8) return avx2::scalar_kernels;
#else
  (void)table;
#endif
  return base::scalar_kernels;
}

}  // namespace detail
LESSKV_END_NAMESPACE

#endif  // LESSKV_DECLARE_ONLY

LESSKV_BEGIN_NAMESPACE
namespace detail {

inline const ScalarKernels& scalar_kernels() { return scalar_kernels(kernels()); }

// How attention reads a format; `format` must outlive it.
inline SideCode side_code(const ScalarFormat& format,
                          const ScalarKernels& kernel = scalar_kernels()) {
  const Index rows = few_query_rows, dim = format.dim, groups = format.groups();
  SideCode code{};
  code.context = &format;
  code.dim = dim;
  // Rotated queries, their scales, their codes; a block of levels.
  const Index levels = kernel_block * format.padded() / 4;
  code.key_workspace = rows * (dim + 16 + groups) + rows * format.padded() / 4 + levels + 64;
  code.value_workspace = levels + rows * (kernel_block / 2 * groups + 2 * groups) + 64 +
                         kernel_block * (groups + 1) + format.padded();
  code.acc_width = format.rotated ? dim : 0;
  code.prepare = kernel.prepare;
  code.scores = kernel.scores;
  code.values = kernel.values;
  code.finish = kernel.finish;
  code.decode = kernel.decode;
  return code;
}

}  // namespace detail
LESSKV_END_NAMESPACE
