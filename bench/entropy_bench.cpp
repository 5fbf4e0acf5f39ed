// SPDX-License-Identifier: MIT
// Matrix entropies of the heads of a prompt, against the Gram products that they need.
//   entropy/d<head_dim>/h<heads>/n<rows>: two exact passes and the eigenvalues of every head.
//   moments/...: the same rows in blocks of 64, as they stream by.
// gram_ms: 2 n d^2 operations a head at the rate of Eigen's square matrix product, compiled with
// -march=native; times_gram is the time divided by it. Medians of 20 rounds, taken in turn.
//   eigenvalues/d<head_dim>: one spectrum alone.
// Run it pinned and alone: taskset -c 0 entropy_bench
#include <benchmark/benchmark.h>

#include <algorithm>
#include <lesskv/budget/matrix_entropy.hpp>
#include <random>
#include <string>
#include <vector>

#include "gemm_native.hpp"

namespace {

using namespace lesskv;
using detail::uz;

double median(std::vector<double> x) {
  std::nth_element(x.begin(), x.begin() + static_cast<Index>(x.size() / 2), x.end());
  return x[x.size() / 2];
}

std::vector<Matrix> heads_of_prompt(int heads, Index rows, Index dim) {
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  std::vector<Matrix> out(uz(heads), Matrix(rows, dim));
  for (Matrix& head : out)
    for (Index t = 0; t < rows; ++t)
      for (Index c = 0; c < dim; ++c)
        head(t, c) = 2 + normal(random) * 4 / static_cast<float>(1 + c % 32);
  return out;
}

template <class Run>
void against_gram(benchmark::State& state, int heads, Index rows, Index dim, Run&& run) {
  const std::vector<Matrix> prompt = heads_of_prompt(heads, rows, dim);
  std::vector<double> seconds, rate;
  for (auto _ : state) {
    rate.push_back(gemm_rate());
    const double start = seconds_now();
    for (const Matrix& head : prompt) benchmark::DoNotOptimize(run(head));
    seconds.push_back(seconds_now() - start);
    state.SetIterationTime(seconds.back());
  }
  const double gram = 2.0 * heads * double(rows) * double(dim * dim) / median(rate);
  state.counters["flop/s"] = median(rate);
  state.counters["gram_ms"] = gram * 1e3;
  state.counters["times_gram"] = median(seconds) / gram;
}

void eigenvalues(benchmark::State& state, Index dim) {
  const Matrix x = heads_of_prompt(1, 4 * dim, dim)[0];
  const Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor> a =
      (x.transpose() * x).cast<double>();
  for (auto _ : state)
    benchmark::DoNotOptimize(symmetric_eigenvalues({a.data(), uz(a.size())}, dim));
}

}  // namespace

int main(int count, char** arguments) {
  benchmark::Initialize(&count, arguments);
  struct Case {
    int heads;
    Index rows, dim;
  };
  for (const Case c : {Case{8, 32768, 128}, {8, 4096, 128}, {8, 32768, 64}, {9, 4096, 64}}) {
    const std::string name = "d" + std::to_string(c.dim) + "/h" + std::to_string(c.heads) + "/n" +
                             std::to_string(c.rows);
    const auto add = [&](const std::string& form, auto run) {
      benchmark::RegisterBenchmark(
          (form + "/" + name).c_str(),
          [c, run](benchmark::State& state) { against_gram(state, c.heads, c.rows, c.dim, run); })
          ->Iterations(20)
          ->UseManualTime()
          ->Unit(benchmark::kMillisecond);
    };
    add("entropy", [](const Matrix& head) {
      return matrix_entropy(make_rows(head), default_truncation(head.cols()));
    });
    add("moments", [](const Matrix& head) {
      UnitMoments moments;
      for (Index t = 0; t < head.rows(); t += 64)
        moments.add(head.row(t).data(), head.cols(), std::min<Index>(64, head.rows() - t),
                    head.cols());
      return moments.entropy(default_truncation(head.cols()));
    });
  }
  for (const Index dim : {64, 128})
    benchmark::RegisterBenchmark(("eigenvalues/d" + std::to_string(dim)).c_str(),
                                 [dim](benchmark::State& state) { eigenvalues(state, dim); })
        ->Unit(benchmark::kMillisecond);
  benchmark::RunSpecifiedBenchmarks();
  return 0;
}
