// SPDX-License-Identifier: MIT
// compress() with every policy: one layer of 8 KV heads and 16 query heads of 128 channels, f16, after
// a prompt of 8192 tokens, a quarter of which stays.
//   policy/<name>: a scorer alone, a budget beside KeyDiff, a codec beside KeyDiff; passes is the time
//     in units of reading the layer once at the limit of the same round, MB what is held then.
// Policies that need a file (a table, a dictionary) are left out. What policies do while attention
// runs is not in it: "compress ms" of the comparison on a real model (examples/run.sh) counts it.
// Run it pinned and alone: taskset -c 0 policy_bench
#include <benchmark/benchmark.h>

#include <lesskv/any.hpp>
#include <lesskv/methods.hpp>
#include <random>
#include <string>
#include <vector>

#include "read_limit.hpp"

namespace {

using namespace lesskv;

constexpr Index rows = 8192, part = 512;
const Shape shape{.layers = 1, .query_heads = 16, .kv_heads = 8, .head_dim = 128, .rope = Rope{}};

const bench::ReadLimit& limit() {
  static const bench::ReadLimit one;
  return one;
}

std::vector<float> numbers(Index count) {
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  std::vector<float> x(static_cast<std::size_t>(count));
  for (float& one : x) one = normal(random);
  return x;
}

void feed(AnyCache& cache, Index tokens) {
  const int dim = shape.head_dim, heads = shape.kv_heads;
  static const std::vector<float> keys = numbers(2 * part * heads * dim),
                                  queries = numbers(part * shape.query_heads * dim);
  std::mt19937 random(2);
  for (Index first = 0; first < tokens; first += part) {
    const float* from = keys.data() + static_cast<Index>(random() % part) * heads * dim;
    const View some = View::packed(from, part, heads, dim);
    cache.append(0, some, some);
    cache.observe(0, View::packed(queries.data(), part, shape.query_heads, dim));
  }
}

void compress(benchmark::State& state, const std::string& spec) {
  std::vector<double> seconds, passes;
  const double bytes = 2.0 * rows * shape.kv_heads * shape.head_dim * 2;
  double held = 0;
  AnyCache fed = make_cache(spec, shape);
  fed.reserve(rows);
  feed(fed, rows);
  if (fed.needs_probes()) {
    fed.begin_probes();
    feed(fed, part);
    fed.end_probes();
  }
  for (auto _ : state) {
    AnyCache cache = fed;
    const double read = limit().measure(std::size_t{256} << 20);
    const double start = bench::thread_now();
    cache.compress();
    seconds.push_back(bench::thread_now() - start);
    passes.push_back(seconds.back() * read / bytes);
    state.SetIterationTime(seconds.back());
    held = static_cast<double>(cache.bytes());
  }
  state.counters["ms"] = 1e3 * bench::median(seconds);
  state.counters["passes"] = bench::median(passes);
  state.counters["MB"] = held / 1e6;
}

// A policy without parameters, in the smallest set that uses it.
template <class P>
void add() {
  if constexpr (requires { sizeof(P); }) {
    const std::string name(P::name), keep = "keep(fraction=0.25,sinks=4)+";
    std::string spec = keep + name;
    if constexpr (Budgeter<P> || Codec<P> || Merger<P>) spec = keep + "keydiff+" + name;
    try {
      (void)make_cache(spec, shape);
    } catch (const std::exception&) {
      return;  // it needs what this layer does not have: a table, a dictionary
    }
    benchmark::RegisterBenchmark(("policy/" + name).c_str(),
                                 [spec](benchmark::State& state) { compress(state, spec); })
        ->Iterations(5)
        ->UseManualTime()
        ->Unit(benchmark::kMillisecond);
  }
}
template <class... Ps>
void add_all(MethodList<Ps...>) {
  (add<Ps>(), ...);
}

}  // namespace

int main(int count, char** arguments) {
  benchmark::Initialize(&count, arguments);
  add_all(Methods{});
  benchmark::RunSpecifiedBenchmarks();
  return 0;
}
