// SPDX-License-Identifier: MIT
// ScalarCodec: a scalar code as the store takes it.
#pragma once

#include <cmath>
#include <cstring>
#include <memory>
#include <span>
#include <vector>

#include "../core/error.hpp"
#include "../core/side_codec.hpp"
#include "scalar_code.hpp"

LESSKV_BEGIN_NAMESPACE
namespace detail {

class ScalarCodec final : public SideCodec {
 public:
  explicit ScalarCodec(const ScalarFormat& format, const ScalarKernels& kernels = scalar_kernels())
      : format_(format), kernels_(kernels), code_(side_code(format_, kernels)) {}
  ScalarCodec(const ScalarCodec&) = delete;

  std::size_t bytes(Index rows) const override { return uz(format_.bytes(rows)); }
  void encode(const float* rows, const std::uint32_t*, Index n, void* block) const override {
    kernels_.encode(format_, rows, n, block);
  }
  // Moves codes and scales; the mean stays that of the rows the block was made of.
  void gather(const void* block, const std::uint32_t*, std::span<const std::uint8_t> rows,
              void* out) const override {
    const ScalarFormat& f = format_;
    const auto* from = static_cast<const std::uint8_t*>(block);
    auto* to = static_cast<std::uint8_t*>(out);
    std::memset(out, 0, bytes(static_cast<Index>(rows.size())));
    std::memcpy(to, from, uz(f.mean_bytes()));
    for (std::size_t i = 0; i < rows.size(); ++i) {
      const std::uint8_t* source = from + f.mean_bytes() + rows[i] / 16 * f.tile_bytes();
      std::uint8_t* target = to + f.mean_bytes() + static_cast<Index>(i) / 16 * f.tile_bytes();
      const Index a = rows[i] % 16, b = static_cast<Index>(i) % 16;
      for (Index g = 0; g < f.groups(); ++g)
        std::memcpy(target + 2 * (16 * g + b), source + 2 * (16 * g + a), 2);
      source += f.scale_bytes();
      target += f.scale_bytes();
      for (const int bits : {f.low_bits(), f.high_bits()}) {
        if (bits == 0) continue;
        if (f.side == Side::keys)
          move_lanes(source, target, f.plane_lines(f.lines(), bits), a, b);
        else
          move_columns(source, target, bits, a, b);
        source += f.plane_lines(f.lines(), bits) * f.line_bytes();
        target += f.plane_lines(f.lines(), bits) * f.line_bytes();
      }
    }
  }
  const SideCode& code() const override { return code_; }
  const ScalarFormat& format() const { return format_; }

 private:
  // Keys: a row is four bytes of every line.
  static void move_lanes(const std::uint8_t* from, std::uint8_t* to, Index lines, Index a,
                         Index b) {
    for (Index line = 0; line < lines; ++line)
      std::memcpy(to + 64 * line + 4 * b, from + 64 * line + 4 * a, 4);
  }
  // Values: a row is every second or fourth byte of its lines, which share their bytes with other
  // lines.
  void move_columns(const std::uint8_t* from, std::uint8_t* to, int bits, Index a, Index b) const {
    const ScalarFormat& f = format_;
    const Index packed = 8 / bits, width = f.line_bytes(), rows = f.line_rows();
    const unsigned mask = (1u << bits) - 1;
    for (Index part = 0; part < f.padded() / f.line_channels(); ++part) {
      const Index source = f.first_line(a) + part, target = f.first_line(b) + part;
      const std::uint8_t* x = from + source / packed * width + a % rows;
      std::uint8_t* y = to + target / packed * width + b % rows;
      const auto down = static_cast<unsigned>(source % packed * bits);
      const auto up = static_cast<unsigned>(target % packed * bits);
      for (Index i = 0; i < width; i += rows)
        y[i] = static_cast<std::uint8_t>(y[i] | ((x[i] >> down & mask) << up));
    }
  }

  ScalarFormat format_;
  const ScalarKernels& kernels_;
  SideCode code_;
};

}  // namespace detail
LESSKV_END_NAMESPACE
