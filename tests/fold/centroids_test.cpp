// SPDX-License-Identifier: MIT
// Rows that leave become means: what they are, how attention counts them, and that every law of the
// container holds with them.
#include <gmock/gmock.h>

#include <lesskv/any.hpp>
#include <numeric>
#include <thread>

#include "cache/support.hpp"

namespace centroids_test {

using namespace support;
using testing::HasSubstr;

const Shape small{
    .layers = 2, .query_heads = 4, .kv_heads = 2, .head_dim = 16, .dtype = DType::f32};

// Runs of equal length of the rows that leave.
struct Runs {
  double share = 0.25;
  void merge(const Head& leaving, std::span<const float>, Index count,
             std::span<std::int32_t> cluster) const {
    for (Index r = 0; r < leaving.size(); ++r)
      cluster[std::size_t(r)] = static_cast<std::int32_t>(r * count / leaving.size());
  }
};
// Every row in one cluster of those there may be: most are empty.
struct One {
  double share = 0.25;
  void merge(const Head&, std::span<const float>, Index, std::span<std::int32_t> cluster) const {
    std::fill(cluster.begin(), cluster.end(), 0);
  }
};

template <class Cache>
double mass(const Cache& cache, int layer, int head) {
  double sum = 0;
  for (const float x : cache.log_mass(layer, head)) sum += std::exp(double{x});
  return sum;
}
template <class Cache>
Index means(const Cache& cache, int layer, int head) {
  const auto of = cache.log_mass(layer, head);
  return std::count_if(of.begin(), of.end(), [](float x) { return x > 0; });
}

// Attention with the masses as a bias, by its definition.
template <class Cache>
Matrix by_definition(const Cache& cache, int layer, const Matrix& queries,
                     const std::vector<Position>& at, const AttendOptions& options = {}) {
  std::vector<std::vector<float>> all;
  for (int h = 0; h < cache.shape().kv_heads; ++h) {
    all.push_back(cache.log_mass(layer, h));
    if (!options.bias.empty())
      for (std::size_t r = 0; r < all.back().size(); ++r)
        all.back()[r] += options.bias[std::size_t(h)][r];
  }
  const std::vector<std::span<const float>> bias(all.begin(), all.end());
  AttendOptions with = options;
  with.bias = bias;
  return attention_by_definition(cache, layer, queries, at, with);
}

TEST(Merger, MeansAreTheMeansOfWhatLeft) {
  const auto in = tensors(small, 200, 1);
  KVCache cache(small, Keep{.fraction = 0.2, .sinks = 4}, Recent{}, Runs{});
  feed(cache, in, 0, 200);
  cache.compress();
  // 196 candidates a head: 156 rows in all heads, of which 39 are means; 117 stay, 30 or 29 a head.
  Index rows = 0, of_means = 0;
  for (int l = 0; l < 2; ++l)
    for (int h = 0; h < 2; ++h) {
      const Index n = cache.size(l, h), m = means(cache, l, h), stay = n - 4 - m;
      rows += n;
      of_means += m;
      EXPECT_NEAR(mass(cache, l, h), 200, 1e-3);
      const Matrix keys = cache.keys(l, h), values = cache.values(l, h);
      const auto at = cache.positions(l, h);
      const auto log_mass = cache.log_mass(l, h);
      const Index leave = 196 - stay;
      Index run = 0;
      for (Index r = 0; r < n; ++r) {
        const Tensors& t = in[std::size_t(l)];
        const auto key_of = [&](Index p) { return t.keys.row(p).segment(h * 16, 16); };
        if (!(log_mass[std::size_t(r)] > 0)) {
          EXPECT_EQ(keys.row(r), key_of(to_int(at[std::size_t(r)])));
          continue;
        }
        Eigen::RowVectorXd key = Eigen::RowVectorXd::Zero(16), value = key;
        Index members = 0, newest = 0;
        for (Index i = 0; i < leave; ++i)
          if (i * m / leave == run) {
            key += key_of(4 + i).cast<double>();
            value += t.values.row(4 + i).segment(h * 16, 16).cast<double>();
            newest = 4 + i;
            ++members;
          }
        EXPECT_NEAR(log_mass[std::size_t(r)], std::log(double(members)), 1e-6);
        EXPECT_LT((keys.row(r).cast<double>() - key / double(members)).norm(), 1e-5);
        EXPECT_LT((values.row(r).cast<double>() - value / double(members)).norm(), 1e-5);
        EXPECT_EQ(to_int(at[std::size_t(r)]), newest);
        ++run;
      }
      EXPECT_EQ(run, m);
    }
  EXPECT_EQ(rows, 4 * 4 + 156);
  EXPECT_EQ(of_means, 39);
}

// Scores that weigh the rows of a mean.
struct FirstChannel {
  float least = 0;
  static constexpr Need needs = Need::values;
  void score(const Head& head, std::span<float> out) const {
    for (Index r = head.first; r < head.last; ++r)
      out[std::size_t(r)] = least + std::abs(head.values(r, 0));
  }
};

TEST(Centroids, RowsCountInMeansAsMuchAsTheirScores) {
  const Shape shape{
      .layers = 1, .query_heads = 1, .kv_heads = 1, .head_dim = 8, .dtype = DType::f32};
  const auto in = tensors(shape, 40, 20);
  // 20 rows: one mean, 19 that score highest. A negative score: all rows weigh the same.
  for (const float least : {0.f, -10.f}) {
    KVCache cache(shape, Keep{.fraction = 0.5, .every = 1}, FirstChannel{least},
                  Centroids{.share = 0.05, .rounds = 3});
    feed(cache, in, 0, 40);
    cache.compress();
    ASSERT_EQ(cache.size(0, 0), 20);
    const auto held = cache.positions(0, 0);
    const auto log_mass = cache.log_mass(0, 0);
    const auto row = std::find_if(log_mass.begin(), log_mass.end(), [](float x) { return x > 0; }) -
                     log_mass.begin();
    EXPECT_NEAR(log_mass[std::size_t(row)], std::log(21.), 1e-6);
    std::vector<std::pair<float, Index>> order;
    for (Index r = 0; r < 40; ++r) order.emplace_back(std::abs(in[0].values(r, 0)), r);
    std::sort(order.begin(), order.end());
    Eigen::RowVectorXd key = Eigen::RowVectorXd::Zero(8), value = key;
    double sum = 0;
    Index newest = 0;
    for (Index i = 0; i < 21; ++i) {
      const double weight = least < 0 ? 1 : double{order[std::size_t(i)].first};
      const Index r = order[std::size_t(i)].second;
      key += weight * in[0].keys.row(r).cast<double>();
      value += weight * in[0].values.row(r).cast<double>();
      sum += weight;
      newest = std::max(newest, r);
    }
    EXPECT_LT((cache.keys(0, 0).row(row).cast<double>() - key / sum).norm(), 1e-5) << least;
    EXPECT_LT((cache.values(0, 0).row(row).cast<double>() - value / sum).norm(), 1e-5) << least;
    EXPECT_EQ(to_int(held[std::size_t(row)]), newest);
  }
}

TEST(Merger, EmptyClustersLeaveNoRow) {
  const auto in = tensors(small, 200, 2);
  KVCache cache(small, Keep{.fraction = 0.2}, Recent{}, One{});
  feed(cache, in, 0, 200);
  cache.compress();
  for (int l = 0; l < 2; ++l)
    for (int h = 0; h < 2; ++h) {
      EXPECT_EQ(means(cache, l, h), 1);
      EXPECT_EQ(cache.size(l, h), 30 + 1);
    }
}

// Runs of equal rows: their means lose nothing.
TEST(Centroids, EqualRowsAreCountedAsTheyWere) {
  const Shape shape{
      .layers = 1, .query_heads = 2, .kv_heads = 1, .head_dim = 16, .dtype = DType::f32};
  Tensors in(shape, 512, 3);
  const Tensors kinds = in;
  for (Index r = 0; r < 512; ++r) {
    const Index kind = r / 15 % 11;  // as many as leave make a mean
    in.keys.row(r) = kinds.keys.row(kind);
    in.values.row(r) = kinds.values.row(kind);
  }
  const auto error = [&](auto cache) {
    KVCache exact(shape);
    const auto fed = feed(exact, {in}, 0, 512);
    feed(cache, {in}, 0, 512);
    cache.compress();
    EXPECT_LT(cache.size(0, 0), 70);
    Matrix queries = normal(5, 32, 77), got(5, 32), want(5, 32);
    const auto at = range(512, 5);
    cache.attend(0, View::packed(queries.data(), 5, 2, 16), got.data(), {.positions = at});
    exact.attend(0, View::packed(queries.data(), 5, 2, 16), want.data(), {.positions = at});
    return relative_error(got, want);
  };
  const Keep keep{.fraction = 0.125};
  EXPECT_LT(error(KVCache(shape, keep, Recent{}, Centroids{.share = 0.5})), 1e-5);
  EXPECT_GT(error(KVCache(shape, keep, Recent{})), 0.05);
}

TEST(Centroids, AttentionIsItsDefinitionWithMasses) {
  const auto check = [](auto cache, Index prompt, double bound = 1e-4) {
    const Shape& s = cache.shape();
    const auto in = tensors(s, prompt + 300, 4);
    feed(cache, in, 0, prompt);
    cache.compress();
    ASSERT_GT(means(cache, 1, 0), 0);
    Index at = prompt;
    for (const Index n : {1, 3, 70, 226}) {  // a step, a few, many, many in pieces
      const Matrix got = feed(cache, in, at, n);
      const Matrix queries = in[1].queries.middleRows(at, n);
      EXPECT_LT(relative_error(got, by_definition(cache, 1, queries, range(at, n))), bound) << n;
      at += n;
    }
    // A tree of drafts, and what the engine adds itself.
    std::vector<std::vector<float>> own;
    for (int h = 0; h < s.kv_heads; ++h) {
      own.emplace_back(std::size_t(cache.size(1, h)));
      for (std::size_t r = 0; r < own.back().size(); ++r) own.back()[r] = float(r % 5) * 0.1f;
    }
    const std::vector<std::span<const float>> bias(own.begin(), own.end());
    const std::uint8_t mask[] = {1, 0, 0, 0, 1, 0, 1, 0, 1};
    const Matrix queries = in[1].queries.bottomRows(3);
    for (const bool tree : {false, true}) {
      AttendOptions options{.bias = bias};
      if (tree) options.mask = mask;
      Matrix got(3, queries.cols());
      cache.attend(1, View::packed(queries.data(), 3, s.query_heads, s.head_dim), got.data(),
                   options);
      EXPECT_LT(relative_error(got, by_definition(cache, 1, queries, range(at - 3, 3), options)),
                bound);
    }
  };
  const Keep keep{.fraction = 0.4, .sinks = 4, .recent = 8};
  check(KVCache(small, keep, SmallKeys{}, Centroids{}), 500);
  check(KVCache(small, keep, ChunkValues{}, Centroids{.share = 0.3}), 500);
  check(KVCache(small, keep, SumOfAttention{}, Tilted{}, Centroids{}), 500);
  Shape wide = small;
  wide.head_dim = 64;
  wide.dtype = DType::f16;
  check(KVCache(wide, keep, SmallKeys{}, Centroids{}), 12000);  // heads that are read in parts
  check(KVCache(wide, keep, SmallKeys{}, Centroids{}, LloydMax{.bits = 6}), 700, 1e-2);
  check(KVCache(wide, keep, SmallKeys{}, Centroids{}, IntCode{.bits = 8}), 700, 1e-2);
}

TEST(Centroids, PoliciesSeeTheAttentionThatIsPaid) {
  const auto in = tensors(small, 400, 5);
  const Keep keep{.fraction = 0.3};
  KVCache attends(small, keep, SumOfAttention{}, Centroids{}), observes = attends;
  feed(attends, in, 0, 300);
  for (int l = 0; l < 2; ++l) {
    observes.append(l, in[std::size_t(l)].k(0, 300), in[std::size_t(l)].v(0, 300));
    observes.observe(l, in[std::size_t(l)].q(0, 300));
  }
  attends.compress();
  observes.compress();
  for (const Index n : {1, 60}) {
    const Index at = n == 1 ? 300 : 301;
    feed(attends, in, at, n);
    for (int l = 0; l < 2; ++l) {
      observes.append(l, in[std::size_t(l)].k(at, n), in[std::size_t(l)].v(at, n));
      observes.observe(l, in[std::size_t(l)].q(at, n));
    }
  }
  const Matrix seen = attends.attention(1, 1, in[1].q(360, 1));
  EXPECT_NEAR(seen.row(0).sum(), 1, 1e-5);
  // By hand: softmax of q.k / 4 + log mass.
  const Matrix keys = attends.keys(1, 1);
  const auto mass = attends.log_mass(1, 1);
  std::vector<double> want;
  double sum = 0;
  for (Index r = 0; r < keys.rows(); ++r) {
    const double dot =
        in[1].queries.row(360).segment(32, 16).cast<double>().dot(keys.row(r).cast<double>());
    want.push_back(std::exp(dot / 4 + double{mass[std::size_t(r)]}));
    sum += want.back();
  }
  for (Index r = 0; r < keys.rows(); ++r) EXPECT_NEAR(seen(0, r), want[std::size_t(r)] / sum, 1e-6);
  // What both paths gathered keeps the same rows.
  attends.compress();
  observes.compress();
  for (int l = 0; l < 2; ++l)
    for (int h = 0; h < 2; ++h) EXPECT_EQ(attends.positions(l, h), observes.positions(l, h));
}

TEST(Centroids, TruncateForgetsWholly) {
  const Index p = 120;
  auto in = tensors(small, 400, 6);
  for (Tensors& t : in)
    for (Index r = 0; r < 400; ++r)
      for (int h = 0; h < 2; ++h) t.values(r, h * 16) = r >= p ? 1.f : 0.f;
  const auto check = [&](auto cache) {
    for (Index at = 0; at < 400; at += 100) {
      feed(cache, in, at, 100);
      cache.compress();
    }
    cache.truncate(Position{p});
    for (int l = 0; l < 2; ++l)
      for (int h = 0; h < 2; ++h) {
        EXPECT_EQ(cache.log_mass(l, h).size(), std::size_t(cache.size(l, h)));
        for (Index r = 0; r < cache.size(l, h); ++r)
          EXPECT_LT(std::abs(cache.values(l, h)(r, 0)), 0.2f);
      }
  };
  const Keep keep{.fraction = 0.3};
  check(KVCache(small, keep, SmallKeys{}, Centroids{.share = 0.3}));
  check(KVCache(small, keep, ChunkValues{}, Centroids{.share = 0.3}));
  check(KVCache(small, keep, SmallKeys{}, Centroids{.share = 0.3}, IntCode{.bits = 8}));
}

TEST(Centroids, StreamingEqualsOneShotWhereRowsAreJudgedOnce) {
  const auto in = tensors(small, 333, 7);
  const auto run = [&](std::initializer_list<Index> pieces) {
    KVCache cache(small, Keep{.fraction = 0.4, .sinks = 2}, ChunkValues{.chunk = 32}, Tilted{},
                  Centroids{});
    Index at = 0;
    for (const Index n : pieces) {
      feed(cache, in, at, n);
      cache.compress();
      at += n;
    }
    return cache;
  };
  const auto whole = run({333}), parts = run({1, 40, 2, 90, 13, 187});
  for (int l = 0; l < 2; ++l)
    for (int h = 0; h < 2; ++h) {
      EXPECT_EQ(whole.positions(l, h), parts.positions(l, h));
      EXPECT_EQ(whole.keys(l, h), parts.keys(l, h));
      EXPECT_EQ(whole.values(l, h), parts.values(l, h));
      EXPECT_EQ(whole.log_mass(l, h), parts.log_mass(l, h));
      EXPECT_GT(means(whole, l, h), 0);
    }
}

TEST(Centroids, LimitsHoldWhileGenerating) {
  const auto in = tensors(small, 900, 8);
  const auto check = [&](auto cache, const auto& within) {
    feed(cache, in, 0, 300);
    cache.compress();
    within(cache);
    for (Index t = 300; t < 900; ++t) {
      feed(cache, in, t, 1);
      cache.compress();
      within(cache);
    }
    for (int l = 0; l < 2; ++l)
      for (int h = 0; h < 2; ++h) {
        EXPECT_GT(means(cache, l, h), 0);
        EXPECT_LE(mass(cache, l, h), 900.01);
      }
  };
  check(KVCache(small, Keep{.tokens = 80, .sinks = 4}, SmallKeys{}, Centroids{}),
        [](const auto& cache) { ASSERT_LE(cache.stats().held, 4 * 80); });
  check(KVCache(small, Keep{.fraction = 0.5, .tokens = 80, .sinks = 4}, ChunkValues{},
                Centroids{.share = 0.3}),
        [](const auto& cache) { ASSERT_LE(cache.stats().held, 4 * 80); });
  check(KVCache(small, Keep{.bytes = 60000, .sinks = 4}, SmallKeys{}, Centroids{.share = 0.3}),
        [](const auto& cache) { ASSERT_LE(cache.bytes(), 60000u); });
  check(KVCache(small, Keep{.bytes = 50000, .sinks = 4}, SmallKeys{}, Centroids{.share = 0.3},
                IntCode{.bits = 8}),
        [](const auto& cache) { ASSERT_LE(cache.bytes(), 50000u); });
}

TEST(Centroids, ForksShareNothingThatIsWritten) {
  const auto in = tensors(small, 400, 9);
  KVCache cache(small, Keep{.fraction = 0.3}, SmallKeys{}, Centroids{});
  feed(cache, in, 0, 300);
  KVCache other = cache.fork();
  const Matrix keys = cache.keys(0, 0), values = cache.values(0, 0);
  other.compress();
  EXPECT_EQ(cache.keys(0, 0), keys);
  EXPECT_EQ(cache.values(0, 0), values);
  KVCache third = other.fork();
  cache.compress();
  EXPECT_EQ(cache.keys(1, 1), other.keys(1, 1));
  EXPECT_EQ(cache.log_mass(1, 1), other.log_mass(1, 1));
  feed(other, in, 300, 100);
  other.compress();
  EXPECT_EQ(cache.keys(1, 1), third.keys(1, 1));
  EXPECT_EQ(cache.log_mass(1, 1), third.log_mass(1, 1));
}

TEST(Centroids, ThreadsChangeNothing) {
  const auto in = tensors(small, 500, 10);
  KVCache one(small, Keep{.fraction = 0.3}, SmallKeys{}, Centroids{}), many = one;
  many.set_executor([](Index n, const std::function<void(Index)>& f) {
    std::vector<std::thread> threads;
    for (Index i = n; i-- > 0;) threads.emplace_back([&f, i] { f(i); });
    for (auto& thread : threads) thread.join();
  });
  feed(one, in, 0, 500);
  feed(many, in, 0, 500);
  one.compress();
  many.compress();
  for (int l = 0; l < 2; ++l)
    for (int h = 0; h < 2; ++h) {
      EXPECT_EQ(one.keys(l, h), many.keys(l, h));
      EXPECT_EQ(one.log_mass(l, h), many.log_mass(l, h));
    }
}

TEST(Centroids, AnEngineThatOwnsItsMemoryWritesWhatThePlanSays) {
  const auto in = tensors(small, 300, 11);
  KVCache cache(small, Keep{.fraction = 0.3, .sinks = 4}, SmallKeys{}, Centroids{});
  feed(cache, in, 0, 300);
  cache.compress();
  for (const bool transposed : {false, true}) {
    Planner planner(small, Keep{.fraction = 0.3, .sinks = 4}, SmallKeys{}, Centroids{});
    std::vector<Matrix> keys, values;  // [layer * 2 + head], [row][channel] or the other way round
    for (int i = 0; i < 4; ++i) {
      keys.push_back(in[std::size_t(i / 2)].keys.middleCols(i % 2 * 16, 16));
      values.push_back(in[std::size_t(i / 2)].values.middleCols(i % 2 * 16, 16));
      if (transposed) values.back() = Matrix(values.back().transpose());
    }
    const auto view = [&](const Matrix& m, bool turned) {
      View out = View::packed(m.data(), 300, 1, 16);
      if (turned) {
        out.token_stride = 1;
        out.channel_stride = 300;
      }
      return out;
    };
    const auto source = [&](int layer, int head) {
      const auto i = std::size_t(layer * 2 + head);
      return HeadView{view(keys[i], false), view(values[i], transposed)};
    };
    for (int l = 0; l < 2; ++l) planner.append(l, 300);
    const Plan plan = planner.plan(source);
    for (int i = 0; i < 4; ++i) {
      const HeadPlan& part = plan.heads[std::size_t(i)];
      const HeadView at = source(i / 2, i % 2);
      write_rows(at.keys, 16, part.merged.rows, part.merged.keys.data());
      write_rows(at.values, 16, part.merged.rows, part.merged.values.data());
      move_rows(at.keys, 16, part.kept);
      move_rows(at.values, 16, part.kept);
    }
    planner.commit(plan);
    for (int i = 0; i < 4; ++i) {
      const Index n = planner.size(i / 2, i % 2);
      ASSERT_EQ(n, cache.size(i / 2, i % 2));
      EXPECT_EQ(planner.log_mass(i / 2, i % 2), cache.log_mass(i / 2, i % 2));
      EXPECT_EQ(keys[std::size_t(i)].topRows(n), cache.keys(i / 2, i % 2));
      const Matrix got = transposed ? Matrix(values[std::size_t(i)].transpose().topRows(n))
                                    : Matrix(values[std::size_t(i)].topRows(n));
      EXPECT_EQ(got, cache.values(i / 2, i % 2));
    }
    const View short_view = View::packed(keys[0].data(), 10, 1, 16);
    const std::int32_t bad[] = {10};
    EXPECT_THAT(message_of([&] { write_rows(short_view, 16, bad, keys[1].data()); }),
                HasSubstr("rows: row 10"));
  }
}

TEST(Centroids, ByNameAndAsATypeAreTheSame) {
  const auto in = tensors(small, 300, 12);
  KVCache typed(small, Keep{.fraction = 0.3, .sinks = 4}, KeyDiff{},
                Centroids{.share = 0.2, .rounds = 2, .near = 8});
  AnyCache named = make_cache(
      "keep(fraction=0.3,sinks=4)+keydiff+centroids(share=0.2,rounds=2,near=8)+store(dtype=f32)",
      small);
  feed(typed, in, 0, 300);
  feed(named, in, 0, 300);
  typed.compress();
  named.compress();
  for (int l = 0; l < 2; ++l)
    for (int h = 0; h < 2; ++h) {
      EXPECT_EQ(typed.keys(l, h), named.keys(l, h));
      EXPECT_EQ(typed.log_mass(l, h), named.log_mass(l, h));
      EXPECT_GT(means(typed, l, h), 0);
    }
}

TEST(Centroids, WhatIsWrongIsNamedAndChangesNothing) {
  EXPECT_THAT(message_of([&] { make_cache("keep(fraction=0.5)+centroids", small); }),
              HasSubstr("which rows stay"));
  EXPECT_THAT(
      message_of([&] { make_cache("keep(fraction=0.5)+keydiff+centroids+centroids", small); }),
      HasSubstr("what becomes of rows that leave"));
  EXPECT_THAT(
      message_of([&] { make_cache("keep(fraction=0.5,shared=layer)+keydiff+centroids", small); }),
      HasSubstr("Keep::shared"));
  EXPECT_THAT(
      message_of([&] { make_cache("keep(fraction=0.5)+keydiff+centroids(share=1)", small); }),
      HasSubstr("Centroids::share"));
  EXPECT_THAT(
      message_of([&] { make_cache("keep(fraction=0.5)+keydiff+centroids(rounds=-1)", small); }),
      HasSubstr("Centroids::rounds"));
  EXPECT_THAT(
      message_of([&] { make_cache("keep(fraction=0.5)+keydiff+centroids(near=0)", small); }),
      HasSubstr("Centroids::near"));
  const auto in = tensors(small, 300, 13);
  AnyCache by_layer = make_cache("keep(fraction=0.5)+keydiff+centroids", small);
  feed(by_layer, in, 0, 300);
  EXPECT_THAT(message_of([&] { by_layer.compress(0); }), HasSubstr("compress(layer)"));

  struct Astray {
    double share = 0.2;
    void merge(const Head&, std::span<const float>, Index count,
               std::span<std::int32_t> cluster) const {
      std::fill(cluster.begin(), cluster.end(), static_cast<std::int32_t>(count));
    }
  };
  KVCache cache(small, Keep{.fraction = 0.3}, SmallKeys{}, Astray{});
  feed(cache, in, 0, 300);
  const Matrix keys = cache.keys(0, 0);
  const std::size_t bytes = cache.bytes();
  EXPECT_THAT(message_of([&] { cache.compress(); }), HasSubstr("a Merger put a row into cluster"));
  EXPECT_EQ(cache.keys(0, 0), keys);
  EXPECT_EQ(cache.bytes(), bytes);
}

}  // namespace centroids_test
