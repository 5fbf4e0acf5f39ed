// SPDX-License-Identifier: MIT
#include <gtest/gtest.h>

#include <lesskv/cache/head_store.hpp>
#include <random>

#include "reference.hpp"

namespace lagkv_test {

using namespace reference;

// LagKV in double, by the paper's equations: kept rows of one head, one-shot.
std::vector<std::int32_t> oracle(const Matrix& keys, const Matrix& values, Index sinks, Index lag,
                                 double fraction, double weight) {
  const Index n = keys.rows();
  std::vector<std::int32_t> kept;
  const Index parts = n < sinks + 2 * lag ? 0 : (n - sinks) / lag;
  for (Index r = 0; r < std::min(n, sinks); ++r) kept.push_back(static_cast<std::int32_t>(r));
  const auto one_side = [&](const Matrix& x, Index first) {
    std::vector<double> e(static_cast<std::size_t>(lag));
    double sum = 0;
    for (Index i = 0; i < lag; ++i) {
      std::vector<double> z;
      for (Index c = 0; c < x.cols(); ++c) {
        double low = 1e300, high = -1e300;
        for (Index j = 0; j < lag; ++j) {
          low = std::min(low, double{x(first + lag + j, c)});
          high = std::max(high, double{x(first + lag + j, c)});
        }
        if (high > low) z.push_back((double{x(first + i, c)} - low) / (high - low));
      }
      double mean = 0, squares = 0;
      for (const double v : z) mean += v / double(z.size());
      for (const double v : z) squares += (v - mean) * (v - mean);
      e[static_cast<std::size_t>(i)] =
          z.size() < 2 ? 1 : std::exp(std::sqrt(squares / double(z.size() - 1)));
      sum += e[static_cast<std::size_t>(i)];
    }
    for (double& v : e) v /= sum;
    return e;
  };
  for (Index p = 0; p + 1 < parts; ++p) {
    const Index first = sinks + p * lag;
    const auto k = one_side(keys, first), v = one_side(values, first);
    std::vector<std::pair<double, Index>> order;
    for (Index i = 0; i < lag; ++i)
      order.emplace_back(-(k[std::size_t(i)] + weight * v[std::size_t(i)]), -(first + i));
    std::sort(order.begin(), order.end());
    std::vector<std::int32_t> chosen;
    for (Index i = 0; i < static_cast<Index>(fraction * double(lag) + 1e-9); ++i)
      chosen.push_back(static_cast<std::int32_t>(-order[std::size_t(i)].second));
    std::sort(chosen.begin(), chosen.end());
    kept.insert(kept.end(), chosen.begin(), chosen.end());
  }
  for (Index r = parts == 0 ? std::min(n, sinks) : sinks + (parts - 1) * lag; r < n; ++r)
    kept.push_back(static_cast<std::int32_t>(r));
  return kept;
}

struct Case {
  int layer;
  Index sinks, lag;
  std::string fraction, weight;
  std::string file() const {
    return "lagkv/kept_" + layer_name(layer) + "_S" + std::to_string(sinks) + "_L" +
           std::to_string(lag) + "_r" + fraction + (weight.empty() ? "" : "_w" + weight) + ".npy";
  }
};

std::vector<Case> cases() {
  std::vector<Case> out;
  for (const int layer : {0, 15, 29})
    for (const auto& [sinks, lag] : {std::pair<Index, Index>{4, 128}, {16, 128}, {16, 256}})
      for (const char* fraction : {"0.5", "0.25", "0.1"})
        out.push_back({layer, sinks, lag, fraction, ""});
  out.push_back({15, 16, 128, "0.25", "0.5"});
  out.push_back({15, 16, 128, "0.25", "0"});
  return out;
}

TEST(LagKV, KeptSetsEqualTheOfficialCodeInEveryCaseAndForEverySplit) {
  std::mt19937 random(1);
  for (const Case& c : cases()) {
    SCOPED_TRACE(c.file());
    const Tensor k("k_" + layer_name(c.layer)), v("v_" + layer_name(c.layer));
    const LagKV policy{.lag = c.lag, .value_weight = c.weight.empty() ? 1.f : std::stof(c.weight)};
    const Keep keep{.fraction = std::stod(c.fraction), .sinks = c.sinks};
    const auto want = kept(c.file());
    for (int split = 0; split < 4; ++split) {  // one-shot, then parts of at most 1, 100, 400 tokens
      KVCache cache(shape(), policy, keep);
      for (Index at = 0; at < 1024;) {
        const Index most = split == 0 ? 1024 : split == 1 ? 1 : split == 2 ? 100 : 400;
        const Index n = std::min<Index>(
            1024 - at,
            split < 2 ? most : 1 + static_cast<Index>(random() % static_cast<unsigned>(most)));
        cache.append(0, k.view(at, n), v.view(at, n));
        cache.compress();
        at += n;
      }
      for (int h = 0; h < 3; ++h)
        EXPECT_EQ(positions(cache.positions(0, h)), row(want, h))
            << "head " << h << " split " << split;
    }
  }
}

TEST(LagKV, LengthsAndSetsAlongAStreamEqualTheOfficialCode) {
  const Tensor k("k_l15"), v("v_l15");
  const auto lengths =
      support::load_npy<std::int32_t>(path("lagkv/stream_l15_S16_L128_r0.25_lengths.npy"));
  KVCache cache(shape(), LagKV{}, Keep{.fraction = 0.25, .sinks = 16});
  for (Index at = 0; at < 1024; ++at) {
    cache.append(0, k.view(at, 1), v.view(at, 1));
    cache.compress();
    ASSERT_EQ(cache.size(0, 0), lengths.data[static_cast<std::size_t>(at)])
        << "after token " << at + 1;
    for (const Index stop : {271, 272, 273, 400, 700, 1024})
      if (at + 1 == stop) {
        const auto want =
            kept("lagkv/stream_l15_S16_L128_r0.25_at" + std::to_string(stop) + ".npy");
        for (int h = 0; h < 3; ++h)
          EXPECT_EQ(positions(cache.positions(0, h)), row(want, h)) << stop;
      }
  }
}

TEST(LagKV, ScoresEqualTheOfficialCode) {
  for (const int layer : {0, 15, 29})
    for (const auto& [sinks, lag] : {std::pair<Index, Index>{4, 128}, {16, 128}, {16, 256}}) {
      const auto want = support::load_npy<float>(path("lagkv/score_" + layer_name(layer) + "_S" +
                                                      std::to_string(sinks) + "_L" +
                                                      std::to_string(lag) + ".npy"));
      for (int h = 0; h < 3; ++h) {
        Seen seen(layer, h);
        const Index scored = static_cast<Index>(want.shape[1]);
        for (Index first = sinks; first < sinks + scored; first += lag) {
          seen.head.first = first;
          seen.head.last = first + lag;
          LagKV{.lag = lag}.score(seen.head, seen.scores);
        }
        const float* file = want.data.data() + h * scored;
        for (Index r = 0; r < scored; ++r)
          ASSERT_NEAR(seen.scores[std::size_t(sinks + r)], file[r], 2e-6f * file[r])
              << layer << " " << h << " " << r;
      }
    }
}

// Integer tensors worked out by hand in the paper's formula, float64.
TEST(LagKV, WorkedExample) {
  const Shape tiny{.query_heads = 2, .kv_heads = 2, .head_dim = 4, .dtype = DType::f32};
  Matrix K(22, 8), V(22, 8);
  for (int n = 0; n < 22; ++n)
    for (int h = 0; h < 2; ++h)
      for (int d = 0; d < 4; ++d) {
        K(n, h * 4 + d) =
            static_cast<float>((3 * n * n + 7 * n + 13 * d + 5 * h + 2 * n * d) % 29) / 29;
        V(n, h * 4 + d) =
            static_cast<float>((5 * n * n + 11 * n + 17 * d + 3 * h + 4 * n * d + 1) % 31) / 31;
      }
  const auto run = [&](LagKV policy, Index tokens) {
    KVCache cache(tiny, policy, Keep{.fraction = 0.5, .sinks = 2});
    cache.append(0, View::packed(K.data(), tokens, 2, 4), View::packed(V.data(), tokens, 2, 4));
    cache.compress();
    return std::pair(positions(cache.positions(0, 0)), positions(cache.positions(0, 1)));
  };
  using V32 = std::vector<std::int32_t>;
  EXPECT_EQ(run({.lag = 4}, 19),
            (std::pair<V32, V32>{{0, 1, 2, 5, 6, 8, 10, 13, 14, 15, 16, 17, 18},
                                 {0, 1, 2, 5, 7, 8, 10, 13, 14, 15, 16, 17, 18}}));
  EXPECT_EQ(run({.lag = 4}, 22),
            (std::pair<V32, V32>{{0, 1, 2, 5, 6, 8, 10, 13, 16, 17, 18, 19, 20, 21},
                                 {0, 1, 2, 5, 7, 8, 10, 13, 14, 16, 18, 19, 20, 21}}));
  EXPECT_EQ(run({.lag = 4, .value_weight = 0}, 19).first,
            (V32{0, 1, 2, 5, 6, 9, 10, 12, 14, 15, 16, 17, 18}));
}

TEST(LagKV, APerturbedKeyMovesTheSetAsTheOracleSays) {
  Seen seen(15, 1);
  std::mt19937 random(2);
  int moved = 0;
  const Shape one{.query_heads = 1, .kv_heads = 1, .head_dim = 64, .dtype = DType::f32};
  for (int round = 0; round < 12; ++round) {
    Matrix keys = seen.keys;
    const Index r = 16 + static_cast<Index>(random() % 800);
    keys(r, static_cast<Index>(random() % 64)) += 40.f;
    KVCache cache(one, LagKV{}, Keep{.fraction = 0.25, .sinks = 16});
    cache.append(0, View::packed(keys.data(), 1024, 1, 64),
                 View::packed(seen.values.data(), 1024, 1, 64));
    cache.compress();
    const auto want = oracle(keys, seen.values, 16, 128, 0.25, 1);
    EXPECT_EQ(positions(cache.positions(0, 0)), want);
    moved += want != oracle(seen.keys, seen.values, 16, 128, 0.25, 1);
  }
  EXPECT_GT(moved, 6);
}

TEST(LagKV, ChannelsWithoutARangeSayNothing) {
  Seen seen(0, 0);
  Matrix keys = seen.keys, values = seen.values;
  keys.col(3).setConstant(2.f);
  keys.col(4).segment(144, 128).setZero();  // constant in one chunk only
  values.setZero();                         // nothing to say at all
  const Shape one{.query_heads = 1, .kv_heads = 1, .head_dim = 64, .dtype = DType::f32};
  KVCache cache(one, LagKV{}, Keep{.fraction = 0.25, .sinks = 16});
  cache.append(0, View::packed(keys.data(), 1024, 1, 64), View::packed(values.data(), 1024, 1, 64));
  cache.compress();
  EXPECT_EQ(positions(cache.positions(0, 0)), oracle(keys, values, 16, 128, 0.25, 1));
}

TEST(LagKV, IdenticalRowsGiveFiniteEqualScoresAndTheLaterRowsStay) {
  const Shape one{.query_heads = 1, .kv_heads = 1, .head_dim = 8, .dtype = DType::f32};
  const Matrix same = Matrix::Ones(24, 8);
  KVCache cache(one, LagKV{.lag = 8}, Keep{.fraction = 0.5});
  cache.append(0, View::packed(same.data(), 24, 1, 8), View::packed(same.data(), 24, 1, 8));
  cache.compress();
  EXPECT_EQ(
      positions(cache.positions(0, 0)),
      (std::vector<std::int32_t>{4, 5, 6, 7, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23}));
}

std::vector<float> scores_of_chunk(const Matrix& keys, const Matrix& values, Index lag,
                                   const LagKV& policy) {
  std::vector<Position> at(static_cast<std::size_t>(2 * lag));
  Head head;
  head.positions = at;
  head.last = lag;
  lesskv::detail::point(head.keys, keys.data(), 2 * lag, keys.cols(), keys.cols());
  lesskv::detail::point(head.values, values.data(), 2 * lag, values.cols(), values.cols());
  std::vector<float> out(at.size());
  policy.score(head, out);
  out.resize(static_cast<std::size_t>(lag));
  return out;
}
std::vector<float> scores_of_chunk(const Matrix& keys, const Matrix& values, Index lag) {
  return scores_of_chunk(keys, values, lag, {.lag = lag});
}

Matrix normal(Index rows, Index columns, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> distribution;
  Matrix m(rows, columns);
  for (Index i = 0; i < m.size(); ++i) m.data()[i] = distribution(random);
  return m;
}

// Numbers whose squares leave the range of f32: still no NaN, and the outlier wins.
TEST(LagKV, HugeNumbersGiveNoNaN) {
  const Index lag = 8;
  const Matrix values = normal(2 * lag, 6, 9);
  Matrix outlier = normal(2 * lag, 6, 10);
  outlier.bottomRows(lag).col(1) *= 1e-12f;
  outlier(3, 1) = 1e15f;
  Matrix wide = normal(2 * lag, 6, 11);
  wide(lag, 2) = 3e38f;
  wide(lag + 1, 2) = -3e38f;
  wide(2, 2) = 3e38f;
  for (const Matrix& keys : {outlier, wide})
    for (const float score : scores_of_chunk(keys, values, lag)) EXPECT_TRUE(std::isfinite(score));
  const std::vector<float> got = scores_of_chunk(outlier, values, lag);
  EXPECT_EQ(std::max_element(got.begin(), got.end()) - got.begin(), 3);
}

// Min-max scaling removes any positive affine map of a channel.
TEST(LagKV, ScaleAndShiftOfAChannelChangeNothing) {
  const Matrix keys = normal(20, 8, 3), values = normal(20, 8, 4);
  Matrix other = keys;
  for (Index c = 0; c < 8; ++c)
    other.col(c) = (keys.col(c).array() * static_cast<float>(c + 1) + 4.f).matrix();
  const std::vector<float> a = scores_of_chunk(keys, values, 10),
                           b = scores_of_chunk(other, values, 10);
  for (std::size_t i = 0; i < a.size(); ++i) EXPECT_NEAR(a[i], b[i], 1e-5f);
}

// The variants of the paper's ablation in double: the same chunks, other scores.
TEST(LagKV, VariantsAreThoseOfTheAblation) {
  const Index lag = 10;
  const Matrix keys = normal(2 * lag, 8, 5), values = normal(2 * lag, 8, 6);
  const auto scores = [&](LagVariant variant) {
    return scores_of_chunk(keys, values, lag, {.lag = lag, .variant = variant});
  };
  const std::vector<float> norms = scores(LagVariant::l2norm);
  for (Index r = 0; r < lag; ++r)
    EXPECT_NEAR(norms[std::size_t(r)], -keys.row(r).cast<double>().norm(), 1e-5);
  // A chunk that is followed by itself: its own extremes are those of the next.
  Matrix twice_keys = keys, twice_values = values;
  twice_keys.bottomRows(lag) = keys.topRows(lag);
  twice_values.bottomRows(lag) = values.topRows(lag);
  EXPECT_EQ(scores(LagVariant::localkv),
            scores_of_chunk(twice_keys, twice_values, lag, {.lag = lag}));
  EXPECT_NE(scores(LagVariant::localkv), scores(LagVariant::lagkv));
}

// Through a cache, which scores the method itself from storage and the variants from f32.
TEST(LagKV, VariantsKeepTheirRows) {
  const Index lag = 128;
  Seen seen(15, 0);
  const Shape one{.query_heads = 1, .kv_heads = 1, .head_dim = 64, .dtype = DType::f32};
  std::vector<std::vector<std::int32_t>> sets;
  for (const LagVariant variant : {LagVariant::lagkv, LagVariant::localkv, LagVariant::l2norm}) {
    const LagKV policy{.lag = lag, .variant = variant};
    KVCache cache(one, policy, Keep{.fraction = 0.25});
    cache.append(0, View::packed(seen.keys.data(), 1024, 1, 64),
                 View::packed(seen.values.data(), 1024, 1, 64));
    cache.compress();
    std::vector<std::int32_t> want;
    for (Index first = 0; first + 2 * lag <= 1024; first += lag) {
      seen.head.first = first;
      seen.head.last = first + lag;
      policy.score(seen.head, seen.scores);
      std::vector<std::pair<float, Index>> order;
      for (Index r = first; r < first + lag; ++r)
        order.emplace_back(-seen.scores[std::size_t(r)], -r);
      std::sort(order.begin(), order.end());
      for (Index i = 0; i < lag / 4; ++i)
        want.push_back(static_cast<std::int32_t>(-order[std::size_t(i)].second));
    }
    for (Index r = 1024 - lag; r < 1024; ++r) want.push_back(static_cast<std::int32_t>(r));
    std::sort(want.begin(), want.end());
    sets.push_back(positions(cache.positions(0, 0)));
    EXPECT_EQ(sets.back(), want);
  }
  EXPECT_NE(sets[0], sets[1]);
  EXPECT_NE(sets[0], sets[2]);
  EXPECT_NE(sets[1], sets[2]);
}

TEST(LagKV, SkippedLayersStayWhole) {
  const Tensor k("k_l15"), v("v_l15");
  Shape two = shape();
  two.layers = 2;
  KVCache cache(two, LagKV{.skip_layers = {1}}, Keep{.fraction = 0.25, .sinks = 16});
  for (int l = 0; l < 2; ++l) cache.append(l, k.view(), v.view());
  cache.compress();
  EXPECT_EQ(cache.size(0, 0), 16 + 6 * 32 + 128 + 112);
  EXPECT_EQ(cache.size(1, 0), 1024);
}

TEST(LagKV, ScoresOfAChunkSumToOnePlusTheWeight) {
  Seen seen(29, 2);
  seen.head.first = 16;
  seen.head.last = 144;
  LagKV{.value_weight = 0.5f}.score(seen.head, seen.scores);
  double sum = 0;
  for (Index r = 16; r < 144; ++r) sum += double{seen.scores[std::size_t(r)]};
  EXPECT_NEAR(sum, 1.5, 1e-5);
}

// What the cache really calls: all chunks of a head in one pass over storage.
TEST(LagKV, ScoresFromStorageEqualThoseFromF32) {
  for (const DType type : {DType::f16, DType::bf16, DType::f32})
    for (const int layer : {0, 15, 29})
      for (const auto& [first, lag] :
           {std::pair<Index, Index>{16, 128}, {4, 128}, {0, 32}, {7, 100}, {0, 512}, {3, 33}}) {
        Seen seen(layer, 1);
        detail::HeadStore store(64, 64, type);
        store.append(seen.keys.data(), seen.values.data(), 1024);
        store.read(0, 1024, seen.keys.data(), seen.values.data());
        const LagKV policy{.lag = lag, .value_weight = 0.7f};
        const Index chunks = (1024 - first) / lag - 1;
        for (Index p = 0; p < chunks; ++p) {
          seen.head.first = first + p * lag;
          seen.head.last = seen.head.first + lag;
          policy.score(seen.head, seen.scores);
        }
        // Lent from the block that row `first` lies in, as a cache does after sinks.
        std::vector<BlockRef> blocks;
        for (Index b = first / 64; b < store.block_count(); ++b) blocks.push_back(store.block(b));
        Head head;
        head.last = chunks * lag;
        std::vector<float> got(static_cast<std::size_t>(chunks * lag));
        policy.score_tiles(head, Tiles{blocks, first % 64, type, 64, 64}, got);
        for (Index r = 0; r < chunks * lag; ++r) {
          const float want = seen.scores[static_cast<std::size_t>(first + r)];
          ASSERT_NEAR(got[static_cast<std::size_t>(r)], want, 1e-5f * want)
              << name_of(type) << " layer " << layer << " lag " << lag << " row " << r;
        }
      }
}

// Two documents in a row, so that the longest lag of the paper has a chunk.
TEST(LagKV, KeptSetsEqualTheOracleForLagsFrom32To1024) {
  const Shape one{.query_heads = 1, .kv_heads = 1, .head_dim = 64, .dtype = DType::f16};
  const Seen a(15, 0), b(29, 0), c(0, 0);
  Matrix keys(3072, 64), values(3072, 64);
  keys << a.keys, b.keys, c.keys;
  values << a.values, b.values, c.values;
  for (const Index lag : {32, 64, 256, 512, 1024})
    for (const Index step : {Index{3072}, Index{300}}) {
      KVCache cache(one, LagKV{.lag = lag}, Keep{.fraction = 0.25, .sinks = 16});
      for (Index at = 0; at < 3072; at += step) {
        const Index n = std::min(step, 3072 - at);
        cache.append(0, View::packed(keys.data() + at * 64, n, 1, 64),
                     View::packed(values.data() + at * 64, n, 1, 64));
        cache.compress();
      }
      EXPECT_EQ(positions(cache.positions(0, 0)), oracle(keys, values, 16, lag, 0.25, 1))
          << "lag " << lag << " step " << step;
    }
}

// Other counts for every head: each keeps its own best rows, and the total stays exact.
TEST(LagKV, NonUniformBudgetsKeepTheBestRowsOfEveryHead) {
  const Tensor k("k_l15"), v("v_l15");
  for (const Index step : {Index{1024}, Index{1}}) {
    KVCache cache(shape(), LagKV{}, TableBudget{.shares = {0.5, 1, 1.5}},
                  Keep{.fraction = 0.25, .sinks = 16});
    for (Index at = 0; at < 1024; at += step) {
      cache.append(0, k.view(at, step), v.view(at, step));
      cache.compress();
    }
    const Index chunks = 6, whole = 16 + 1024 - 16 - chunks * 128;
    Index total = 0;
    for (int h = 0; h < 3; ++h) {
      const Index kept_of_chunk = (cache.size(0, h) - whole) / chunks;
      EXPECT_EQ(kept_of_chunk, 16 + 16 * h);
      const Seen seen(15, h);
      EXPECT_EQ(positions(cache.positions(0, h)),
                oracle(seen.keys, seen.values, 16, 128, double(kept_of_chunk) / 128, 1));
      total += cache.size(0, h);
    }
    EXPECT_EQ(total, 3 * (whole + chunks * 32));
  }
}

TEST(LagKV, WrongParametersAreNamed) {
  const auto message = [](LagKV policy) -> std::string {
    try {
      KVCache cache(shape(), policy, Keep{.fraction = 0.5});
    } catch (const Error& error) {
      return error.what();
    }
    return "";
  };
  EXPECT_NE(message({.lag = 1}).find("LagKV::lag"), std::string::npos);
  EXPECT_NE(message({.value_weight = -1}).find("value_weight"), std::string::npos);
  EXPECT_NE(message({.skip_layers = {1}}).find("skip_layers"), std::string::npos);
}

}  // namespace lagkv_test
