// SPDX-License-Identifier: MIT
// PyramidKV and AdaKV against kvpress 0.5.5; GlobalCut against a sort of everything.
#include <gtest/gtest.h>

#include <lesskv/any.hpp>

#include "support.hpp"

namespace budgets_test {

using namespace budget_test;
using reference::path;

// ---- PyramidKV

// Rows of the file: length, percent removed, window, beta, budgets of 30 layers, as kvpress has
// them: over all rows, window included, and all equal when the smallest is below the window.
TEST(Pyramid, BudgetsEqualKvpress) {
  const auto file = reference::kept("kvpress/pyramid_budgets.npy");
  ASSERT_EQ(file.shape[0], 48u);
  int sloped = 0;
  for (std::size_t i = 0; i < 48; ++i) {
    const std::int32_t* row = &file.data[i * 34];
    const double n = row[0], mean = n * (1 - row[1] / 100.0), window = row[2];
    std::vector<double> got = PyramidKV{.beta = double(row[3])}.budgets(30, mean, n - window);
    if (got.back() < window) got.assign(30, mean);
    sloped += got.front() > got.back();
    for (int l = 0; l < 30; ++l)
      EXPECT_EQ(std::nearbyint(got[std::size_t(l)]), row[4 + l]) << "case " << i << " layer " << l;
  }
  EXPECT_GT(sloped, 20);
}

TEST(Pyramid, TheTotalIsExactAndTheWindowOnTop) {
  const Shape s{.layers = 12, .query_heads = 2, .kv_heads = 1, .head_dim = 8};
  for (const Index tokens : {40, 100, 300, 380}) {
    KVCache cache(s, Keep{.tokens = tokens, .recent = 16}, KeyNorm{}, PyramidKV{});
    const Matrix rows = Matrix::Random(400, 8);
    for (int l = 0; l < 12; ++l)
      cache.append(l, View::packed(rows.data(), 400, 1, 8), View::packed(rows.data(), 400, 1, 8));
    cache.compress();
    const std::vector<Index> got = sizes(cache);
    EXPECT_EQ(std::accumulate(got.begin(), got.end(), Index{0}), 12 * tokens);
    EXPECT_TRUE(std::is_sorted(got.rbegin(), got.rend()));
    const double c = double(tokens - 16);
    const double most = std::min(384.0, 2 * c - c / 20), least = 2 * c - most;
    EXPECT_NEAR(double(got.front()), 16 + most, 1);
    EXPECT_NEAR(double(got.back()), 16 + least, 1);
  }
  // One layer is its own mean.
  EXPECT_EQ(PyramidKV{}.budgets(1, 10, 100), std::vector<double>{10});
}

// ---- AdaKV

template <class Scorer>
void expect_adakv(const std::string& name, Scorer scorer, int layer, const std::string& removed) {
  const std::string file =
      "kvpress/adakv_" + name + "_a0.2_" + reference::layer_name(layer) + "_r" + removed;
  SCOPED_TRACE(file);
  const auto counts = reference::kept(file + "_counts.npy");
  const Index n_kept = removed == "0.5" ? 512 : 204;
  KVCache cache(reference::shape(), Keep{.tokens = n_kept}, scorer, AdaKV{});
  const std::string l = reference::layer_name(layer);
  cache.append(0, reference::Tensor("k_" + l).view(), reference::Tensor("v_" + l).view());
  const reference::Tensor queries(layer == 15 ? "q_l15" : "qwin64_" + l);
  cache.observe(0, queries.view(queries.tokens() - 64, 64));
  cache.compress();
  for (int h = 0; h < 3; ++h)
    EXPECT_EQ(cache.size(0, h), counts.data[std::size_t(h)]) << "head " << h;
  if (layer != 15) return;
  const auto kept = reference::kept(file + "_kept.npy");
  std::vector<std::int32_t> got;
  for (int h = 0; h < 3; ++h)
    for (const std::int32_t p : reference::positions(cache.positions(0, h))) got.push_back(p);
  EXPECT_EQ(got, kept.data);
}
TEST(AdaKV, CountsAndKeptSetsEqualKvpress) {
  for (const int layer : {0, 15, 29})
    for (const std::string removed : {"0.5", "0.8"}) {
      expect_adakv("snapkv", SnapKV{}, layer, removed);
      expect_adakv("keydiff", KeyDiff{}, layer, removed);
    }
}

// ---- cuts, by definition

struct Scored {  // a score that is handed in: value channel 0
  float scale = 1;
  static constexpr Need needs = Need::values;
  void score(const Head& head, std::span<float> out) const {
    for (Index r = head.first; r < head.last; ++r)
      out[static_cast<std::size_t>(r)] = scale * head.values(r, 0);
  }
};

struct Random2 {
  Shape s{.layers = 3, .query_heads = 4, .kv_heads = 2, .head_dim = 4, .dtype = DType::f32};
  Index n = 90;
  std::vector<Matrix> rows;
  explicit Random2(unsigned seed, bool ties) {
    std::mt19937 random(seed);
    for (int l = 0; l < 3; ++l) {
      rows.emplace_back(n, 8);
      for (Index i = 0; i < rows.back().size(); ++i)
        rows.back().data()[i] = ties ? float(random() % 4) : float(random() % 100000) / 1000;
      rows.back() *= float(1 + l);  // layers differ
    }
  }
  template <class Cache>
  void feed(Cache& cache, Index first, Index count) const {
    for (int l = 0; l < 3; ++l) {
      const float* at = rows[std::size_t(l)].row(first).data();
      cache.append(l, View::packed(at, count, 2, 4), View::packed(at, count, 2, 4));
    }
  }
  float score(int l, int h, Index r) const { return rows[std::size_t(l)](r, h * 4); }
};

TEST(Cut, EqualsASort) {
  for (unsigned seed = 0; seed < 40; ++seed) {
    std::mt19937 random(seed);
    std::vector<std::vector<float>> scores(1 + random() % 6);
    std::size_t all = 0;
    for (auto& of_head : scores) {
      of_head.resize(random() % 60);
      for (float& x : of_head) x = float(random() % (seed % 2 ? 5u : 100000u));
      all += of_head.size();
    }
    const Index total = static_cast<Index>(random() % (all + 1));
    const Index safe = static_cast<Index>(random() % 8) * (total / Index(scores.size())) / 8;
    std::vector<Index> want;
    std::vector<std::pair<float, std::size_t>> open;
    Index left = total;
    for (std::size_t i = 0; i < scores.size(); ++i) {
      std::vector<float> own = scores[i];
      std::sort(own.begin(), own.end(), std::greater<>());
      want.push_back(std::min<Index>(safe, Index(own.size())));
      left -= want.back();
      for (std::size_t r = std::size_t(want.back()); r < own.size(); ++r)
        open.emplace_back(-own[r], i);
    }
    std::sort(open.begin(), open.end());
    for (Index k = 0; k < left; ++k) ++want[open[std::size_t(k)].second];
    const std::vector<std::span<const float>> spans(scores.begin(), scores.end());
    const std::vector<double> got = detail::cut_scores(spans, double(total), double(safe));
    for (std::size_t i = 0; i < want.size(); ++i)
      EXPECT_NEAR(got[i], double(want[i]), 1e-9) << "seed " << seed;
  }
}

// The largest of the whole model stay, whatever head they are in.
TEST(GlobalCut, KeepsTheLargestOfTheModel) {
  const Random2 in(3, false);
  KVCache cache(in.s, Keep{.fraction = 0.3, .sinks = 2, .every = 1}, Scored{}, GlobalCut<>{});
  in.feed(cache, 0, 90);
  cache.compress();
  std::vector<float> all;
  for (int i = 0; i < 6; ++i)
    for (Index r = 2; r < 90; ++r) all.push_back(in.score(i / 2, i % 2, r));
  std::sort(all.begin(), all.end(), std::greater<>());
  const Index total = 6 * static_cast<Index>(0.3 * 88);
  const float threshold = all[std::size_t(total - 1)];
  Index held = 0;
  for (int i = 0; i < 6; ++i) {
    const Matrix values = cache.values(i / 2, i % 2);
    held += values.rows();
    for (Index r = 2; r < values.rows(); ++r) EXPECT_GE(values(r, 0), threshold);
  }
  EXPECT_EQ(held, 6 * 2 + total);
  EXPECT_GT(cache.size(2, 0), cache.size(0, 0));
}

TEST(GlobalCut, AlphaKeepsEveryHeadItsPart) {
  const Random2 in(4, false);
  KVCache cache(in.s, Keep{.fraction = 0.3, .every = 1}, Scored{}, GlobalCut<>{.alpha = 0.5});
  in.feed(cache, 0, 90);
  cache.compress();
  EXPECT_EQ(cache.size(0, 0), 13);  // floor(.5 * 27)
  EXPECT_EQ(cache.stats().held, 6 * 27);
}

// Counts by one scorer, rows by another; counted once.
TEST(GlobalCut, ByAnotherScorerCountsOnce) {
  const Random2 in(5, false);
  const Keep keep{.fraction = 0.3, .sinks = 2, .every = 1};
  KVCache own(in.s, keep, Scored{}, GlobalCut<>{});
  KVCache by(in.s, keep, StreamingLLM{}, GlobalCut<Scored>{});
  auto text = parse_spec("keep(fraction=0.3,sinks=2,every=1)+streamingllm");
  text.budgeters.push_back(GlobalCut<AnyScorer>{.by = AnyScorer(Scored{})});
  AnyCache erased = make_cache(text, in.s);
  in.feed(own, 0, 60);
  in.feed(by, 0, 60);
  in.feed(erased, 0, 60);
  own.compress();
  by.compress();
  erased.compress();
  EXPECT_EQ(sizes(by), sizes(own));
  EXPECT_EQ(sizes(erased), sizes(own));
  EXPECT_NE(all_positions(by), all_positions(own));
  // Rows are the newest ones.
  EXPECT_EQ(to_int(by.positions(2, 1).back()), 59);
  const auto before = sizes(by);
  in.feed(by, 60, 30);
  in.feed(erased, 60, 30);
  by.compress();
  erased.compress();
  EXPECT_EQ(sizes(erased), sizes(by));
  // Shares stay as they were counted.
  const double all = 6 * static_cast<Index>(.3 * 88 + 1e-9), then = 6 * static_cast<Index>(.3 * 58);
  for (std::size_t i = 0; i < 6; ++i)
    EXPECT_NEAR(double(sizes(by)[i] - 2) / all, double(before[i] - 2) / then, 0.02);
}

// A cut by a scorer that sums attention as it comes: its column follows the rows.
TEST(GlobalCut, BySumsOfAttention) {
  Shape s = reference::shape();
  s.layers = 2;
  const auto fill_cache = [&](auto& cache) {
    for (int l = 0; l < 2; ++l) {
      cache.append(l, reference::Tensor("k_l15").view(0, 256),
                   reference::Tensor(l == 0 ? "v_l15" : "v_l00").view(0, 256));
      cache.observe(l, reference::Tensor("q_l15").view(0, 256));
    }
    cache.compress();
  };
  KVCache own(s, Keep{.fraction = 0.25}, H2O{}, GlobalCut<>{});
  KVCache by(s, Keep{.fraction = 0.25}, H2O{}, GlobalCut<H2O>{});
  AnyCache text = make_cache("keep(fraction=0.25)+h2o+globalcut(by=h2o)", s);
  fill_cache(own);
  fill_cache(by);
  fill_cache(text);
  EXPECT_EQ(all_positions(by), all_positions(own));
  EXPECT_EQ(all_positions(text), all_positions(own));
  EXPECT_NE(sizes(own)[0], sizes(own)[1]);
}

// ---- products, in order

TEST(Products, TableTimesZigZagIsTheProductOfTheirFactors) {
  const Random2 in(6, false);
  const std::vector<double> profile{40, 10, 20};
  const auto product = [&](auto... policies) {
    KVCache cache(in.s, Keep{.fraction = 0.3, .every = 1}, Scored{}, policies...);
    in.feed(cache, 0, 90);
    cache.compress();
    return sizes(cache);
  };
  std::vector<double> quota;
  const std::vector<double> table{1, 2, 3, 1, 2, 2};
  for (std::size_t i = 0; i < 6; ++i)
    quota.push_back(table[i] * (.2 + .8 * profile[i / 2] / (70. / 3)));
  EXPECT_EQ(product(TableBudget{table}, ZigZagKV{.profile = profile}),
            fill(quota, std::vector<Index>(6, 0), std::vector<Index>(6, 90), 6 * 27));
  // A cut by another scorer is a factor, wherever it stands: table times counts.
  const std::vector<Index> counts = product(GlobalCut<Scored>{});
  for (std::size_t i = 0; i < 6; ++i) quota[i] = table[i] * double(counts[i]);
  const std::vector<Index> both =
      fill(quota, std::vector<Index>(6, 0), std::vector<Index>(6, 90), 6 * 27);
  EXPECT_EQ(product(TableBudget{table}, GlobalCut<Scored>{}), both);
  EXPECT_EQ(product(GlobalCut<Scored>{}, TableBudget{table}), both);
  EXPECT_NE(both, counts);
  // A cut by own scores re-divides what came before, and is multiplied by what comes after.
  EXPECT_EQ(product(TableBudget{table}, GlobalCut<>{}), product(GlobalCut<>{}));
  EXPECT_NE(product(GlobalCut<>{}, TableBudget{table}), product(GlobalCut<>{}));
  // AdaKV runs after those that see the whole model, wherever it is named; totals of layers stay.
  const auto divided = product(AdaKV{}, ZigZagKV{.profile = profile});
  const auto layers = product(ZigZagKV{.profile = profile});
  for (std::size_t l = 0; l < 3; ++l)
    EXPECT_NEAR(double(divided[2 * l] + divided[2 * l + 1]),
                double(layers[2 * l] + layers[2 * l + 1]), 2);
  EXPECT_NE(divided, layers);
}

TEST(Budgets, BadParametersAreNamed) {
  const auto message = [](auto policy) {
    return message_of(
        [&] { KVCache cache(Shape{.layers = 3}, Keep{.tokens = 64}, KeyNorm{}, policy); });
  };
  EXPECT_NE(message(AdaKV{-.1}).find("AdaKV::alpha"), std::string::npos);
  EXPECT_NE(message(AdaKV{double(NAN)}).find("AdaKV::alpha"), std::string::npos);
  EXPECT_NE(message(PyramidKV{.5}).find("PyramidKV::beta"), std::string::npos);
  EXPECT_NE(message(GlobalCut<>{2}).find("GlobalCut::alpha"), std::string::npos);
  EXPECT_NE(message(GlobalCut<KeyDiff>{.alpha = -1}).find("GlobalCut::alpha"), std::string::npos);
  EXPECT_NE(message(GlobalCut<SnapKV>{.by = {.pool = 2}}).find("SnapKV::pool"), std::string::npos);
}

}  // namespace budgets_test
