// SPDX-License-Identifier: MIT
#include <gtest/gtest.h>

#include <cmath>
#include <lesskv/core/types.hpp>
#include <limits>

namespace types_test {

using namespace lesskv;

// Slow and obviously right: binary16 by its definition.
double half_value(std::uint16_t bits) {
  const double sign = (bits & 0x8000) ? -1 : 1;
  const int exponent = (bits >> 10) & 31;
  const int fraction = bits & 1023;
  if (exponent == 31)
    return fraction ? std::nan("") : sign * std::numeric_limits<double>::infinity();
  if (exponent == 0) return sign * std::ldexp(fraction, -24);
  return sign * std::ldexp(1024 + fraction, exponent - 25);
}

TEST(Types, EveryHalfConvertsExactlyAndBack) {
  for (int i = 0; i < 65536; ++i) {
    const f16 x{static_cast<std::uint16_t>(i)};
    const double want = half_value(x.bits);
    const float got = to_float(x);
    if (std::isnan(want)) {
      EXPECT_TRUE(std::isnan(got)) << i;
      EXPECT_TRUE(std::isnan(to_float(to_f16(got)))) << i;
      continue;
    }
    EXPECT_EQ(double{got}, want) << i;
    EXPECT_EQ(to_f16(got).bits, x.bits) << i;
  }
}

TEST(Types, HalfRoundsToNearestEven) {
  // Between every two neighbours: just below the middle, the middle, just above.
  for (int i = 0; i < 0x7bff; ++i) {
    const float low = to_float(f16{static_cast<std::uint16_t>(i)});
    const float high = to_float(f16{static_cast<std::uint16_t>(i + 1)});
    const float middle = (low + high) / 2;  // exact in f32
    EXPECT_EQ(to_f16(middle).bits, (i & 1) ? i + 1 : i);
    EXPECT_EQ(to_f16(std::nextafter(middle, 0.f)).bits, i);
    EXPECT_EQ(to_f16(std::nextafter(middle, high)).bits, i + 1);
  }
  EXPECT_EQ(to_f16(65519.f).bits, 0x7bff);
  EXPECT_EQ(to_f16(65520.f).bits, 0x7c00);
  EXPECT_EQ(to_f16(-1e30f).bits, 0xfc00);
}

TEST(Types, EveryBrainFloatConvertsAndRoundsToNearestEven) {
  for (int i = 0; i < 65536; ++i) {
    const bf16 x{static_cast<std::uint16_t>(i)};
    const float value = to_float(x);
    if (std::isnan(value)) {
      EXPECT_TRUE(std::isnan(to_float(to_bf16(value)))) << i;
    } else {
      EXPECT_EQ(to_bf16(value).bits, x.bits) << i;
    }
  }
  const float one = 1.f, next = to_float(bf16{0x3f81});
  EXPECT_EQ(to_bf16((one + next) / 2).bits, 0x3f80);                       // tie to even
  EXPECT_EQ(to_bf16(std::nextafter((one + next) / 2, 2.f)).bits, 0x3f81);  // above the tie
}

TEST(Types, LargestIsTheLastThatStaysFinite) {
  for (const DType type : {DType::f16, DType::bf16}) {
    const float edge = largest(type);
    const float beyond = std::nextafter(edge, std::numeric_limits<float>::infinity());
    const auto stored = [&](float x) {
      return type == DType::f16 ? to_float(to_f16(x)) : to_float(to_bf16(x));
    };
    EXPECT_TRUE(std::isfinite(stored(edge))) << name_of(type);
    EXPECT_TRUE(std::isinf(stored(beyond))) << name_of(type);
  }
}

}  // namespace types_test
