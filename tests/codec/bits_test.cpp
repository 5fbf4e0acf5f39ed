// SPDX-License-Identifier: MIT
// Bits by layer, head and side.
#include <gtest/gtest.h>

#include <lesskv/any.hpp>
#include <lesskv/codec/bits.hpp>
#include <lesskv/score/keydiff.hpp>

#include "cache/support.hpp"

namespace bits_test {

using namespace support;

const Shape shape{.layers = 2, .query_heads = 6, .kv_heads = 2, .head_dim = 32};

double error_of(const Matrix& got, const Matrix& want) {
  return double((got - want).squaredNorm()) / double(want.squaredNorm());
}

TEST(Bits, DistortionIsTheQuantisersOwn) {
  // Max, 1960, Table I.
  EXPECT_NEAR(Bits::distortion_of(2), 0.1175, 1e-4);
  EXPECT_NEAR(Bits::distortion_of(3), 0.03454, 1e-5);
  EXPECT_NEAR(Bits::distortion_of(4), 0.009497, 1e-5);
  EXPECT_NEAR(Bits::distortion_of(5), 0.002499, 1e-5);
  for (int b = 3; b < 6; ++b)  // convex
    EXPECT_GT(Bits::distortion_of(b - 1) - Bits::distortion_of(b),
              Bits::distortion_of(b) - Bits::distortion_of(b + 1));
}

// What is measured, by its definition in double.
TEST(Bits, MeasuresEnergies) {
  auto all = tensors(shape, 200, 3);
  all[1].queries *= 3;
  KVCache cache(shape, Keep{.sinks = 0}, Bits{});
  feed(cache, all, 0, 200);
  cache.compress();
  const auto states = cache.states<Bits>();
  for (int l = 0; l < 2; ++l)
    for (int h = 0; h < 2; ++h) {
      const Bits::State& got = states[static_cast<std::size_t>(2 * l + h)];
      const auto& in = all[static_cast<std::size_t>(l)];
      double queries = 0;
      for (Index t = 0; t < 200; ++t)
        queries += double(in.queries.block(t, h * 3 * 32, 1, 3 * 32).squaredNorm());
      EXPECT_EQ(got.asked, 600);
      EXPECT_NEAR(got.queries, queries, 1e-4 * queries);
      for (const auto& [rows, energy] :
           {std::pair{&in.keys, got.keys}, std::pair{&in.values, got.values}}) {
        double want = 0;
        for (Index first = 0; first < 200; first += 64) {
          const Index n = std::min<Index>(64, 200 - first);
          for (Index c = 0; c < 32; ++c) {
            double mean = 0;
            for (Index r = 0; r < n; ++r)
              mean += double((*rows)(first + r, h * 32 + c)) / double(n);
            for (Index r = 0; r < n; ++r)
              want += std::pow(double((*rows)(first + r, h * 32 + c)) - mean, 2);
          }
        }
        EXPECT_NEAR(energy, want / 200, 1e-3 * want / 200);
      }
    }
}

// Strong queries, large values: the heads that matter get more bits, at no more bytes.
TEST(Bits, SensitiveHeadsGetMore) {
  auto all = tensors(shape, 500, 4);
  all[0].queries.leftCols(3 * 32) *= 8;  // layer 0, KV head 0
  all[1].values.rightCols(32) *= 8;      // layer 1, KV head 1
  KVCache cache(shape, Keep{.sinks = 4}, Bits{.mean = 4.5, .relative = false});
  KVCache even(shape, Keep{.sinks = 4}, LloydMax{.bits = 5, .value_bits = 4});
  feed(cache, all, 0, 500);
  feed(even, all, 0, 500);
  cache.compress();
  even.compress();
  EXPECT_LE(cache.bytes(), even.bytes() + 1000);  // states
  EXPECT_GT(cache.bytes(), even.bytes() * 98 / 100);
  const auto error = [&](const auto& of, int l, int h, bool keys) {
    const auto& in = all[static_cast<std::size_t>(l)];
    return error_of(keys ? of.keys(l, h) : of.values(l, h),
                    (keys ? in.keys : in.values).middleCols(h * 32, 32));
  };
  EXPECT_LT(error(cache, 0, 0, true), 0.5 * error(even, 0, 0, true));
  EXPECT_LT(error(cache, 1, 1, false), 0.2 * error(even, 1, 1, false));
  EXPECT_GT(error(cache, 0, 1, true), 1.5 * error(even, 0, 1, true));
}

TEST(Bits, AttentionEqualsDecodeThenAttend) {
  auto all = tensors(shape, 700, 5);
  all[1].values.leftCols(32) *= 3;
  KVCache cache(shape, Keep{.tokens = 300, .sinks = 4}, KeyDiff{}, Tilted{}, Bits{.mean = 3.5});
  feed(cache, all, 0, 500);
  cache.compress();
  const Matrix before = cache.keys(1, 0);
  auto fork = cache.fork();
  for (Index at = 500; at < 700; at += 25) {
    const Matrix got = feed(cache, all, at, 25);
    const Matrix want =
        attention_by_definition(cache, 1, all[1].queries.middleRows(at, 25), range(at, 25));
    EXPECT_LT(double((got - want).cwiseAbs().maxCoeff()), 0.05);
    cache.compress();
  }
  EXPECT_EQ(fork.keys(1, 0), before);
  // As new: the next sequence is measured for itself.
  cache.clear();
  feed(cache, all, 0, 500);
  cache.compress();
  EXPECT_EQ(cache.keys(1, 0), before);
}

TEST(Bits, LimitInBytes) {
  const auto all = tensors(shape, 1000, 6);
  const std::size_t limit = 110000;
  KVCache cache(shape, Keep{.bytes = limit, .sinks = 4}, KeyDiff{}, Bits{.mean = 4});
  feed(cache, all, 0, 700);
  cache.compress();
  for (Index at = 700; at < 1000; ++at) {
    feed(cache, all, at, 1);
    cache.compress();
    ASSERT_LE(cache.bytes(), limit) << at;
  }
}

// Weights from elsewhere: no query is needed, and they decide.
TEST(Bits, GivenWeights) {
  const auto all = tensors(shape, 300, 7);
  KVCache cache(shape, Keep{.sinks = 0}, Bits{.mean = 4, .weights = {100, 1, 1, 1, 1, 1, 1, 0}});
  for (int l = 0; l < 2; ++l)
    cache.append(l, all[std::size_t(l)].k(0, 300), all[std::size_t(l)].v(0, 300));
  cache.compress();
  const double most = error_of(cache.keys(0, 0), all[0].keys.leftCols(32));
  const double some = error_of(cache.keys(0, 1), all[0].keys.rightCols(32));
  const double least = error_of(cache.values(1, 1), all[1].values.rightCols(32));
  EXPECT_LT(most, 0.2 * some);
  EXPECT_LT(some, 0.2 * least);
}

TEST(Bits, ByName) {
  const auto cache = make_cache("bits(mean=3.5,relative=false)", shape);
  EXPECT_EQ(cache.size(0, 0), 0);
  const auto error = [&](const char* text) { return message_of([&] { make_cache(text, shape); }); };
  const auto says = [](const std::string& got, const char* want) {
    EXPECT_NE(got.find(want), std::string::npos) << got;
  };
  says(error("bits+int(bits=4)"), "two policies say how rows are stored");
  says(error("keys(bits)+values(lm)"), "bits divides bits between keys and values");
  says(error("bits(mean=7)"), "Bits::mean");
  says(error("bits(key_weight=0)"), "Bits::key_weight");
  says(error("bits(weights=1:2)"), "Bits::weights has 2 entries");
  says(error("bits(weights=1:2:3:4:5:6:7:-1)"), "Bits::weights: a weight is negative");
  says(message_of([&] {
         const Keep keep{};
         AnyCache(shape, &keep, {Bits{}, LloydMax{}});
       }),
       "name no other codec");
}

// Queries that nobody showed are an error that changes nothing.
TEST(Bits, QueriesMustBeSeen) {
  const auto all = tensors(shape, 200, 8);
  KVCache cache(shape, Keep{.sinks = 4}, Bits{});
  for (int l = 0; l < 2; ++l)
    cache.append(l, all[std::size_t(l)].k(0, 200), all[std::size_t(l)].v(0, 200));
  EXPECT_NE(message_of([&] { cache.compress(); }).find("saw no query"), std::string::npos);
  EXPECT_EQ(cache.size(1, 1), 200);
  EXPECT_LT(double((cache.keys(0, 0) - all[0].keys.leftCols(32)).cwiseAbs().maxCoeff()), 0.01);
}

}  // namespace bits_test
