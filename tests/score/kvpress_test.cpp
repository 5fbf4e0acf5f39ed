// SPDX-License-Identifier: MIT
// SnapKV, TOVA, H2O, KeyDiff, KeyNorm, StreamingLLM against kvpress 0.5.5 on the same tensors. What
// kvpress protects by a large score is a pin here.
#include <gtest/gtest.h>

#include "reference.hpp"

namespace kvpress_test {

using namespace reference;

struct Numbers {
  const char* removed;
  Index kept;
};
constexpr Numbers half{"0.5", 512}, fifth{"0.8", 204};

template <class Policy>
void expect_kept(const std::string& name, Policy policy, int layer, Numbers numbers,
                 Keep keep = {}) {
  const std::string file =
      "kvpress/kept_" + name + "_" + layer_name(layer) + "_r" + numbers.removed + ".npy";
  SCOPED_TRACE(file);
  const auto want = kept(file);
  ASSERT_EQ(static_cast<Index>(want.shape[1]), numbers.kept);
  keep.tokens = numbers.kept;
  const Tensor k("k_" + layer_name(layer)), v("v_" + layer_name(layer));
  KVCache cache(shape(), policy, keep);
  cache.append(0, k.view(), v.view());
  if (asks(needs_of(policy), Need::attention)) {
    if (layer == 15) {  // all queries are there; in parts, as a chunked prefill gives them
      const Tensor q("q_l15");
      std::vector<Position> at;
      for (Index i = 0; i < 1024; ++i) at.push_back(Position{i});
      for (const auto& [first, n] : {std::pair<Index, Index>{0, 700}, {700, 324}})
        cache.observe(0, q.view(first, n),
                      std::span(at).subspan(std::size_t(first), std::size_t(n)));
    } else {
      cache.observe(0, Tensor("qwin64_" + layer_name(layer)).view());
    }
  }
  cache.compress();
  for (int h = 0; h < 3; ++h)
    EXPECT_EQ(positions(cache.positions(0, h)), row(want, h)) << "head " << h;
}

TEST(SnapKV, KeptSetsEqualKvpress) {
  for (const int layer : {0, 15, 29}) expect_kept("snapkv_w64k5", SnapKV{}, layer, fifth);
  expect_kept("snapkv_w64k5", SnapKV{}, 15, half);
  expect_kept("snapkv_w32k7", SnapKV{.window = 32, .pool = 7}, 15, half);
  expect_kept("snapkv_w32k7", SnapKV{.window = 32, .pool = 7}, 15, fifth);
}
TEST(TOVA, KeptSetsEqualKvpress) {
  for (const int layer : {0, 15, 29}) expect_kept("tova", TOVA{}, layer, fifth);
  expect_kept("tova", TOVA{}, 15, half);
}
TEST(H2O, KeptSetsEqualKvpressAndThePaper) {
  expect_kept("observed", H2O{.age_normalised = true}, 15, half);
  expect_kept("observed", H2O{.age_normalised = true}, 15, fifth);
  expect_kept("h2o", H2O{}, 15, half, {.recent = 256});
  expect_kept("h2o", H2O{}, 15, fifth, {.recent = 102});
}
TEST(KeyDiff, KeptSetsEqualKvpress) {
  for (const int layer : {0, 15, 29}) expect_kept("keydiff", KeyDiff{}, layer, fifth);
  expect_kept("keydiff", KeyDiff{}, 15, half);
}
TEST(KeyNorm, KeptSetsEqualKvpress) {
  for (const int layer : {0, 15, 29}) expect_kept("knorm", KeyNorm{}, layer, fifth);
  expect_kept("knorm", KeyNorm{}, 15, half);
}

// Rows of the file: length, percent removed, rows kept, rows with score 1, sinks kept, recent rows
// kept.
TEST(StreamingLLM, CountsEqualKvpress) {
  const auto file = kept("kvpress/streaming_llm.npy");
  for (std::size_t i = 0; i < file.shape[0]; ++i) {
    const std::int32_t* line = &file.data[i * 6];
    const Index n = line[0], n_kept = line[2], sinks = line[4], recent = line[5];
    if (n_kept < 4) continue;  // fewer than its sinks: an error here
    KVCache cache(shape(), StreamingLLM{}, Keep{.tokens = n_kept, .sinks = 4, .every = 1});
    const Matrix rows = Matrix::Ones(n, 192);
    cache.append(0, View::packed(rows.data(), n, 3, 64), View::packed(rows.data(), n, 3, 64));
    cache.compress();
    std::vector<std::int32_t> want;
    for (Index r = 0; r < sinks; ++r) want.push_back(static_cast<std::int32_t>(r));
    for (Index r = n - recent; r < n; ++r) want.push_back(static_cast<std::int32_t>(r));
    EXPECT_EQ(positions(cache.positions(0, 1)), want)
        << "length " << n << ", removed " << line[1] << " %";
  }
}

// ---- scores

TEST(KeyScores, EqualKvpress) {
  for (const auto& [name, layer] :
       {std::pair<std::string, int>{"keydiff", 0}, {"keydiff", 15}, {"knorm", 15}}) {
    const auto want =
        support::load_npy<float>(path("kvpress/score_" + name + "_" + layer_name(layer) + ".npy"));
    for (int h = 0; h < 3; ++h) {
      Seen seen(layer, h);
      if (name == "keydiff")
        KeyDiff{}.score(seen.head, seen.scores);
      else
        KeyNorm{}.score(seen.head, seen.scores);
      expect_scores(seen.scores, want.data.data() + h * 1024, 0, 1024, 2e-6f);
    }
  }
}

// Causal attention weights of query head by query head in double, for the last `w` queries: [w *
// 3][1024].
Matrix attention(const Matrix& keys, const Tensor& queries, int h, Index w) {
  Matrix out = Matrix::Zero(w * 3, 1024);
  std::vector<float> q(64);
  for (Index t = 0; t < w; ++t)
    for (int g = 0; g < 3; ++g) {
      detail::read_row(queries.view(), queries.tokens() - w + t, h * 3 + g, 64, q.data());
      const Index seen = 1024 - w + t + 1;
      Eigen::VectorXd e(seen);
      for (Index r = 0; r < seen; ++r) {
        double x = 0;
        for (int c = 0; c < 64; ++c) x += double{q[std::size_t(c)]} * double{keys(r, c)};
        e[r] = x / 8;
      }
      e = (e.array() - e.maxCoeff()).exp();
      out.row(t * 3 + g).head(seen) = (e / e.sum()).cast<float>();
    }
  return out;
}

TEST(SnapKV, ScoresEqualKvpress) {
  for (const auto& [file, layer, policy] :
       {std::tuple<std::string, int, SnapKV>{"snapkv_w64k5", 0, {}},
        {"snapkv_w64k5", 15, {}},
        {"snapkv_w32k7", 15, {.window = 32, .pool = 7}}}) {
    const auto want =
        support::load_npy<float>(path("kvpress/score_" + file + "_" + layer_name(layer) + ".npy"));
    const Tensor queries(layer == 15 ? "q_l15" : "qwin64_" + layer_name(layer));
    for (int h = 0; h < 3; ++h) {
      Seen seen(layer, h);
      const Matrix weights = attention(seen.keys, queries, h, policy.window);
      detail::point(seen.head.attention, weights.data(), weights.rows(), 1024, 1024);
      seen.head.last = 1024 - policy.window;
      policy.score(seen.head, seen.scores);
      std::vector<float> pooled(seen.scores.size());
      const std::size_t n = static_cast<std::size_t>(seen.head.last);
      detail::pool(std::span<const float>(seen.scores).first(n), policy.pooling(),
                   std::span<float>(pooled).first(n));
      expect_scores(pooled, want.data.data() + h * 1024, 0, seen.head.last, 2e-6f);
    }
  }
}

TEST(TOVA, ScoresEqualTheOracle) {
  for (const int layer : {0, 15, 29}) {
    const auto want =
        support::load_npy<float>(path("kvpress/score_tova_" + layer_name(layer) + ".npy"));
    const Tensor queries(layer == 15 ? "q_l15" : "qwin64_" + layer_name(layer));
    std::vector<float> mean(1024, 0.f);
    for (int h = 0; h < 3; ++h) {
      Seen seen(layer, h);
      const Matrix weights = attention(seen.keys, queries, h, 1);
      detail::point(seen.head.attention, weights.data(), weights.rows(), 1024, 1024);
      TOVA{}.score(seen.head, seen.scores);
      for (std::size_t r = 0; r < 1024; ++r) mean[r] += seen.scores[r] / 3;
    }
    expect_scores(mean, want.data.data(), 0, 1024, 2e-6f);
  }
}

TEST(H2O, SumsEqualTheOracleAndKvpress) {
  const auto sum = support::load_npy<float>(path("kvpress/h2o_sum_l15.npy"));
  const auto observed = support::load_npy<float>(path("kvpress/score_observed_l15.npy"));
  const Tensor queries("q_l15");
  for (int h = 0; h < 3; ++h) {
    Seen seen(15, h);
    const Matrix weights = attention(seen.keys, queries, h, 1024);
    std::vector<float> column(1024, 0.f);
    std::vector<std::vector<float>> columns{column};
    seen.head.column_data = columns.data();
    NoState none;
    for (Index t = 0; t < 1024; t += 128) {  // in blocks, as the library shows them
      detail::point(seen.head.attention, weights.data() + t * 3 * 1024, 128 * 3, 1024, 1024);
      H2O{}.observe(seen.head, none);
    }
    H2O{}.score(seen.head, seen.scores);
    expect_scores(seen.scores, sum.data.data() + h * 1024, 0, 1024, 1e-5f);
    H2O{.age_normalised = true}.score(seen.head, seen.scores);
    expect_scores(seen.scores, observed.data.data() + h * 1024, 0, 1024, 2e-6f);
  }
}

// ---- what a perturbed key does

TEST(KeyScores, APerturbedKeyMovesTheSetAsTheOracleSays) {
  Seen seen(15, 0);
  const Shape one{.query_heads = 1, .kv_heads = 1, .head_dim = 64, .dtype = DType::f32};
  for (const Index r : {100, 500, 900}) {
    for (const float factor : {0.01f, 20.f}) {
      Matrix keys = seen.keys;
      keys.row(r) *= factor;
      KVCache norm(one, KeyNorm{}, Keep{.tokens = 300});
      KVCache diff(one, KeyDiff{}, Keep{.tokens = 300});
      norm.append(0, View::packed(keys.data(), 1024, 1, 64),
                  View::packed(seen.values.data(), 1024, 1, 64));
      diff.append(0, View::packed(keys.data(), 1024, 1, 64),
                  View::packed(seen.values.data(), 1024, 1, 64));
      norm.compress();
      diff.compress();
      const auto kept_of = [&](auto score) {
        std::vector<std::pair<double, Index>> order;
        for (Index i = 0; i < 1024; ++i) order.emplace_back(-score(i), -i);
        std::sort(order.begin(), order.end());
        std::vector<std::int32_t> rows;
        for (int i = 0; i < 300; ++i)
          rows.push_back(static_cast<std::int32_t>(-order[std::size_t(i)].second));
        std::sort(rows.begin(), rows.end());
        return rows;
      };
      const Eigen::MatrixXd x = keys.cast<double>();
      Eigen::RowVectorXd mean = Eigen::RowVectorXd::Zero(64);
      for (Index i = 0; i < 1024; ++i) mean += x.row(i).normalized() / 1024;
      EXPECT_EQ(positions(norm.positions(0, 0)),
                kept_of([&](Index i) { return -x.row(i).norm(); }));
      EXPECT_EQ(positions(diff.positions(0, 0)), kept_of([&](Index i) {
                  return -x.row(i).dot(mean) / x.row(i).norm() / mean.norm();
                }));
      // A short key stays, a long one goes; the cosine does not see the length.
      EXPECT_EQ(factor < 1, [&] {
        const auto p = positions(norm.positions(0, 0));
        return std::find(p.begin(), p.end(), r) != p.end();
      }());
    }
  }
}

TEST(KeyScores, ZeroKeysAreFinite) {
  Matrix keys = Matrix::Zero(50, 16);
  keys.bottomRows(25).setOnes();
  const Shape one{.query_heads = 1, .kv_heads = 1, .head_dim = 16};
  KVCache cache(one, KeyDiff{}, Keep{.tokens = 25});
  cache.append(0, View::packed(keys.data(), 50, 1, 16), View::packed(keys.data(), 50, 1, 16));
  cache.compress();
  // Cosine 0 beats cosine 1: the zero keys stay.
  EXPECT_EQ(positions(cache.positions(0, 0)).back(), 24);
}

// ---- Random

TEST(Random, IsReproducibleAndUniform) {
  const Shape s{.layers = 2, .query_heads = 2, .kv_heads = 2, .head_dim = 4};
  const Matrix rows = Matrix::Ones(4000, 8);
  const auto view = [&](Index n) { return View::packed(rows.data(), n, 2, 4); };
  const auto run = [&](std::uint64_t seed, std::vector<Index> parts) {
    KVCache cache(s, Random{seed}, Keep{.fraction = 0.25, .every = 1});
    for (const Index n : parts) {
      for (int l = 0; l < 2; ++l) cache.append(l, view(n), view(n));
      cache.compress();
    }
    return cache;
  };
  const auto a = run(1, {4000}), b = run(2, {4000});
  EXPECT_NE(a.positions(0, 0), a.positions(0, 1));
  EXPECT_NE(a.positions(0, 0), a.positions(1, 0));
  EXPECT_NE(a.positions(0, 0), b.positions(0, 0));
  EXPECT_EQ(a.positions(0, 0), run(1, {4000}).positions(0, 0));
  Index early = 0;
  for (const Position p : a.positions(0, 0)) early += to_int(p) < 2000;
  EXPECT_NEAR(double(early), 500.0, 5 * std::sqrt(1000 * 0.25));
  // A row keeps its number whatever else is shown.
  std::vector<Position> at{Position{7}, Position{9}, Position{4000}};
  std::vector<float> all(3), one(1);
  Head head;
  head.positions = at;
  head.last = 3;
  Random{1}.score(head, all);
  head.positions = std::span(at).last(1);
  head.last = 1;
  Random{1}.score(head, one);
  EXPECT_EQ(all[2], one[0]);
}

}  // namespace kvpress_test
