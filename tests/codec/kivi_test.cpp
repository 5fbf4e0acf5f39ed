// SPDX-License-Identifier: MIT
// KIVI against its definition in double, in a block and in a cache.
#include <gtest/gtest.h>

#include <cmath>
#include <lesskv/codec/kivi.hpp>
#include <lesskv/core/head.hpp>
#include <lesskv/score/snapkv.hpp>
#include <random>
#include <vector>

#include "cache/support.hpp"

namespace kivi_test {

using namespace lesskv;
using detail::uz;

std::vector<float> rows_of(Index n, int dim, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> x(uz(n * dim));
  for (Index i = 0; i < n * dim; ++i)
    x[uz(i)] = normal(random) + 3 * std::sin(static_cast<float>(i % dim));
  return x;
}

// Of the numbers that share a scale: at most half a step away, and the step is what the paper says.
void expect_definition(Side side, Index n, int dim, int bits, int group) {
  const auto codec = KIVI{.bits = bits, .group = group}.codec(side, dim);
  const std::vector<float> x = rows_of(n, dim, 1);
  std::vector<std::byte> block(codec->bytes(n) + 8, std::byte{0x5a});
  const std::vector<std::uint32_t> positions(uz(n));
  codec->encode(x.data(), positions.data(), n, block.data());
  EXPECT_EQ(block[codec->bytes(n)], std::byte{0x5a}) << "wrote behind its end";
  std::vector<float> got(x.size());
  codec->decode(block.data(), positions.data(), 0, n, got.data());
  const Index rows = side == Side::keys ? group : 1, width = side == Side::keys ? 1 : group;
  double squares = 0, count = 0;
  for (Index r = 0; r < n; r += rows)
    for (Index c = 0; c < dim; c += width) {
      double low = INFINITY, high = -INFINITY;
      const auto each = [&](auto&& f) {
        for (Index i = r; i < std::min(n, r + rows); ++i)
          for (Index k = c; k < std::min<Index>(dim, c + width); ++k) f(uz(i * dim + k));
      };
      each([&](std::size_t i) {
        low = std::min(low, double{x[i]});
        high = std::max(high, double{x[i]});
      });
      const double step = (high - low) / ((1 << bits) - 1);
      each([&](std::size_t i) {
        // f16 of low and step moves a level by a few thousandths of the range.
        EXPECT_NEAR(got[i], x[i], 0.5 * step + 4e-3 * (high - low + std::abs(low)));
        if (!(step > 0)) return;  // one number: exact up to f16
        const double error = (double{got[i]} - double{x[i]}) / step;
        squares += error * error;
        ++count;
      });
    }
  // Errors of a uniform quantiser with many numbers a group: a twelfth of a step squared, or less
  // where ends of the range are met exactly.
  if (bits < 8 && n >= 16 && dim >= 24) {
    EXPECT_LT(squares / count, 1 / 10.0);
    EXPECT_GT(squares / count, 1 / 20.0);
  }
  // Any rows, one by one.
  std::vector<float> one(uz(dim));
  for (const Index r : {Index{0}, n / 2, n - 1}) {
    codec->decode(block.data(), positions.data(), r, 1, one.data());
    EXPECT_TRUE(std::equal(one.begin(), one.end(), got.begin() + r * dim));
  }
}

TEST(Kivi, BlocksEqualTheDefinition) {
  for (const Side side : {Side::keys, Side::values})
    for (const Index n : {1, 16, 31, 33, 64})
      for (const int dim : {1, 24, 64, 80, 128})
        for (const int bits : {2, 4, 8}) expect_definition(side, n, dim, bits, 32);
  expect_definition(Side::keys, 64, 64, 4, 64);
  expect_definition(Side::values, 64, 64, 4, 16);
}

TEST(Kivi, BitsANumberAreThoseOfThePaper) {
  for (const Side side : {Side::keys, Side::values}) {
    EXPECT_EQ(KIVI{.bits = 2}.codec(side, 128)->bytes(64) * 8, 64U * 128 * 3);
    EXPECT_EQ(KIVI{.bits = 4}.codec(side, 128)->bytes(64) * 8, 64U * 128 * 5);
  }
}

TEST(Kivi, ConstantRowsAreExactAndHugeOnesStayFinite) {
  const auto codec = KIVI{}.codec(Side::keys, 8);
  std::vector<float> x(64 * 8, 1.5f), got(x.size());
  x[3] = 60000.f;
  x[11] = -60000.f;
  std::vector<std::byte> block(codec->bytes(64));
  const std::vector<std::uint32_t> positions(64);
  codec->encode(x.data(), positions.data(), 64, block.data());
  codec->decode(block.data(), positions.data(), 0, 64, got.data());
  EXPECT_EQ(got[0], 1.5f);
  for (const float one : got) EXPECT_TRUE(std::isfinite(one));
}

// A cache: attention equals attention over what it reads back, and rows may leave coded blocks.
TEST(Kivi, InACache) {
  const Shape shape{.query_heads = 4, .kv_heads = 2, .head_dim = 32};
  const auto in = support::tensors(shape, 500, 3);
  KVCache cache(shape, KIVI{.bits = 4}, SnapKV{.window = 16},
                Keep{.tokens = 300, .sinks = 4, .recent = 32});
  KVCache half(shape, SnapKV{.window = 16}, Keep{.tokens = 200, .sinks = 4, .recent = 32});
  support::feed(cache, in, 0, 400);
  support::feed(half, in, 0, 400);
  cache.compress();
  half.compress();
  EXPECT_EQ(cache.size(0, 0) + cache.size(0, 1), 600);
  EXPECT_LT(cache.bytes(), half.bytes());
  for (Index t = 400; t < 500; t += 20) {
    const Matrix got = support::feed(cache, in, t, 20);
    const Matrix want = support::attention_by_definition(cache, 0, in[0].queries.middleRows(t, 20),
                                                         support::range(t, 20));
    EXPECT_LT(support::relative_error(got, want), 1e-3);
    cache.compress();
  }
}

TEST(Kivi, BadParametersAreNamed) {
  EXPECT_THROW((KIVI{.bits = 3}.check()), Error);
  EXPECT_THROW((KIVI{.value_bits = 5}.check()), Error);
  EXPECT_THROW((KIVI{.group = 7}.check()), Error);
}

}  // namespace kivi_test
