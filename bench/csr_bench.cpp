// SPDX-License-Identifier: MIT
// What a cache with CSR costs beside an exact one: one layer of 3 KV heads of 64 channels and 3 query
// heads each, random rows, dictionaries of 944 random atoms (their time does not depend on what they
// are). All that is compared is measured in turn, by the time of this thread; the best counts.
//   csr/atoms<n>/rows<rows>: one query against all rows: microseconds a layer, and times an exact
//   cache of the same rows (coded_by_exact); rows a second that compress() encodes.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <lesskv/codec/csr.hpp>
#include <lesskv/codec/csr_codec.hpp>
#include <lesskv/codec/sparse/levels.hpp>
#include <lesskv/lesskv.hpp>
#include <random>

#include "read_limit.hpp"

namespace {

using namespace lesskv;
using bench::thread_now;

std::vector<float> normal(Index count, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> distribution;
  std::vector<float> out(static_cast<std::size_t>(count));
  for (float& x : out) x = distribution(random);
  return out;
}

const Shape shape{.layers = 1, .query_heads = 9, .kv_heads = 3, .head_dim = 64};

DictionarySet dictionaries() {
  constexpr Index atoms = 944, dim = 64;
  std::vector<float> x = normal(atoms * dim, 1);
  for (Index i = 0; i < atoms; ++i) {
    float square = 0;
    for (Index c = 0; c < dim; ++c)
      square += x[static_cast<std::size_t>(i * dim + c)] * x[static_cast<std::size_t>(i * dim + c)];
    for (Index c = 0; c < dim; ++c) x[static_cast<std::size_t>(i * dim + c)] /= std::sqrt(square);
  }
  const Pursuit coder(Dictionary(static_cast<int>(dim), atoms, x.data()));
  DictionarySet set;
  set.layers = shape.layers;
  set.kv_heads = shape.kv_heads;
  set.dictionaries = {fit_levels(coder, normal(500 * dim, 2).data(), 500, 15, 64)};
  set.key_dictionary = set.value_dictionary = {0};
  for (int i = 0; i < 32; ++i) set.rope_frequencies.push_back(std::pow(1e5, -i / 32.0));
  return set;
}

void csr(benchmark::State& state) {
  static const Dictionaries shared = dictionaries();
  const Index n = state.range(1);
  const std::vector<float> keys = normal(n * 192, 3), values = normal(n * 192, 4),
                           queries = normal(9 * 64, 5);
  std::vector<float> out(9 * 64);
  KVCache<> exact(shape);
  KVCache coded(shape, CSR{.atoms = static_cast<int>(state.range(0)), .dictionary = shared});
  exact.append(0, View::packed(keys.data(), n, 3, 64), View::packed(values.data(), n, 3, 64));
  coded.append(0, View::packed(keys.data(), n, 3, 64), View::packed(values.data(), n, 3, 64));
  const double before = thread_now();
  coded.compress();
  const double encode = thread_now() - before;
  double exact_best = 1e9, coded_best = 1e9;
  const View query = View::packed(queries.data(), 1, 9, 64);
  for (auto _ : state) {
    const double start = thread_now();
    exact.attend(0, query, out.data());
    const double between = thread_now();
    coded.attend(0, query, out.data());
    const double end = thread_now();
    exact_best = std::min(exact_best, between - start);
    coded_best = std::min(coded_best, end - between);
    state.SetIterationTime(end - between);
  }
  state.counters["us_a_layer"] = 1e6 * coded_best;
  state.counters["coded_by_exact"] = coded_best / exact_best;
  state.counters["encoded_per_s"] = static_cast<double>(6 * n) / encode;
}
BENCHMARK(csr)
    ->ArgNames({"atoms", "rows"})
    ->ArgsProduct({{3, 7, 15}, {512, 4096}})
    ->UseManualTime()
    ->Iterations(200);

}  // namespace

BENCHMARK_MAIN();
