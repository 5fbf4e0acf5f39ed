// SPDX-License-Identifier: MIT
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <string>

#include "fixture.hpp"

namespace convert_test {

using namespace fixture;

class Convert : public testing::TestWithParam<const KernelTable*> {
 protected:
  std::vector<float> widen(DType type, const std::vector<std::uint16_t>& x) const {
    std::vector<float> out(x.size());
    GetParam()->to_f32(type, x.data(), out.data(), static_cast<Index>(x.size()));
    return out;
  }
  std::vector<std::uint16_t> narrow(DType type, const std::vector<float>& x) const {
    std::vector<std::uint16_t> out(x.size());
    GetParam()->from_f32(type, x.data(), out.data(), static_cast<Index>(x.size()));
    return out;
  }
};

// The value of a 16-bit pattern by its definition.
double value(std::uint16_t bits, int exponent_bits) {
  const int mantissa_bits = 15 - exponent_bits, bias = (1 << (exponent_bits - 1)) - 1;
  const int exponent = (bits & 0x7fff) >> mantissa_bits,
            mantissa = bits & ((1 << mantissa_bits) - 1);
  const double sign = bits & 0x8000 ? -1 : 1;
  if (exponent == (1 << exponent_bits) - 1) return mantissa ? NAN : sign * INFINITY;
  if (exponent == 0) return sign * std::ldexp(mantissa, 1 - bias - mantissa_bits);
  return sign * std::ldexp(mantissa + (1 << mantissa_bits), exponent - bias - mantissa_bits);
}

std::vector<std::uint16_t> all_patterns() {
  std::vector<std::uint16_t> x(65536);
  for (std::size_t i = 0; i < x.size(); ++i) x[i] = static_cast<std::uint16_t>(i);
  return x;
}

TEST_P(Convert, AllPatternsThereAndBack) {
  for (const auto& [type, exponent_bits] : {std::pair{DType::f16, 5}, {DType::bf16, 8}}) {
    const std::vector<std::uint16_t> patterns = all_patterns();
    const std::vector<float> wide = widen(type, patterns);
    const std::vector<std::uint16_t> back = narrow(type, wide);
    for (std::size_t i = 0; i < patterns.size(); ++i) {
      const double right = value(patterns[i], exponent_bits);
      if (std::isnan(right)) {
        ASSERT_TRUE(std::isnan(wide[i])) << i;
        ASSERT_TRUE(std::isnan(value(back[i], exponent_bits))) << i;
      } else {
        ASSERT_EQ(wide[i], right) << i;
        ASSERT_EQ(std::signbit(wide[i]), std::signbit(right)) << i;
        ASSERT_EQ(back[i], patterns[i]) << i;
      }
    }
  }
}

// Between every two neighbours: just below the middle, the middle (to even), just above.
TEST_P(Convert, RoundsToNearestEven) {
  for (const auto& [type, exponent_bits] : {std::pair{DType::f16, 5}, {DType::bf16, 8}}) {
    const int top = ((1 << exponent_bits) - 1) << (15 - exponent_bits);  // infinity
    std::vector<float> x;
    std::vector<std::uint16_t> right;
    for (int i = 0; i + 1 < top; ++i) {
      const auto low = static_cast<std::uint16_t>(i), high = static_cast<std::uint16_t>(i + 1);
      const auto middle =
          static_cast<float>((value(low, exponent_bits) + value(high, exponent_bits)) / 2);
      for (const float sign : {1.f, -1.f}) {
        const auto with_sign = [&](std::uint16_t bits) {
          return static_cast<std::uint16_t>(bits | (sign < 0 ? 0x8000 : 0));
        };
        x.push_back(sign * std::nextafter(middle, 0.f));
        right.push_back(with_sign(low));
        x.push_back(sign * middle);
        right.push_back(with_sign(i % 2 ? high : low));
        x.push_back(sign * std::nextafter(middle, INFINITY));
        right.push_back(with_sign(high));
      }
    }
    const std::vector<std::uint16_t> got = narrow(type, x);
    for (std::size_t i = 0; i < x.size(); ++i)
      ASSERT_EQ(got[i], right[i]) << x[i] << ' ' << name_of(type);
  }
  const std::vector<std::uint16_t> far =
      narrow(DType::f16, {65519.99f, 65520.f, 1e10f, -1e10f, INFINITY, -INFINITY});
  EXPECT_EQ(far, (std::vector<std::uint16_t>{0x7bff, 0x7c00, 0x7c00, 0xfc00, 0x7c00, 0xfc00}));
  const std::vector<std::uint16_t> bfar = narrow(DType::bf16, {3.4e38f, INFINITY, -INFINITY});
  EXPECT_EQ(bfar, (std::vector<std::uint16_t>{0x7f80, 0x7f80, 0xff80}));
}

TEST_P(Convert, AnyLengthTouchesNothingElse) {
  for (const DType type : {DType::f32, DType::f16, DType::bf16})
    for (Index n = 0; n <= 40; ++n) {
      const std::vector<float> x = normal(n, 5);
      std::vector<float> memory(uz(n) + 2, -77.f);
      GetParam()->from_f32(type, x.data(), memory.data(), n);
      EXPECT_EQ(memory.back(), -77.f);
      std::vector<float> back(uz(n) + 1, -77.f);
      GetParam()->to_f32(type, memory.data(), back.data(), n);
      for (Index i = 0; i < n; ++i) EXPECT_EQ(back[uz(i)], stored(x[uz(i)], type));
      EXPECT_EQ(back.back(), -77.f);
    }
}

TEST_P(Convert, KeysIntoLanesAndBack) {
  for (const DType type : {DType::f32, DType::f16, DType::bf16})
    for (const int dim : {1, 3, 16, 33, 64, 80, 128})
      for (const auto& [row, n] : {std::pair<Index, Index>{0, 64},
                                   {0, 1},
                                   {63, 1},
                                   {5, 30},
                                   {16, 16},
                                   {15, 2},
                                   {32, 32}}) {
        const Index stride = dim + 2;
        const std::vector<float> rows = normal(n * stride, 11);
        std::vector<float> block(uz(64 * dim), 0);
        std::vector<float> right = block;
        GetParam()->pack_keys(type, block.data(), dim, row, rows.data(), stride, n);
        for (Index r = 0; r < n; ++r)
          for (Index c = 0; c < dim; ++c)
            put(right.data(), (row + r) / 16 * dim * 16 + c * 16 + (row + r) % 16,
                rows[uz(r * stride + c)], type);
        ASSERT_EQ(std::memcmp(block.data(), right.data(), block.size() * 4), 0)
            << dim << ' ' << row << ' ' << n;
        std::vector<float> back(uz(n * stride), -77.f);
        GetParam()->unpack_keys(type, block.data(), dim, row, n, back.data(), stride);
        for (Index r = 0; r < n; ++r)
          for (Index c = 0; c < stride; ++c)
            ASSERT_EQ(back[uz(r * stride + c)],
                      c < dim ? stored(rows[uz(r * stride + c)], type) : -77.f);
      }
}

INSTANTIATE_TEST_SUITE_P(, Convert,
                         testing::ValuesIn(lesskv::kernel_tables().begin(),
                                           lesskv::kernel_tables().end()),
                         table_name);

}  // namespace convert_test
