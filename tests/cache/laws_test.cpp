// SPDX-License-Identifier: MIT
// The laws of the container that hold for every policy.
#include <gtest/gtest.h>

#include <lesskv/core/select.hpp>
#include <numeric>
#include <thread>

#include "support.hpp"

namespace laws_test {

using namespace support;

const Shape small{.layers = 2, .query_heads = 4, .kv_heads = 2, .head_dim = 16};

template <class Cache>
std::vector<std::int64_t> all_positions(const Cache& cache) {
  std::vector<std::int64_t> out;
  for (int l = 0; l < cache.shape().layers; ++l)
    for (int h = 0; h < cache.shape().kv_heads; ++h) {
      for (const Position p : cache.positions(l, h)) out.push_back(to_int(p));
      out.push_back(-1);
    }
  return out;
}

template <class Cache>
void expect_consistent(const Cache& cache) {
  for (int l = 0; l < cache.shape().layers; ++l)
    for (int h = 0; h < cache.shape().kv_heads; ++h) {
      const auto p = cache.positions(l, h);
      EXPECT_TRUE(std::is_sorted(p.begin(), p.end()));
      EXPECT_EQ(std::adjacent_find(p.begin(), p.end()), p.end());
      EXPECT_EQ(static_cast<Index>(p.size()), cache.size(l, h));
      EXPECT_EQ(cache.keys(l, h).rows(), cache.size(l, h));
    }
}

// Rows that stayed are bit for bit the rows that came.
template <class Cache>
void expect_rows_intact(const Cache& cache, const std::vector<Tensors>& in) {
  const Shape& s = cache.shape();
  for (int l = 0; l < s.layers; ++l) {
    KVCache<> exact(s);
    exact.append(l, in[static_cast<std::size_t>(l)].k(0, in[0].keys.rows()),
                 in[static_cast<std::size_t>(l)].v(0, in[0].keys.rows()));
    for (int h = 0; h < s.kv_heads; ++h) {
      const Matrix k = cache.keys(l, h), v = cache.values(l, h), ek = exact.keys(l, h),
                   ev = exact.values(l, h);
      const auto p = cache.positions(l, h);
      for (std::size_t r = 0; r < p.size(); ++r) {
        EXPECT_EQ(k.row(Index(r)), ek.row(to_int(p[r])));
        EXPECT_EQ(v.row(Index(r)), ev.row(to_int(p[r])));
      }
    }
  }
}

// Law 1.
TEST(Laws, ABudgetThatIsNeverReachedIsBitIdenticalToNoPolicy) {
  const auto in = tensors(small, 400, 1);
  KVCache exact(small);
  KVCache whole(small, SmallKeys{}, Keep{.fraction = 1});
  KVCache roomy(small, WindowAttention{}, Keep{.tokens = 400});
  KVCache chunks(small, ChunkValues{}, Keep{.fraction = 1});
  Index at = 0;
  for (const Index n : {200, 1, 1, 150, 48}) {
    const Matrix want = feed(exact, in, at, n);
    EXPECT_EQ(feed(whole, in, at, n), want);
    EXPECT_EQ(feed(roomy, in, at, n), want);
    EXPECT_EQ(feed(chunks, in, at, n), want);
    whole.compress();
    roomy.compress();
    chunks.compress();
    exact.compress();
    at += n;
  }
  EXPECT_EQ(all_positions(whole), all_positions(exact));
  EXPECT_EQ(all_positions(chunks), all_positions(exact));
}

// Law 2.
TEST(Laws, StreamingEqualsOneShotForEverySplitOfAJudgeOncePolicy) {
  const auto in = tensors(small, 333, 2);
  const auto run = [&](auto cache, std::mt19937* random) {
    Index at = 0;
    while (at < 333) {
      const Index n =
          random ? std::min<Index>(333 - at, 1 + static_cast<Index>((*random)() % 40)) : 333;
      feed(cache, in, at, n);
      cache.compress();
      at += n;
    }
    expect_consistent(cache);
    return all_positions(cache);
  };
  const Keep keep{.fraction = 0.37, .sinks = 5};
  const auto want = run(KVCache(small, ChunkValues{}, keep), nullptr);
  const auto tilted = run(KVCache(small, ChunkValues{}, Tilted{}, keep), nullptr);
  EXPECT_NE(want, tilted);
  for (unsigned seed = 0; seed < 8; ++seed) {
    std::mt19937 a(seed), b(seed + 50);
    EXPECT_EQ(run(KVCache(small, ChunkValues{}, keep), &a), want);
    EXPECT_EQ(run(KVCache(small, ChunkValues{}, Tilted{}, keep), &b), tilted);
  }
}

// Law 3.
TEST(Laws, TotalsAreExactAndRagged) {
  const auto in = tensors(small, 500, 3);
  KVCache cache(small, SmallKeys{}, Tilted{}, Keep{.tokens = 120, .sinks = 4, .recent = 10});
  feed(cache, in, 0, 500);
  cache.compress();
  Index sum = 0;
  for (int l = 0; l < 2; ++l)
    for (int h = 0; h < 2; ++h) sum += cache.size(l, h);
  EXPECT_EQ(sum, 4 * 120);
  // One part and two parts of what the 14 pins of every head leave: 2 * 212 rows.
  EXPECT_EQ(cache.size(0, 0), 14 + 71);
  EXPECT_EQ(cache.size(0, 1), 14 + 141);
  expect_consistent(cache);
  expect_rows_intact(cache, in);
  // Pins: the first four and the last ten.
  for (int h = 0; h < 2; ++h) {
    const auto p = cache.positions(1, h);
    for (int i = 0; i < 4; ++i) EXPECT_EQ(to_int(p[static_cast<std::size_t>(i)]), i);
    for (int i = 0; i < 10; ++i)
      EXPECT_EQ(to_int(p[p.size() - 10 + static_cast<std::size_t>(i)]), 490 + i);
  }

  KVCache fraction(small, SmallKeys{}, Keep{.fraction = 0.3, .sinks = 4, .recent = 10});
  feed(fraction, in, 0, 500);
  fraction.compress();
  EXPECT_EQ(fraction.size(0, 0), 14 + static_cast<Index>(0.3 * 486));
  fraction.compress();  // nothing new: nothing changes
  EXPECT_EQ(fraction.size(0, 0), 14 + static_cast<Index>(0.3 * 486));
}

// Law 5 has its own file, bytes_test.cpp. Endless generation stays under tokens and bytes.
template <class Cache>
void expect_bounded(Cache cache, Index tokens, std::size_t bytes) {
  const auto in = tensors(cache.shape(), 1200, 4);
  Index at = 0, most = 0, least = 1 << 30;
  while (at < 1200) {
    const Index n = at == 0 ? 300 : 1;
    feed(cache, in, at, n);
    cache.compress();
    at += n;
    const Index held = cache.stats().held;
    if (tokens > 0) {
      EXPECT_LE(held, tokens * cache.shape().heads());
    }
    if (bytes > 0) {
      EXPECT_LE(cache.bytes(), bytes) << "token " << at;
    }
    most = std::max(most, held);
    least = std::min(least, held);
  }
  EXPECT_GT(least, 0);
  EXPECT_GE(5 * least, 2 * most);  // the budget is used
  expect_consistent(cache);
  expect_rows_intact(cache, in);
}

TEST(Laws, EndlessGenerationStaysUnderItsLimit) {
  expect_bounded(KVCache(small, SmallKeys{}, Keep{.tokens = 200, .sinks = 4}), 200, 0);
  expect_bounded(KVCache(small, WindowAttention{}, Keep{.tokens = 200}), 200, 0);
  expect_bounded(KVCache(small, SumOfAttention{}, Tilted{}, Keep{.tokens = 200, .recent = 16}), 200,
                 0);
  expect_bounded(KVCache(small, ChunkValues{}, Keep{.fraction = 0.5, .tokens = 200, .sinks = 4}),
                 200, 0);
  expect_bounded(KVCache(small, SmallKeys{}, Keep{.bytes = 100000}), 0, 100000);
  expect_bounded(KVCache(small, SumOfAttention{}, Keep{.bytes = 100000, .sinks = 4}), 0, 100000);
  expect_bounded(KVCache(small, WindowAttention{}, Keep{.bytes = 100000}), 0, 100000);
  expect_bounded(KVCache(small, ChunkValues{}, Keep{.fraction = 0.5, .bytes = 100000}), 0, 100000);
}

TEST(Laws, EveryJudgesThatOften) {
  const auto in = tensors(small, 400, 5);
  KVCache often(small, SmallKeys{}, Keep{.fraction = 0.5, .every = 1}),
      seldom(small, SmallKeys{}, Keep{.fraction = 0.5});
  feed(often, in, 0, 256);
  feed(seldom, in, 0, 256);
  often.compress();
  seldom.compress();
  EXPECT_EQ(all_positions(often), all_positions(seldom));
  for (Index at = 256; at < 319; ++at) {
    feed(often, in, at, 1);
    feed(seldom, in, at, 1);
    often.compress();
    seldom.compress();
    EXPECT_EQ(often.size(0, 0), (at + 1) / 2);
    EXPECT_EQ(seldom.size(0, 0), 128 + at - 255);
  }
  feed(seldom, in, 319, 1);
  seldom.compress();
  EXPECT_EQ(seldom.size(0, 0), 160);
}

TEST(Laws, SharedSetsAreEqualAndKeepTheTotal) {
  const auto in = tensors(small, 300, 6);
  for (const Shared shared : {Shared::layer, Shared::model}) {
    KVCache cache(small, SmallKeys{}, Keep{.tokens = 100, .sinks = 2, .shared = shared});
    feed(cache, in, 0, 300);
    cache.compress();
    EXPECT_EQ(cache.positions(0, 0), cache.positions(0, 1));
    EXPECT_EQ(cache.positions(0, 0) == cache.positions(1, 0), shared == Shared::model);
    EXPECT_EQ(cache.size(0, 0), 100);
    // The mean decides: an oracle over the rows of the exact cache.
    KVCache exact(small);
    feed(exact, in, 0, 300);
    std::vector<float> mean(300, 0.f);
    const int layers = shared == Shared::model ? 2 : 1;
    for (int l = 0; l < layers; ++l)
      for (int h = 0; h < 2; ++h)
        for (Index r = 0; r < 300; ++r) mean[std::size_t(r)] += -exact.keys(l, h).row(r).norm();
    std::vector<std::int32_t> want{0, 1};
    detail::select_largest(mean, {}, 2, 300, 98, 0, want);
    std::vector<std::int32_t> got;
    for (const Position p : cache.positions(0, 0))
      got.push_back(static_cast<std::int32_t>(to_int(p)));
    EXPECT_EQ(got, want);
  }
}

TEST(Laws, ForksAreIndependent) {
  const auto in = tensors(small, 300, 7);
  KVCache trunk(small, SmallKeys{}, Keep{.tokens = 90, .sinks = 2});
  feed(trunk, in, 0, 200);
  trunk.compress();
  const auto before = all_positions(trunk);
  const Matrix keys = trunk.keys(1, 1);
  auto branch = trunk.fork();
  feed(branch, in, 200, 100);
  branch.compress();
  EXPECT_EQ(all_positions(trunk), before);
  EXPECT_EQ(trunk.keys(1, 1), keys);
  // The trunk goes on as if there had been no fork.
  KVCache alone(small, SmallKeys{}, Keep{.tokens = 90, .sinks = 2});
  feed(alone, in, 0, 200);
  alone.compress();
  EXPECT_EQ(feed(trunk, in, 200, 100), feed(alone, in, 200, 100));
  trunk.compress();
  EXPECT_EQ(all_positions(trunk), all_positions(branch));
  EXPECT_EQ(trunk.keys(0, 0), branch.keys(0, 0));
}

TEST(Laws, TruncateIsLosslessDownToExactFrom) {
  const auto in = tensors(small, 300, 8);
  KVCache cache(small, ChunkValues{}, Keep{.fraction = 0.5, .sinks = 3});
  feed(cache, in, 0, 200);
  cache.compress();
  const Position safe = cache.exact_from();
  EXPECT_GT(to_int(safe), 100);
  EXPECT_LT(to_int(safe), 200);
  auto draft = cache.fork();
  feed(draft, in, 200, 40);  // a draft that is thrown away
  draft.truncate(Position{200});
  EXPECT_EQ(all_positions(draft), all_positions(cache));
  EXPECT_EQ(feed(draft, in, 200, 50), feed(cache, in, 200, 50));
  cache.truncate(safe);
  EXPECT_EQ(to_int(cache.next_position(0)), to_int(safe));
  expect_consistent(cache);
  cache.truncate(Position{0});
  EXPECT_EQ(cache.size(0, 0), 0);
}

TEST(Laws, ClearGivesABitEqualRerun) {
  const auto in = tensors(small, 300, 9);
  KVCache cache(small, SumOfAttention{}, Keep{.tokens = 100, .recent = 8});
  feed(cache, in, 0, 250);
  cache.compress();
  const Matrix first = feed(cache, in, 250, 50);
  const auto positions = all_positions(cache);
  cache.clear();
  EXPECT_EQ(cache.stats().held, 0);
  feed(cache, in, 0, 250);
  cache.compress();
  EXPECT_EQ(feed(cache, in, 250, 50), first);
  EXPECT_EQ(all_positions(cache), positions);
}

TEST(Laws, PositionsMayHaveGapsAndLayersMayDiffer) {
  const auto in = tensors(small, 64, 10);
  KVCache cache(small, Recent{}, Keep{.tokens = 20, .every = 1});
  std::vector<Position> sparse;
  for (int i = 0; i < 64; ++i) sparse.push_back(Position{i * 3 + 1});
  cache.append(0, in[0].k(0, 64), in[0].v(0, 64), sparse);
  cache.append(1, in[1].k(0, 40), in[1].v(0, 40), std::span(sparse).first(40));
  EXPECT_EQ(to_int(cache.next_position(0)), 191);
  EXPECT_EQ(to_int(cache.next_position(1)), 119);
  Matrix out(64, 64);
  cache.attend(0, in[0].q(0, 64), out.data());
  EXPECT_LT(relative_error(out, attention_by_definition(cache, 0, in[0].queries, sparse)), 1e-3);
  cache.compress();
  EXPECT_EQ(to_int(cache.positions(0, 0).back()), 190);
  EXPECT_EQ(to_int(cache.positions(1, 1).back()), 118);
  EXPECT_EQ(cache.stats().held, 80);
}

// ---- bad input: an error that names the argument, and the cache as it was

TEST(BadInput, NamesTheArgumentAndChangesNothing) {
  auto in = tensors(small, 100, 11);
  KVCache cache(small, WindowAttention{}, Keep{.tokens = 50});
  feed(cache, in, 0, 40);
  const auto before = all_positions(cache);
  const std::size_t bytes = cache.bytes();
  const Matrix keys = cache.keys(0, 1);
  const auto expect = [&](const std::string& got, const char* word) {
    EXPECT_NE(got.find(word), std::string::npos) << got;
    EXPECT_EQ(all_positions(cache), before);
    EXPECT_EQ(cache.keys(0, 1), keys);
  };
  expect(message_of([&] { cache.append(2, in[0].k(0, 1), in[0].v(0, 1)); }), "layer");
  expect(message_of([&] { cache.append(-1, in[0].k(0, 1), in[0].v(0, 1)); }), "layer");
  expect(message_of([&] { cache.append(0, in[0].k(0, 2), in[0].v(0, 1)); }), "values");
  expect(message_of([&] { cache.append(0, View{.tokens = 1}, in[0].v(0, 1)); }), "keys");
  const std::vector<Position> old{Position{7}};
  expect(message_of([&] { cache.append(0, in[0].k(0, 1), in[0].v(0, 1), old); }), "positions");
  const std::vector<Position> two{Position{70}, Position{71}};
  expect(message_of([&] { cache.append(0, in[0].k(0, 1), in[0].v(0, 1), two); }), "positions");
  for (const float bad : {NAN, INFINITY, 70000.f}) {  // 70000 does not fit f16
    const float good = in[0].keys(60, 20);
    in[0].keys(60, 20) = bad;
    expect(message_of([&] { cache.append(0, in[0].k(40, 60), in[0].v(40, 60)); }), "keys");
    in[0].keys(60, 20) = good;
    const float value = in[0].values(99, 31);
    in[0].values(99, 31) = bad;
    expect(message_of([&] { cache.append(0, in[0].k(40, 60), in[0].v(40, 60)); }), "values");
    in[0].values(99, 31) = value;
  }
  in[0].queries(3, 3) = NAN;
  Matrix out(10, 64);
  expect(message_of([&] { cache.attend(0, in[0].q(0, 10), out.data()); }), "queries");
  expect(message_of([&] { cache.observe(0, in[0].q(0, 10)); }), "queries");
  expect(message_of([&] { cache.truncate(Position{-1}); }), "position");
  const Matrix attention = Matrix::Zero(3, 40);
  expect(message_of([&] { cache.observe(0, 0, make_rows(attention)); }), "attention");
  expect(message_of([&] { cache.observe(0, 2, make_rows(attention)); }), "head");
  EXPECT_LE(cache.bytes(), bytes + 40000);  // a block may have been reserved, no row is held
  // A need that was never met is an error at compress(), and nothing is lost.
  cache.append(0, in[0].k(40, 60), in[0].v(40, 60));
  cache.append(1, in[1].k(40, 60), in[1].v(40, 60));
  const auto grown = all_positions(cache);
  const std::string need = message_of([&] { cache.compress(); });
  EXPECT_NE(need.find("attend() or observe()"), std::string::npos) << need;
  EXPECT_EQ(all_positions(cache), grown);

  KVCache heavy(small, SumOfAttention{}, Keep{.fraction = 0.5});
  heavy.append(0, in[0].k(0, 100), in[0].v(0, 100));
  heavy.append(1, in[1].k(0, 100), in[1].v(0, 100));
  EXPECT_NE(message_of([&] { heavy.compress(); }).find("every token"), std::string::npos);
}

TEST(BadInput, ImpossibleShapesAndBudgets) {
  const auto built = [](const Shape& s, const Keep& k) {
    return message_of([&] { KVCache(s, WindowAttention{}, k); });
  };
  const auto expect = [](const std::string& got, const char* word) {
    EXPECT_NE(got.find(word), std::string::npos) << got;
  };
  expect(built({.layers = 0}, {.fraction = .5}), "layers");
  expect(built({.query_heads = 4, .kv_heads = 3}, {.fraction = .5}), "query_heads");
  expect(built({.query_heads = 129, .kv_heads = 1}, {.fraction = .5}), "128");
  expect(built({.head_dim = 0}, {.fraction = .5}), "head_dim");
  expect(built(small, {}), "nothing says how much");
  expect(built(small, {.fraction = 1.5}), "fraction");
  expect(built(small, {.fraction = NAN}), "fraction");
  expect(built(small, {.fraction = .5, .tokens = 100}), "one of");
  expect(built(small, {.tokens = 100, .bytes = 100}), "not both");
  expect(built(small, {.tokens = 11, .sinks = 4}), "impossible");
  expect(built(small, {.tokens = 100, .sinks = -4}), "sinks");
  expect(built(small, {.tokens = 100, .every = 0}), "every");
  expect(message_of([] { KVCache(small, ChunkValues{}, Keep{.tokens = 100}); }), "fraction");
  expect(message_of([] { KVCache(small, ChunkValues{}, Keep{.fraction = .5, .tokens = 14}); }),
         "impossible");
  // Bytes are only known to be impossible when rows are there.
  const auto in = tensors(small, 100, 12);
  KVCache tight(small, SmallKeys{}, Keep{.bytes = 1000, .sinks = 50});
  feed(tight, in, 0, 100);
  const auto before = all_positions(tight);
  expect(message_of([&] { tight.compress(); }), "Keep::bytes");
  EXPECT_EQ(all_positions(tight), before);
}

TEST(EdgeCases, EmptyAndTinyCachesAreLeftAlone) {
  const auto in = tensors(small, 10, 13);
  KVCache window(small, WindowAttention{}, Keep{.fraction = 0.1});
  KVCache chunks(small, ChunkValues{}, Keep{.fraction = 0.1});
  window.compress();
  chunks.compress();
  EXPECT_EQ(window.size(0, 0), 0);
  window.append(0, in[0].k(0, 0), in[0].v(0, 0));
  feed(window, in, 0, 1);
  feed(chunks, in, 0, 10);
  window.compress();
  chunks.compress();
  EXPECT_EQ(window.size(1, 1), 1);
  EXPECT_EQ(chunks.size(1, 1), 10);
}

TEST(Threads, LayersMayBeFedAtTheSameTimeAndAnExecutorChangesNothing) {
  const Shape shape{.layers = 6, .query_heads = 4, .kv_heads = 2, .head_dim = 16};
  const auto in = tensors(shape, 200, 14);
  const auto fresh = [&] {
    return KVCache(shape, SumOfAttention{}, Tilted{}, Keep{.tokens = 60, .recent = 8});
  };
  auto serial = fresh(), parallel = fresh();
  parallel.set_executor([](Index count, const std::function<void(Index)>& task) {
    std::vector<std::thread> threads;
    for (Index i = 0; i < count; ++i) threads.emplace_back([&task, i] { task(i); });
    for (auto& t : threads) t.join();
  });
  std::vector<Matrix> a(6, Matrix(150, 64)), b(6, Matrix(150, 64));
  std::vector<std::thread> threads;
  for (int l = 0; l < 6; ++l) {
    const Tensors& t = in[static_cast<std::size_t>(l)];
    serial.append(l, t.k(0, 150), t.v(0, 150));
    serial.attend(l, t.q(0, 150), a[static_cast<std::size_t>(l)].data());
    threads.emplace_back([&, l] {
      const Tensors& own = in[static_cast<std::size_t>(l)];
      parallel.append(l, own.k(0, 150), own.v(0, 150));
      parallel.attend(l, own.q(0, 150), b[static_cast<std::size_t>(l)].data());
    });
  }
  for (auto& t : threads) t.join();
  for (int l = 0; l < 6; ++l)
    EXPECT_EQ(a[static_cast<std::size_t>(l)], b[static_cast<std::size_t>(l)]);
  serial.compress();
  parallel.compress();
  EXPECT_EQ(all_positions(serial), all_positions(parallel));
}

}  // namespace laws_test
