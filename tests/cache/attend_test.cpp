// SPDX-License-Identifier: MIT
// attend(): everything it may be told, against attention by its definition.
#include <gtest/gtest.h>

#include <thread>

#include "support.hpp"

namespace attend_test {

using namespace support;

struct Case {
  int query_heads, kv_heads, head_dim, value_dim;
  DType dtype;
};

class Attend : public testing::TestWithParam<Case> {};

double bound(DType dtype) {
  return dtype == DType::f32 ? 2e-5 : 1e-3;
}  // the cache's own rounding is in the oracle too

TEST_P(Attend, ChunkedCausalAttentionEqualsTheDefinition) {
  const Case& c = GetParam();
  const Shape shape{.layers = 1,
                    .query_heads = c.query_heads,
                    .kv_heads = c.kv_heads,
                    .head_dim = c.head_dim,
                    .value_dim = c.value_dim,
                    .dtype = c.dtype};
  const auto in = tensors(shape, 300, 5);
  KVCache cache(shape);
  Index at = 0;
  for (const Index n : {1, 15, 1, 47, 64, 1, 130, 41}) {
    const Matrix got = feed(cache, in, at, n);
    const Matrix want =
        attention_by_definition(cache, 0, in[0].queries.middleRows(at, n), range(at, n));
    EXPECT_LT(relative_error(got, want), bound(c.dtype)) << "tokens " << at << " + " << n;
    at += n;
  }
  EXPECT_EQ(cache.size(0, c.kv_heads - 1), 300);
}

INSTANTIATE_TEST_SUITE_P(
    Shapes, Attend,
    testing::Values(Case{1, 1, 64, 0, DType::f32}, Case{9, 3, 64, 0, DType::f16},
                    Case{8, 2, 128, 0, DType::bf16}, Case{2, 2, 1, 0, DType::f32},
                    Case{16, 1, 40, 24, DType::f16}, Case{6, 2, 80, 16, DType::f32},
                    Case{3, 3, 256, 0, DType::f16}, Case{4, 4, 7, 3, DType::f32}),
    [](const auto& tested) {
      const Case& c = tested.param;
      return "q" + std::to_string(c.query_heads) + "kv" + std::to_string(c.kv_heads) + "d" +
             std::to_string(c.head_dim) + "v" + std::to_string(c.value_dim) + name_of(c.dtype);
    });

struct Options : testing::Test {
  const Shape shape{.query_heads = 4, .kv_heads = 2, .head_dim = 32, .dtype = DType::f32};
  const std::vector<Tensors> in = tensors(shape, 100, 9);
  KVCache<> cache{shape};
  Matrix out{10, 128};

  void SetUp() override { cache.append(0, in[0].k(0, 100), in[0].v(0, 100)); }
  void expect_equal(const AttendOptions& options) {
    cache.attend(0, in[0].q(90, 10), out.data(), options);
    const auto at = options.positions.empty()
                        ? range(90, 10)
                        : std::vector<Position>(options.positions.begin(), options.positions.end());
    const Matrix want =
        attention_by_definition(cache, 0, in[0].queries.middleRows(90, 10), at, options);
    EXPECT_TRUE(out.allFinite());
    EXPECT_LT(relative_error(out, want), 2e-5);
  }
};

TEST_F(Options, Scale) { expect_equal({.scale = 0.7f}); }
TEST_F(Options, Softcap) { expect_equal({.scale = 1.f, .softcap = 5.f}); }
TEST_F(Options, SinkLogits) {
  const std::vector<float> sinks{0.f, 3.f, -2.f, 10.f};
  expect_equal({.sink_logits = sinks});
}
TEST_F(Options, BiasPerRow) {
  const Matrix b = normal(2, 100, 3);
  const std::vector<std::span<const float>> bias{{b.row(0).data(), 100}, {b.row(1).data(), 100}};
  expect_equal({.bias = bias});
  Matrix hidden = b;
  hidden.row(0).head(50).setConstant(-INFINITY);
  const std::vector<std::span<const float>> half{{hidden.row(0).data(), 100},
                                                 {hidden.row(1).data(), 100}};
  expect_equal({.bias = half});
}
TEST_F(Options, MaskOfATree) {
  std::vector<std::uint8_t> mask(100, 0);
  for (std::size_t i = 0; i < 10; ++i) mask[i * 10 + i] = mask[i * 10] = mask[i * 10 + i / 2] = 1;
  expect_equal({.mask = mask.data()});
  const Matrix b = normal(2, 100, 4);
  const std::vector<std::span<const float>> bias{{b.row(0).data(), 100}, {b.row(1).data(), 100}};
  expect_equal({.bias = bias, .mask = mask.data()});
}
TEST_F(Options, QueriesAtOtherPositions) {
  std::vector<Position> at;
  for (int i = 0; i < 10; ++i) at.push_back(Position{i * 10});
  expect_equal({.positions = at});
}
TEST_F(Options, AQueryThatSeesNothingGivesZeros) {
  KVCache<> late{shape};
  late.append(0, in[0].k(0, 2), in[0].v(0, 2), std::vector<Position>{Position{5}, Position{6}});
  const std::vector<Position> before{Position{3}};
  Matrix zero(1, 128);
  late.attend(0, in[0].q(0, 1), zero.data(), {.positions = before});
  EXPECT_TRUE((zero.array() == 0).all());
}

TEST_F(Options, WrongOptionsNameTheArgument) {
  const auto message = [&](const AttendOptions& options, Index tokens = 10) -> std::string {
    try {
      cache.attend(0, in[0].q(0, tokens), out.data(), options);
    } catch (const Error& error) {
      return error.what();
    }
    return "no error";
  };
  const std::vector<float> three(3);
  EXPECT_NE(message({.scale = -1}).find("scale"), std::string::npos);
  EXPECT_NE(message({.softcap = NAN}).find("softcap"), std::string::npos);
  EXPECT_NE(message({.sink_logits = three}).find("sink_logits"), std::string::npos);
  const std::vector<std::span<const float>> bias{three, three};
  EXPECT_NE(message({.bias = bias}).find("bias"), std::string::npos);
  const std::vector<Position> two(2);
  EXPECT_NE(message({.positions = two}).find("positions"), std::string::npos);
  KVCache<> empty{shape};
  EXPECT_THROW(empty.attend(0, in[0].q(0, 1), out.data()), Error);
}

// ---- long heads are read in parts, long prompts in pieces of tokens

TEST(Parts, LongHeadsWithEveryOptionEqualTheDefinition) {
  const Shape shape{.query_heads = 4, .kv_heads = 2, .head_dim = 16, .dtype = DType::f32};
  const Index n = 6200;
  const auto in = tensors(shape, n, 12);
  KVCache<> cache{shape};
  cache.append(0, in[0].k(0, n), in[0].v(0, n));
  Matrix hidden = normal(2, n, 4);
  hidden.row(0).head(2500).setConstant(-INFINITY);  // all of the first part, and more
  const std::vector<std::span<const float>> bias{{hidden.row(0).data(), std::size_t(n)},
                                                 {hidden.row(1).data(), std::size_t(n)}};
  const std::vector<float> sinks{0.f, 3.f, -2.f, 10.f};
  const std::vector<std::uint8_t> mask{1, 0, 1, 1};
  const std::vector<Position> early{Position{100}, Position{3000}};
  for (const AttendOptions& options :
       {AttendOptions{}, AttendOptions{.sink_logits = sinks}, AttendOptions{.bias = bias},
        AttendOptions{.bias = bias, .mask = mask.data()}, AttendOptions{.positions = early}}) {
    Matrix out(2, 64);
    cache.attend(0, in[0].q(n - 2, 2), out.data(), options);
    const Matrix want =
        attention_by_definition(cache, 0, in[0].queries.middleRows(n - 2, 2),
                                options.positions.empty() ? range(n - 2, 2) : early, options);
    EXPECT_LT(relative_error(out, want), 2e-5);
  }
}

TEST(Parts, LongPromptsAndAnExecutorChangeNoBit) {
  const Shape shape{.query_heads = 2, .kv_heads = 1, .head_dim = 16};
  const auto in = tensors(shape, 4500, 13);
  KVCache<> serial{shape}, parallel{shape};
  parallel.set_executor([](Index count, const std::function<void(Index)>& task) {
    std::thread other([&] {
      for (Index i = 1; i < count; i += 2) task(i);
    });
    for (Index i = 0; i < count; i += 2) task(i);
    other.join();
  });
  Index at = 0;
  for (const Index n : {3900, 599, 1}) {
    Matrix a(n, 32), b(n, 32);
    for (KVCache<>* cache : {&serial, &parallel}) {
      cache->append(0, in[0].k(at, n), in[0].v(at, n));
      cache->attend(0, in[0].q(at, n), (cache == &serial ? a : b).data());
    }
    EXPECT_EQ(a, b);
    at += n;
    if (n == 3900) continue;
    const Matrix want =
        attention_by_definition(serial, 0, in[0].queries.middleRows(at - n, n), range(at - n, n));
    EXPECT_LT(relative_error(a, want), 1e-3);
  }
}

// ---- views

TEST(Views, EveryLayoutStoresTheSameRows) {
  const Shape shape{.query_heads = 2, .kv_heads = 2, .head_dim = 6, .dtype = DType::f32};
  const Index n = 70;
  const Tensors in(shape, n, 2);
  KVCache want(shape);
  want.append(0, in.k(0, n), in.v(0, n));

  // [head][token][channel] keys, [head][channel][token] values (transposed V).
  std::vector<float> by_head(static_cast<std::size_t>(n * 12)), transposed(by_head.size());
  std::vector<float> paged(static_cast<std::size_t>(2 * n * 12));
  std::vector<std::int32_t> slots(static_cast<std::size_t>(n));
  for (Index t = 0; t < n; ++t) {
    slots[static_cast<std::size_t>(t)] = static_cast<std::int32_t>((t * 37) % (2 * n - 1));
    for (int h = 0; h < 2; ++h)
      for (int c = 0; c < 6; ++c) {
        by_head[static_cast<std::size_t>((h * n + t) * 6 + c)] = in.keys(t, h * 6 + c);
        transposed[static_cast<std::size_t>((h * 6 + c) * n + t)] = in.values(t, h * 6 + c);
        paged[static_cast<std::size_t>(slots[static_cast<std::size_t>(t)] * 12 + h * 6 + c)] =
            in.keys(t, h * 6 + c);
      }
  }
  const View keys = View::by_head(by_head.data(), DType::f32, n, 6);
  const View values{.data = transposed.data(),
                    .tokens = n,
                    .token_stride = 1,
                    .head_stride = 6 * n,
                    .channel_stride = n};
  View pages = View::packed(paged.data(), 2 * n, 2, 6);
  pages.tokens = n;
  pages.rows = slots;

  KVCache strided(shape), slotted(shape), split(shape);
  strided.append(0, keys, values);
  slotted.append(0, pages, values);
  split.append(0, pages.tokens_from(0, 33), values.tokens_from(0, 33));
  split.append(0, pages.tokens_from(33, n - 33), values.tokens_from(33, n - 33));
  for (const auto* cache : {&strided, &slotted, &split})
    for (int h = 0; h < 2; ++h) {
      EXPECT_EQ(cache->keys(0, h), want.keys(0, h));
      EXPECT_EQ(cache->values(0, h), want.values(0, h));
    }
}

TEST(Views, HalvesAndBrainFloatsAreReadAndStoredExactly) {
  for (const DType type : {DType::f16, DType::bf16}) {
    const Shape shape{.query_heads = 1, .kv_heads = 1, .head_dim = 16, .dtype = type};
    std::vector<std::uint16_t> bits;
    for (std::uint16_t i = 0; i < 20 * 16; ++i)
      bits.push_back(static_cast<std::uint16_t>(0x2000u + i * 37u));
    KVCache cache(shape);
    const View view = View::packed(bits.data(), type, 20, 1, 16);
    cache.append(0, view, view);
    for (int i = 0; i < 20 * 16; ++i) {
      const std::uint16_t b = bits[static_cast<std::size_t>(i)];
      const float want = type == DType::f16 ? to_float(f16{b}) : to_float(bf16{b});
      EXPECT_EQ(cache.keys(0, 0)(i / 16, i % 16), want);
      EXPECT_EQ(cache.values(0, 0)(i / 16, i % 16), want);
    }
  }
}

TEST(Views, AReaderReplacesTheArithmetic) {
  const Shape shape{.query_heads = 1, .kv_heads = 1, .head_dim = 4, .dtype = DType::f32};
  const View view{.tokens = 3, .read = [](const void*, Index row, int, int channels, float* out) {
                    for (int c = 0; c < channels; ++c) out[c] = static_cast<float>(row * 10 + c);
                  }};
  KVCache cache(shape);
  cache.append(0, view, view);
  EXPECT_EQ(cache.keys(0, 0)(2, 3), 23.f);
}

}  // namespace attend_test
