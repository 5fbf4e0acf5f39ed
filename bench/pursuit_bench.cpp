// SPDX-License-Identifier: MIT
// Sparse coding against its bound, the product of all vectors with all atoms.
//   pursuit/<method>/d<dim>/n<atoms>/s<steps>: items/s are vectors coded by one thread;
//   share_of_products = time of the products alone / time of the whole, medians of rounds in which
//   both are measured in turn. products_gflops: the rate of the products.
//   attend_codes/n<atoms>/rows<rows>: attention over codes by tables against decoding first, one
//   head, 3 query rows, 4 atoms a row of 64; rule: what SparseCodec::table_pays() says.
// Run it pinned and alone: taskset -c 0 pursuit_bench
#include <benchmark/benchmark.h>

#include <algorithm>
#include <cmath>
#include <lesskv/codec/sparse/codec.hpp>
#include <random>
#include <string>
#include <vector>

#include "read_limit.hpp"

namespace {

using namespace lesskv;
using bench::median;
using bench::thread_now;

// Rows around clustered directions: real keys and values are no white noise, and neither are the
// atoms that were trained on them.
std::vector<float> clustered(Index count, int dim, unsigned seed, bool unit) {
  std::mt19937 random(seed), shared(7);
  std::normal_distribution<float> normal;
  constexpr Index centres = 256;
  std::vector<float> centre(static_cast<std::size_t>(centres * dim));
  for (float& x : centre) x = normal(shared);
  std::vector<float> out(static_cast<std::size_t>(count * dim));
  for (Index i = 0; i < count; ++i) {
    const float* from = centre.data() + static_cast<Index>(random() % centres) * dim;
    float* to = out.data() + i * dim;
    float square = 0;
    for (int c = 0; c < dim; ++c) {
      to[c] = 0.7f * from[c] + normal(random);
      square += to[c] * to[c];
    }
    if (unit)
      for (int c = 0; c < dim; ++c) to[c] /= std::sqrt(square);
  }
  return out;
}

void pursuit(benchmark::State& state, PursuitMethod method) {
  const int dim = static_cast<int>(state.range(0)), steps = static_cast<int>(state.range(2));
  const Index atoms = state.range(1), n = 1024;
  const Pursuit coder(Dictionary(dim, atoms, clustered(atoms, dim, 1, true).data()));
  const std::vector<float> rows = clustered(n, dim, 2, false);
  const std::size_t slots = static_cast<std::size_t>(n * steps);
  std::vector<std::int32_t> index(slots), count(static_cast<std::size_t>(n));
  std::vector<float> coefficient(slots);
  const PursuitCodes out{index.data(), coefficient.data(), count.data()};

  // The products alone, by the same kernel on the same layout.
  const PursuitKernels& table = pursuit_kernels();
  const Index padded = (atoms + 63) / 64 * 64, stride = padded + 16;
  detail::Floats panels(padded * dim), alpha(64 * stride);
  std::fill(panels.data(), panels.data() + padded * dim, 0.01f);
  std::vector<double> whole, products;
  for (auto _ : state) {
    const double start = thread_now();
    for (Index i = 0; i < n; i += 64)
      table.correlate(panels.data(), padded, dim, rows.data() + i * dim, 64, alpha.data(), stride);
    const double between = thread_now();
    coder.encode(rows.data(), n, dim, {.steps = steps, .method = method}, out);
    const double end = thread_now();
    products.push_back(between - start);
    whole.push_back(end - between);
    state.SetIterationTime(end - between);
  }
  const double bound = median(products), time = median(whole);
  state.counters["vectors/s"] = static_cast<double>(n) / time;
  state.counters["share_of_products"] = bound / time;
  state.counters["products_gflops"] =
      2e-9 * static_cast<double>(n * atoms) * static_cast<double>(dim) / bound;
  state.counters["work_MiB"] = static_cast<double>(coder.work_bytes()) / 1048576.0;
}

// One head, R query rows over `rows` coded rows: logits and sums by tables, against decoding every
// block and two dot products a number. rule: what table_pays() says.
void attend_codes(benchmark::State& state) {
  constexpr int dim = 64, atoms = 4;
  constexpr Index R = 3, n = SparseCodec::block_rows;
  const Index size = state.range(0), blocks = state.range(1) / n;
  const SparseCodec codec({SparseCode::pairs, atoms},
                          {Dictionary(dim, size, clustered(size, dim, 1, true).data())});
  const std::size_t bytes = codec.block_bytes(dim, n);
  std::vector<std::byte> coded(static_cast<std::size_t>(blocks) * bytes);
  const std::vector<float> rows = clustered(n, dim, 2, false),
                           queries = clustered(R, dim, 3, false);
  const SparseCodec::Coders coders = codec.make_coders();
  codec.encode(rows.data(), n, coded.data(), coders);
  for (Index b = 1; b < blocks; ++b)
    std::copy_n(coded.data(), bytes, coded.data() + static_cast<std::size_t>(b) * bytes);
  std::vector<float> table(static_cast<std::size_t>(codec.table_width() * R)), sums(table.size()),
      logits(R * n), out(R * dim), dense(n * dim);
  std::vector<double> by_table, by_decoding;
  for (auto _ : state) {
    const double start = thread_now();
    codec.make_table(queries.data(), R, table.data());
    std::fill(sums.begin(), sums.end(), 0.f);
    for (Index b = 0; b < blocks; ++b) {
      const std::byte* block = coded.data() + static_cast<std::size_t>(b) * bytes;
      codec.scores(block, n, table.data(), R, logits.data(), n);
      codec.add(block, n, logits.data(), n, R, sums.data());
    }
    codec.finish(sums.data(), R, out.data());
    benchmark::DoNotOptimize(out.data());
    const double between = thread_now();
    for (Index b = 0; b < blocks; ++b) {
      const std::byte* block = coded.data() + static_cast<std::size_t>(b) * bytes;
      for (int side = 0; side < 2; ++side) {  // keys, then values
        codec.decode(block, n, 0, n, dense.data());
        for (Index i = 0; i < n; ++i)
          for (Index r = 0; r < R; ++r) {
            if (side == 0) {
              float sum = 0;
              for (int c = 0; c < dim; ++c) sum += dense[i * dim + c] * queries[r * dim + c];
              logits[r * n + i] = sum;
            } else {
              for (int c = 0; c < dim; ++c)
                out[r * dim + c] += logits[r * n + i] * dense[i * dim + c];
            }
          }
      }
    }
    benchmark::DoNotOptimize(out.data());
    const double end = thread_now();
    by_table.push_back(between - start);
    by_decoding.push_back(end - between);
    state.SetIterationTime(between - start);
  }
  state.counters["tables_us"] = 1e6 * median(by_table);
  state.counters["decoding_us"] = 1e6 * median(by_decoding);
  state.counters["rule"] = codec.table_pays(blocks * n, R) ? 1 : 0;
}

void sizes(benchmark::internal::Benchmark* b) {
  b->UseManualTime()->Unit(benchmark::kMillisecond)->ArgNames({"d", "n", "s"});
  b->Args({128, 4096, 7})->Args({128, 1024, 7})->Args({64, 1024, 3})->Args({64, 1024, 7});
}

BENCHMARK_CAPTURE(pursuit, matching, PursuitMethod::matching)->Apply(sizes)->MinTime(2);
BENCHMARK_CAPTURE(pursuit, refit, PursuitMethod::refit)->Apply(sizes);
BENCHMARK_CAPTURE(pursuit, orthogonal, PursuitMethod::orthogonal)->Apply(sizes);

BENCHMARK(attend_codes)
    ->UseManualTime()
    ->Unit(benchmark::kMicrosecond)
    ->ArgNames({"n", "rows"})
    ->ArgsProduct({{1024, 4096}, {256, 512, 1024, 4096, 16384}});

}  // namespace

BENCHMARK_MAIN();
