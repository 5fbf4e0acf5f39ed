// SPDX-License-Identifier: MIT
// What Budgeters are shown, when they measure, and how long it stays.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <lesskv/any.hpp>
#include <numeric>

#include "support.hpp"

namespace measure_test {

using namespace support;

const Shape small{.layers = 2, .query_heads = 4, .kv_heads = 2, .head_dim = 16};

// Counts how often it measured, and what it saw: keys or attention, for good.
struct Lasting {
  std::atomic<int>* calls;
  bool attention = true;
  struct State {
    double factor = 0;
    std::vector<float> seen;
    std::size_t bytes() const { return seen.capacity() * sizeof(float); }
  };
  Need needs() const { return attention ? Need::attention : Need::keys | Need::values; }
  Index window_size() const { return attention ? 4 : 0; }
  void measure(const Head& head, State& state) const {
    ++*calls;
    state.factor = 1 + 2 * head.layer + head.head;
    if (attention) {
      EXPECT_EQ(head.attention.rows(), 4 * head.group);
      EXPECT_EQ(head.attention.cols(), head.size());
      EXPECT_NEAR(double(head.attention.row(0).sum()), 1, 1e-5);
      EXPECT_EQ(head.keys.size(), 0);
    } else {
      EXPECT_EQ(head.keys.rows(), head.size());
      EXPECT_EQ(head.values.rows(), head.size());
      EXPECT_EQ(head.attention.size(), 0);
      state.seen.assign(head.keys.data(), head.keys.data() + head.keys.size());
    }
    EXPECT_EQ(head.last, head.size());
  }
  void share(const Shape&, std::span<const State> measured, std::span<double> quota) const {
    for (std::size_t i = 0; i < quota.size(); ++i) quota[i] *= measured[i].factor;
  }
};

// Reads scores: measures every time, and nothing of it stays.
struct ByScore {
  std::atomic<int>* calls;
  using State = std::vector<float>;
  static constexpr Need needs = Need::scores;
  void measure(const Head& head, State& state) const {
    ++*calls;
    EXPECT_EQ(static_cast<Index>(head.scores.size()), head.last - head.first);
    state.assign(head.scores.begin(), head.scores.end());
  }
  void share(const Shape&, std::span<const State> measured, std::span<double> quota) const {
    for (std::size_t i = 0; i < quota.size(); ++i) {
      double sum = 0;
      for (const float x : measured[i]) sum += std::exp(double{x});
      quota[i] *= sum;
    }
  }
};

template <class Cache>
std::vector<Index> sizes(const Cache& cache) {
  std::vector<Index> out;
  for (int l = 0; l < cache.shape().layers; ++l)
    for (int h = 0; h < cache.shape().kv_heads; ++h) out.push_back(cache.size(l, h));
  return out;
}

TEST(Measure, AttentionAndKeysAreMeasuredOnceAndStay) {
  const auto in = tensors(small, 400, 31);
  for (const bool attention : {true, false}) {
    std::atomic<int> calls{0};
    KVCache cache(small, SmallKeys{}, Lasting{&calls, attention},
                  Keep{.fraction = 0.5, .every = 1});
    feed(cache, in, 0, 200);
    EXPECT_EQ(calls, 0);
    cache.compress();
    EXPECT_EQ(calls, 4);
    const auto first = sizes(cache);
    EXPECT_EQ(first, (std::vector<Index>{40, 80, 120, 160}));
    feed(cache, in, 200, 100);
    cache.compress();
    EXPECT_EQ(calls, 4);
    EXPECT_EQ(sizes(cache)[0], 60);
    cache.remeasure();
    feed(cache, in, 300, 50);
    cache.compress();
    EXPECT_EQ(calls, 8);
    // A fork has what its trunk measured.
    auto fork = cache.fork();
    feed(fork, in, 350, 50);
    fork.compress();
    EXPECT_EQ(calls, 8);
    // As long as a row stays, so does the measurement; an empty cache is a new one.
    fork.truncate(Position{10});
    feed(fork, in, 10, 200);
    fork.compress();
    EXPECT_EQ(calls, 8);
    fork.truncate(Position{0});
    feed(fork, in, 0, 200);
    fork.compress();
    EXPECT_EQ(calls, 12);
    EXPECT_EQ(sizes(fork), first);
    cache.clear();
    feed(cache, in, 0, 200);
    cache.compress();
    EXPECT_EQ(calls, 16);
    EXPECT_EQ(sizes(cache), first);
  }
}

TEST(Measure, NothingIsMeasuredWhenNothingCanGo) {
  const auto in = tensors(small, 100, 32);
  std::atomic<int> calls{0};
  KVCache cache(small, SmallKeys{}, Lasting{&calls}, Keep{.tokens = 100});
  feed(cache, in, 0, 100);
  cache.compress();
  EXPECT_EQ(calls, 0);
}

TEST(Measure, ScoresAreSharedAnewAndNothingOfItStays) {
  const auto in = tensors(small, 300, 33);
  std::atomic<int> calls{0};
  KVCache cache(small, SmallKeys{}, ByScore{&calls}, Keep{.fraction = 0.5, .sinks = 3});
  KVCache even(small, SmallKeys{}, Keep{.fraction = 0.5, .sinks = 3});
  for (auto at : {0, 200}) {
    feed(cache, in, at, at == 0 ? 200 : 100);
    feed(even, in, at, at == 0 ? 200 : 100);
    cache.compress();
    even.compress();
  }
  EXPECT_EQ(calls, 8);
  EXPECT_EQ(cache.stats().held, even.stats().held);
  EXPECT_NE(sizes(cache), sizes(even));
  // Chunk by chunk the scores of the chunk are shown.
  calls = 0;
  KVCache chunks(small, ChunkValues{}, ByScore{&calls}, Keep{.fraction = 0.5, .sinks = 3});
  feed(chunks, in, 0, 3 + 8 * 5 + 8);
  chunks.compress();
  EXPECT_EQ(calls, 5 * 4);
  EXPECT_EQ(chunks.stats().held, 4 * (3 + 20 + 8));
}

TEST(Measure, StatesCountInBytes) {
  const auto in = tensors(small, 256, 34);
  std::atomic<int> calls{0};
  KVCache with(small, SmallKeys{}, Lasting{&calls, false}, Keep{.fraction = 0.5, .every = 1});
  KVCache without(small, SmallKeys{}, Keep{.fraction = 0.5, .every = 1});
  feed(with, in, 0, 256);
  feed(without, in, 0, 256);
  const auto before = with.bytes() - without.bytes();
  with.compress();
  without.compress();
  Index rows = 0;
  for (const Index n : sizes(with)) rows += n;
  EXPECT_EQ(rows, 512);
  // The keys of 256 rows of four heads, in f32.
  EXPECT_GT(with.bytes(), without.bytes() + before + 4 * 256 * 16 * 4 - 2048);
}

// The limit in bytes holds although the budget is ragged.
TEST(Measure, ARaggedBudgetStaysUnderItsLimitInBytes) {
  const auto in = tensors(small, 1200, 35);
  std::atomic<int> calls{0};
  KVCache cache(small, SmallKeys{}, Lasting{&calls}, Keep{.bytes = 100000});
  for (Index at = 0; at < 1200;) {
    const Index n = at == 0 ? 700 : 1;
    feed(cache, in, at, n);
    cache.compress();
    at += n;
    ASSERT_LE(cache.bytes(), 100000u) << at;
  }
  EXPECT_GT(cache.bytes(), 50000u);
  EXPECT_GT(cache.size(1, 1), 2 * cache.size(0, 0));
}

TEST(Measure, APlanFromBeforeAnAppendOrAnObservationIsRefused) {
  const auto in = tensors(small, 100, 36);
  std::vector<Matrix> keys(2), values(2);
  Planner planner(small, SmallKeys{}, Keep{.tokens = 20});
  const Source source = [&](int l, int h) {
    const Tensors& t = in[std::size_t(l)];
    return HeadView{View{.data = t.keys.data() + h * 16, .tokens = 100, .token_stride = 32},
                    View{.data = t.values.data() + h * 16, .tokens = 100, .token_stride = 32}};
  };
  for (int l = 0; l < 2; ++l) planner.append(l, 50);
  const Plan plan = planner.plan(source);
  for (int l = 0; l < 2; ++l) planner.append(l, 1);
  EXPECT_THROW(planner.commit(plan), Error);
  EXPECT_EQ(planner.size(0, 0), 51);
  planner.clear();
  EXPECT_THROW(planner.commit(plan), Error);
}

// ---- policies known at run time

TEST(AnyCache, MeasuresAsTheTypedCacheDoes) {
  const auto in = tensors(small, 400, 37);
  std::atomic<int> once{0}, each{0}, once_typed{0}, each_typed{0};
  const Keep keep{.fraction = 0.5, .every = 1};
  AnyCache erased(small, &keep, {AnyScorer(SmallKeys{}), ByScore{&each}, Lasting{&once}});
  KVCache typed(small, SmallKeys{}, ByScore{&each_typed}, Lasting{&once_typed},
                Keep{.fraction = 0.5, .every = 1});
  Index at = 0;
  for (const Index n : {200, 100, 1, 99}) {
    feed(erased, in, at, n);
    feed(typed, in, at, n);
    erased.compress();
    typed.compress();
    at += n;
    EXPECT_EQ(sizes(erased), sizes(typed));
  }
  EXPECT_EQ(once, 4);
  EXPECT_EQ(once_typed, 4);
  EXPECT_EQ(each, 16);
  EXPECT_EQ(each_typed, 16);
  EXPECT_EQ(erased.bytes(), typed.bytes());
}

// What does not compile as types is an error here.
TEST(AnyCache, PoliciesThatDoNotFitTogetherAreRefused) {
  const Keep keep{.fraction = 0.5};
  const auto message = [&](const Keep* amount, std::vector<AnyPolicy> policies) {
    return message_of([&] { AnyCache(small, amount, std::move(policies)); });
  };
  using testing::HasSubstr;
  EXPECT_THAT(message(&keep, {SmallKeys{}, SmallKeys{}}), HasSubstr("name one Scorer"));
  EXPECT_THAT(message(nullptr, {SmallKeys{}}), HasSubstr("add Keep"));
  EXPECT_THAT(message(&keep, {Tilted{}}), HasSubstr("add a Scorer"));
  EXPECT_THAT(message(&keep, {}), HasSubstr("add a Scorer"));
  EXPECT_EQ(message(nullptr, {}), "no error");
}

// Queries are only held as long as a Budgeter will look at them.
TEST(Measure, TheWindowOfQueriesIsFreedOnceItWasMeasured) {
  const auto in = tensors(small, 300, 38);
  std::atomic<int> calls{0};
  KVCache cache(small, SmallKeys{}, Lasting{&calls}, Keep{.fraction = 0.5, .every = 1});
  KVCache plain(small, SmallKeys{}, Keep{.fraction = 0.5, .every = 1});
  for (auto at : {0, 200}) {
    feed(cache, in, at, at == 0 ? 200 : 100);
    feed(plain, in, at, at == 0 ? 200 : 100);
    if (at == 0) {
      EXPECT_GT(cache.bytes(), plain.bytes() + 2 * 4 * 4 * 16 * 2);
    }
    cache.compress();
    plain.compress();
  }
  Index difference = 0;
  for (int i = 0; i < 4; ++i) difference += std::abs(sizes(cache)[std::size_t(i)] - 150);
  EXPECT_GT(difference, 0);
  feed(cache, in, 0, 0);
  cache.remeasure();
  EXPECT_NO_THROW(cache.compress());  // nothing new to judge
}

}  // namespace measure_test
