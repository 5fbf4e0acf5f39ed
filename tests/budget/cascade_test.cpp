// SPDX-License-Identifier: MIT
// compress(layer): the same rows as one compression at the end, at a lower peak.
#include <gtest/gtest.h>

#include <lesskv/any.hpp>

#include "support.hpp"

namespace cascade_test {

using namespace budget_test;

const Shape shape{.layers = 8, .query_heads = 4, .kv_heads = 2, .head_dim = 16};

// Layers differ in how sharply they attend.
struct Prompt {
  std::vector<Matrix> keys, queries;
  explicit Prompt(unsigned seed, Index tokens = 320) {
    std::mt19937 random(seed);
    std::normal_distribution<float> normal;
    for (int l = 0; l < shape.layers; ++l) {
      const float sharp = std::array{
          .05f, 2.f, .5f, 3.f, .3f, .1f, 1.f, 1.5f}[(static_cast<unsigned>(l) * (seed + 3)) % 8];
      keys.emplace_back(tokens, 32);
      queries.emplace_back(tokens, 64);
      for (Index i = 0; i < keys.back().size(); ++i) keys.back().data()[i] = normal(random);
      for (Index i = 0; i < queries.back().size(); ++i)
        queries.back().data()[i] = sharp * normal(random);
    }
  }
  template <class Cache>
  void feed(Cache& cache, int l) const {
    const Matrix& k = keys[std::size_t(l)];
    cache.append(l, View::packed(k.data(), k.rows(), 2, 16),
                 View::packed(k.data(), k.rows(), 2, 16));
    cache.observe(l, View::packed(queries[std::size_t(l)].data(), k.rows(), 4, 16));
  }
};

template <class Make>
void expect_cascade_equals_one_shot(Make make, double lower_peak) {
  for (unsigned seed = 0; seed < 4; ++seed) {
    const Prompt prompt(seed);
    auto once = make(), layered = make();
    for (int l = 0; l < shape.layers; ++l) prompt.feed(once, l);
    once.compress();
    for (int l = 0; l < shape.layers; ++l) {
      prompt.feed(layered, l);
      layered.compress(l);
      if (l > 0 && l + 1 < shape.layers) {
        // Earlier layers are trimmed, but not below what they keep in the end.
        if (lower_peak < 1) {
          EXPECT_LT(layered.stats().held, 2 * (l + 1) * 320);
        }
        for (int h = 0; h < 2; ++h) EXPECT_GE(layered.size(l - 1, h), once.size(l - 1, h));
      }
    }
    EXPECT_EQ(all_positions(layered), all_positions(once)) << "seed " << seed;
    EXPECT_EQ(layered.keys(1, 1), once.keys(1, 1));
    EXPECT_LT(double(layered.stats().peak_bytes), lower_peak * double(once.stats().peak_bytes));
    EXPECT_EQ(layered.bytes(), once.bytes());
    // Decoding goes on alike.
    const Prompt more(seed + 50, 70);
    for (int l = 0; l < shape.layers; ++l) {
      more.feed(once, l);
      more.feed(layered, l);
    }
    once.compress();
    layered.compress();
    EXPECT_EQ(all_positions(layered), all_positions(once));
  }
}

TEST(Cascade, EqualsOneShotAtALowerPeak) {
  const Keep fraction{.fraction = .2, .sinks = 4}, tokens{.tokens = 80, .sinks = 4};
  for (const double beta : {0.0, 0.2, 0.9})
    for (const Keep keep : {fraction, tokens})
      expect_cascade_equals_one_shot(
          [&] {
            return KVCache(shape, keep, SnapKV{.window = 8}, ZigZagKV{.window = 8, .beta = beta});
          },
          .75);
  // Caps bind: a layer would get more than it has.
  expect_cascade_equals_one_shot(
      [&] {
        return KVCache(shape, Keep{.fraction = .7}, SnapKV{.window = 8},
                       ZigZagKV{.window = 8, .beta = .1});
      },
      1.05);  // little can go early; the scores that wait have to be held
}
TEST(Cascade, WorksWithScorersOfEveryKind) {
  const Keep keep{.fraction = .2, .sinks = 4};
  expect_cascade_equals_one_shot([&] { return KVCache(shape, keep, H2O{}, ZigZagKV{.window = 8}); },
                                 .75);
  expect_cascade_equals_one_shot(
      [&] {
        return KVCache(shape, keep, KeyDiff{}, ZigZagKV{.profile = {1, 9, 3, 20, 4, 1, 7, 2}});
      },
      .75);
  expect_cascade_equals_one_shot(
      [&] { return KVCache(shape, keep, TOVA{}, ZigZagKV{.window = 8}); }, .75);
  expect_cascade_equals_one_shot([&] { return KVCache(shape, keep, KeyDiff{}); },
                                 .75);  // no Budgeter
  expect_cascade_equals_one_shot(
      [&] { return make_cache("keep(fraction=0.2)+snapkv(window=8)+zigzag(window=8)", shape); },
      .75);
}

// The engine owns the memory: plans of one layer.
TEST(Cascade, PlansOfALayer) {
  const Prompt prompt(9);
  Planner planner(shape, Keep{.fraction = .2}, KeyDiff{},
                  ZigZagKV{.profile = {1, 9, 3, 20, 4, 1, 7, 2}});
  const Source source = [&](int l, int h) {
    const View view{
        .data = prompt.keys[std::size_t(l)].data() + h * 16, .tokens = 320, .token_stride = 32};
    return HeadView{view, view};
  };
  planner.append(0, 320);
  const Plan plan = planner.plan(0, source);
  EXPECT_EQ(planner.size(0, 0), 320);
  planner.commit(plan);
  EXPECT_LT(planner.size(0, 0), 320);
  EXPECT_THROW(planner.commit(plan), Error);
}

TEST(Cascade, NotAllowedIsOneClearError) {
  const Prompt prompt(10);
  const auto message = [&](auto cache) {
    prompt.feed(cache, 0);
    const std::string text = message_of([&] { cache.compress(0); });
    EXPECT_EQ(cache.size(0, 0), 320);
    return text;
  };
  const auto expect = [](const std::string& text, const char* word) {
    EXPECT_NE(text.find(word), std::string::npos) << text;
  };
  expect(message(make_cache("keep(fraction=0.2)+keydiff+globalcut", shape)),
         "compress(layer): this budget needs all layers at once");
  expect(message(make_cache("keep(fraction=0.2)+keydiff+zigzag+pyramid", shape)),
         "compress(layer): this budget needs all layers at once");
  expect(message(KVCache(shape, Keep{.fraction = .2}, LagKV{.lag = 32})),
         "compress(layer): this scorer judges chunk by chunk");
  expect(message(KVCache(shape, Keep{.bytes = 50000}, KeyDiff{})), "Keep::bytes");
  expect(message(KVCache(shape, Keep{.fraction = .2, .shared = Shared::model}, KeyDiff{})),
         "Keep::shared");
  KVCache cache(shape, Keep{.fraction = .2}, KeyDiff{});
  expect(message_of([&] { cache.compress(8); }), "layer: 8");
}

}  // namespace cascade_test
