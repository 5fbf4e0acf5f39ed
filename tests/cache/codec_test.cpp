// SPDX-License-Identifier: MIT
// Caches whose closed rows are coded.
#include <gtest/gtest.h>

#include <lesskv/codec/int_code.hpp>
#include <lesskv/codec/lloyd_max.hpp>
#include <lesskv/score/keydiff.hpp>
#include <lesskv/score/lagkv.hpp>
#include <lesskv/score/snapkv.hpp>

#include "support.hpp"

namespace codec_test {

using namespace support;

const Shape shape{.layers = 2, .query_heads = 6, .kv_heads = 2, .head_dim = 32};

template <class Cache>
void expect_equals_definition(const Cache& cache, const std::vector<Tensors>& all, Index first,
                              const Matrix& got, double bound) {
  const Tensors& last = all.back();
  const Matrix q = last.queries.middleRows(first, got.rows());
  const Matrix want = attention_by_definition(cache, shape.layers - 1, q, range(first, got.rows()));
  EXPECT_LT((got - want).cwiseAbs().maxCoeff(), bound);
}

// Law 6, and that queries of the same pass see their own rows exactly.
TEST(CodedCache, AttentionEqualsDecodeThenAttend) {
  const auto all = tensors(shape, 700, 1);
  KVCache cache(shape, Keep{.fraction = 0.5, .sinks = 5}, LagKV{.lag = 32}, LloydMax{});
  feed(cache, all, 0, 500);
  cache.compress();
  Index at = 500;
  for (const Index n : {1, 1, 40, 1, 100, 1}) {
    const Matrix got = feed(cache, all, at, n);
    expect_equals_definition(cache, all, at, got, 0.02);
    at += n;
    cache.compress();
  }
}

// Which rows stay does not depend on how the others are stored: a chunk is judged while it is exact.
TEST(CodedCache, JudgeOnceKeepsTheSameRowsForAnySplit) {
  const auto all = tensors(shape, 800, 2);
  const Keep keep{.fraction = 0.3, .sinks = 4};
  KVCache exact(shape, keep, LagKV{.lag = 32});
  feed(exact, all, 0, 800);
  exact.compress();
  for (const Index step : {1, 7, 100, 800}) {
    KVCache coded(shape, keep, LagKV{.lag = 32}, LloydMax{.bits = 3});
    for (Index at = 0; at < 800; at += step) {
      feed(coded, all, at, std::min(step, 800 - at));
      coded.compress();
    }
    for (int l = 0; l < shape.layers; ++l)
      for (int h = 0; h < shape.kv_heads; ++h)
        EXPECT_EQ(coded.positions(l, h), exact.positions(l, h)) << "step " << step;
  }
}

TEST(CodedCache, SinksAndOpenRowsStayExact) {
  const auto all = tensors(shape, 400, 3);
  KVCache exact(shape);
  KVCache coded(shape, Keep{.sinks = 6, .recent = 50}, IntCode{.bits = 4});
  for (auto* part : {&all}) {
    feed(exact, *part, 0, 400);
    feed(coded, *part, 0, 400);
  }
  coded.compress();
  const Matrix want = exact.keys(1, 1), got = coded.keys(1, 1);
  ASSERT_EQ(got.rows(), 400);
  EXPECT_EQ(got.topRows(6), want.topRows(6));
  EXPECT_EQ(got.bottomRows(50), want.bottomRows(50));
  const Matrix middle = got.middleRows(6, 344) - want.middleRows(6, 344);
  EXPECT_GT(middle.squaredNorm(), 0);
  EXPECT_LT(middle.squaredNorm() / want.middleRows(6, 344).squaredNorm(), 0.012);
  // A good quarter of the bytes for the rows that are coded, all of them for 80 (sinks and tail by tiles).
  EXPECT_LT(coded.bytes(), exact.bytes() / 2);
}

// Rows appended before anything is closed: bit for bit the exact cache.
TEST(CodedCache, NothingClosedIsBitIdentical) {
  const auto all = tensors(shape, 100, 4);
  KVCache exact(shape);
  KVCache coded(shape, Keep{.recent = 1000}, LloydMax{});
  for (const auto& [first, n] : {std::pair<Index, Index>{0, 90}, {90, 1}, {91, 9}}) {
    EXPECT_EQ(feed(exact, all, first, n), feed(coded, all, first, n));
    coded.compress();
  }
}

TEST(CodedCache, OneSideAlone) {
  const auto all = tensors(shape, 300, 5);
  KVCache keys(shape, Keys{LloydMax{.bits = 4}});
  KVCache values(shape, Values{LloydMax{.bits = 4}});
  KVCache exact(shape);
  feed(exact, all, 0, 300);
  feed(keys, all, 0, 300);
  feed(values, all, 0, 300);
  keys.compress();
  values.compress();
  EXPECT_EQ(keys.values(0, 0), exact.values(0, 0));
  EXPECT_NE(keys.keys(0, 0), exact.keys(0, 0));
  EXPECT_EQ(values.keys(0, 0), exact.keys(0, 0));
  EXPECT_NE(values.values(0, 0), exact.values(0, 0));
}

// A policy that judges all rows each time sees coded rows decoded; blocks lose rows and merge.
TEST(CodedCache, RowsLeaveCodedBlocks) {
  const auto all = tensors(shape, 1500, 6);
  KVCache cache(shape, Keep{.tokens = 200, .sinks = 4}, KeyDiff{}, LloydMax{});
  feed(cache, all, 0, 600);
  cache.compress();
  for (Index at = 600; at < 1500; ++at) {
    const Matrix got = feed(cache, all, at, 1);
    // Queries and weights are rounded to 99 steps for codes of 4 bits.
    if (at % 97 == 0) expect_equals_definition(cache, all, at, got, 0.04);
    cache.compress();
    for (int h = 0; h < shape.kv_heads; ++h) ASSERT_LE(cache.size(0, h), 200);
  }
  // What is held still resembles what came in.
  const Matrix k = cache.keys(0, 0);
  const std::vector<Position> positions = cache.positions(0, 0);
  double error = 0, square = 0;
  for (Index r = 0; r < k.rows(); ++r) {
    const auto p = to_int(positions[static_cast<std::size_t>(r)]);
    const auto want = all[0].keys.row(p).head(32);
    error += double((k.row(r) - want).squaredNorm());
    square += double(want.squaredNorm());
  }
  EXPECT_LT(error / square, 0.04);
}

// Rows a head, on average.
template <class Cache>
double rows_of(const Cache& cache) {
  return double(cache.stats().held) / double(cache.shape().heads());
}

// A limit in bytes holds before and after every compress(), is used up, and costs no more rows at
// once than it has to: after a prompt and whenever it is reached, room for `every` steps is made. In
// between rows must not leave: what a block that loses rows wastes, the exact rows that wait for
// their block and open chunks are priced before they are there.
template <class... Ps>
void expect_smooth_bytes(std::size_t limit, Ps... policies) {
  constexpr Index prompt = 800, steps = 300, every = 64;
  const auto all = tensors(shape, prompt + steps, 7);
  KVCache cache(shape, policies...);
  feed(cache, all, 0, prompt);
  cache.compress();
  EXPECT_LE(cache.bytes(), limit);
  double before = rows_of(cache);
  std::size_t most = 0;
  int cuts = 0;
  for (Index at = prompt; at < prompt + steps; ++at) {
    feed(cache, all, at, 1);
    ASSERT_LE(cache.bytes(), limit) << at << ", before compress()";
    most = std::max(most, cache.bytes());
    cache.compress();
    ASSERT_LE(cache.bytes(), limit) << at;
    const double now = rows_of(cache);
    ASSERT_LE(before - now, every + 16) << at;
    cuts += before - now > every / 2;
    before = now;
  }
  EXPECT_GT(most, limit / 100 * 92);
  EXPECT_GE(cuts, 3);
  EXPECT_LE(cuts, 1 + steps / (every - 16));
}

TEST(CodedCache, BytesLimitHoldsWhileGenerating) {
  const IntCode four{.bits = 4};
  const LloydMax five{.bits = 5, .value_bits = 4};
  for (const std::size_t limit : {std::size_t{100000}, std::size_t{140000}}) {
    SCOPED_TRACE(limit);
    const Keep keep{.bytes = limit, .sinks = 4}, pinned{.bytes = limit, .sinks = 4, .recent = 40};
    expect_smooth_bytes(limit, keep, KeyDiff{});
    expect_smooth_bytes(limit, keep, KeyDiff{}, five);
    expect_smooth_bytes(limit, keep, KeyDiff{}, four);
    expect_smooth_bytes(limit, keep, KeyDiff{}, Keys{five});
    expect_smooth_bytes(limit, pinned, SnapKV{.window = 16}, five);
    expect_smooth_bytes(limit, pinned, SnapKV{.window = 16}, Tilted{}, four);
    const Keep chunks{.fraction = 0.9, .bytes = limit, .sinks = 4};
    expect_smooth_bytes(limit, chunks, LagKV{.lag = 32}, five);
    expect_smooth_bytes(limit, chunks, LagKV{.lag = 64}, four);
  }
}

// Forks and truncate() leave blocks larger than their rows; the limit holds nevertheless.
TEST(CodedCache, BytesLimitHoldsAfterTruncateAndFork) {
  const auto all = tensors(shape, 1200, 17);
  const std::size_t limit = 120000;
  KVCache cache(shape, Keep{.bytes = limit, .sinks = 4}, KeyDiff{}, LloydMax{});
  feed(cache, all, 0, 800);
  cache.compress();
  for (Index at = 800; at < 850; ++at) {
    feed(cache, all, at, 1);
    cache.compress();
  }
  auto fork = cache.fork();
  fork.truncate(Position{820});
  for (Index at = 820; at < 1100; ++at) {
    feed(fork, all, at, 1);
    ASSERT_LE(fork.bytes(), limit) << at;
    fork.compress();
  }
  for (Index at = 850; at < 1000; ++at) {
    feed(cache, all, at, 1);
    ASSERT_LE(cache.bytes(), limit) << at;
    cache.compress();
  }
}

// Pieces of a prompt between steps.
TEST(CodedCache, BytesLimitHoldsInPieces) {
  const auto all = tensors(shape, 2000, 18);
  const std::size_t limit = 120000;
  KVCache cache(shape, Keep{.bytes = limit, .sinks = 4}, KeyDiff{}, LloydMax{});
  Index at = 0;
  for (const Index n : {300, 1, 1, 200, 20, 1, 63, 64, 500, 1, 1, 1, 100, 90, 1}) {
    feed(cache, all, at, n);
    at += n;
    cache.compress();
    ASSERT_LE(cache.bytes(), limit) << at;
  }
}

TEST(CodedCache, TruncateAndForkCutCodedBlocks) {
  const auto all = tensors(shape, 500, 8);
  KVCache cache(shape, Keep{.sinks = 4}, LloydMax{});
  feed(cache, all, 0, 400);
  cache.compress();
  auto fork = cache.fork();
  const Matrix before = cache.keys(1, 0);
  fork.truncate(Position{150});
  EXPECT_EQ(fork.keys(1, 0), before.topRows(150));
  EXPECT_EQ(cache.keys(1, 0), before);
  const Matrix got = feed(fork, all, 150, 60);
  expect_equals_definition(fork, all, 150, got, 0.02);
  fork.compress();
  EXPECT_EQ(fork.keys(1, 0).topRows(150), before.topRows(150));
  EXPECT_EQ(cache.keys(1, 0), before);
  fork.clear();
  EXPECT_EQ(fork.size(0, 0), 0);
}

TEST(CodedCache, ThreadsChangeNothing) {
  const auto all = tensors(shape, 600, 9);
  const auto run = [&](bool reversed) {
    KVCache cache(shape, Keep{.fraction = 0.4, .sinks = 4}, SnapKV{.window = 16}, LloydMax{});
    if (reversed)
      cache.set_executor([](Index count, const std::function<void(Index)>& task) {
        for (Index i = count; i-- > 0;) task(i);
      });
    feed(cache, all, 0, 600);
    cache.compress();
    return cache.keys(1, 1);
  };
  EXPECT_EQ(run(false), run(true));
}

}  // namespace codec_test
