// SPDX-License-Identifier: MIT
// Attention of one token over 32768 entries of 8 KV heads that lie in DRAM: KVCache::attend() beside
// ggml_flash_attn_ext() at equal bytes, one thread, each head of ggml's cache contiguous and no mask,
// the layout and the call in which it is fastest.
//   attend/<storage>/d<head_dim>/g<group>: both are timed in turn, each after a vector sum over 256 MiB
//     that leaves nothing of its cache in the CPU's. times_faster: median over the rounds of ggml's
//     time / ours; share_of_read, ggml_share: bytes of keys and values as stored, once, over what
//     the sum of the same round read, medians. output, ggml_output: relative error of the result.
// Run it pinned and alone: taskset -c 0 attend_peers_bench
#include <benchmark/benchmark.h>
#include <ggml-cpu.h>
#include <ggml.h>

#include <cmath>
#include <cstring>
#include <lesskv/any.hpp>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "../read_limit.hpp"

namespace {

using bench::median;
using bench::thread_now;
using lesskv::Index;
using lesskv::View;
using lesskv::detail::uz;

constexpr Index rows = 32768;
constexpr int heads = 8;

struct Case {
  const char* name;  // ours
  const char* spec;
  ggml_type type;
  int dim;
  Index group;
};

std::vector<float> normal(Index count, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> distribution;
  std::vector<float> out(uz(count));
  for (float& x : out) x = distribution(random);
  return out;
}

// Independent numbers, [head][row][channel], cheaply: the same 512 rows from another start, and another
// sign, for every block of 64.
std::vector<float> numbers(int dim, unsigned seed) {
  const std::vector<float> part = normal(512 * dim, seed);
  std::mt19937 random(seed);
  std::vector<float> out;
  out.reserve(uz(rows * heads * dim));
  for (Index row = 0; row < rows * heads; row += 64) {
    const float sign = random() % 2 == 0 ? 1.f : -1.f;
    const float* from = part.data() + static_cast<Index>(random() % (512 - 64)) * dim;
    for (Index i = 0; i < 64 * dim; ++i) out.push_back(sign * from[i]);
  }
  return out;
}

class Ggml {
 public:
  Ggml(const Case& c, const std::vector<float>& keys, const std::vector<float>& values,
       std::vector<float>& queries)
      : out(queries.size()) {
    ggml_init_params parameters{};
    parameters.mem_size = std::size_t{1} << 20;
    parameters.no_alloc = true;
    context_.reset(ggml_init(parameters));
    ggml_tensor* k = tensor(c, keys, keys_);
    ggml_tensor* v = tensor(c, values, values_);
    ggml_tensor* q = ggml_new_tensor_3d(context_.get(), GGML_TYPE_F32, c.dim, 1, heads * c.group);
    q->data = queries.data();
    ggml_tensor* result = ggml_flash_attn_ext(context_.get(), q, k, v, nullptr,
                                              1 / std::sqrt(static_cast<float>(c.dim)), 0, 0);
    result->data = out.data();
    graph_ = ggml_new_graph_custom(context_.get(), 16, false);
    ggml_build_forward_expand(graph_, result);
    ggml_threadpool_params pool = ggml_threadpool_params_default(1);
    pool_.reset(ggml_threadpool_new(&pool));
    plan_ = ggml_graph_plan(graph_, 1, pool_.get());
    work_.resize(plan_.work_size + 64);
    plan_.work_data = work_.data();
  }
  void run() {
    if (ggml_graph_compute(graph_, &plan_) != GGML_STATUS_SUCCESS)
      throw std::runtime_error("ggml_graph_compute failed");
    benchmark::DoNotOptimize(out.data());
  }
  double bytes() const { return static_cast<double>(keys_.size() + values_.size()); }

  std::vector<float> out;  // [query_head][channel]

 private:
  struct ContextDelete {
    void operator()(ggml_context* c) const { ggml_free(c); }
  };
  struct PoolDelete {
    void operator()(ggml_threadpool* p) const { ggml_threadpool_free(p); }
  };
  ggml_tensor* tensor(const Case& c, const std::vector<float>& x, std::vector<char>& data) {
    data.resize(ggml_row_size(c.type, c.dim) * uz(rows * heads));
    ggml_quantize_chunk(c.type, x.data(), data.data(), 0, rows * heads, c.dim, nullptr);
    ggml_tensor* out_tensor = ggml_new_tensor_3d(context_.get(), c.type, c.dim, rows, heads);
    out_tensor->data = data.data();
    return out_tensor;
  }

  std::unique_ptr<ggml_context, ContextDelete> context_;
  std::unique_ptr<ggml_threadpool, PoolDelete> pool_;
  std::vector<char> keys_, values_;
  std::vector<std::uint8_t> work_;
  ggml_cgraph* graph_ = nullptr;
  ggml_cplan plan_{};
};

// [query_head][channel].
std::vector<double> exact(const Case& c, const std::vector<float>& keys,
                          const std::vector<float>& values, const std::vector<float>& queries) {
  std::vector<double> out(queries.size(), 0);
  std::vector<double> weight(uz(rows));
  for (Index h = 0; h < heads * c.group; ++h) {
    const Index at = h / c.group * rows * c.dim;
    double max = -1e300, sum = 0;
    for (Index r = 0; r < rows; ++r) {
      double x = 0;
      for (Index i = 0; i < c.dim; ++i)
        x += double{queries[uz(h * c.dim + i)]} * double{keys[uz(at + r * c.dim + i)]};
      weight[uz(r)] = x / std::sqrt(double(c.dim));
      max = std::max(max, weight[uz(r)]);
    }
    for (double& w : weight) sum += w = std::exp(w - max);
    for (Index r = 0; r < rows; ++r)
      for (Index i = 0; i < c.dim; ++i)
        out[uz(h * c.dim + i)] += weight[uz(r)] / sum * double{values[uz(at + r * c.dim + i)]};
  }
  return out;
}

double error(const std::vector<float>& got, const std::vector<double>& want) {
  double difference = 0, square = 0;
  for (std::size_t i = 0; i < want.size(); ++i) {
    difference += (double{got[i]} - want[i]) * (double{got[i]} - want[i]);
    square += want[i] * want[i];
  }
  return std::sqrt(difference / square);
}

void attend(benchmark::State& state, const Case& c) {
  static const bench::ReadLimit limit;
  constexpr std::size_t evict = std::size_t{256} << 20;
  const std::vector<float> keys = numbers(c.dim, 1), values = numbers(c.dim, 2);
  std::vector<float> queries = normal(heads * c.group * c.dim, 3), out(queries.size());
  const lesskv::Shape shape{
      .query_heads = heads * static_cast<int>(c.group), .kv_heads = heads, .head_dim = c.dim};
  lesskv::AnyCache cache = lesskv::make_cache(c.spec, shape);
  cache.append(0, View::by_head(keys.data(), lesskv::DType::f32, rows, c.dim),
               View::by_head(values.data(), lesskv::DType::f32, rows, c.dim));
  cache.compress();
  Ggml ggml(c, keys, values, queries);
  // Equal bytes, but for the few of positions and headers.
  const double bytes = ggml.bytes();
  if (std::abs(static_cast<double>(cache.bytes()) / bytes - 1) > 0.1) {
    const std::string sizes = std::to_string(cache.bytes()) + " and " + std::to_string(bytes);
    return state.SkipWithError(("the caches differ in size: " + sizes).c_str());
  }
  const View query = View::packed(queries.data(), 1, shape.query_heads, c.dim);
  std::vector<double> ratio, share, ggml_share, ours, theirs;
  for (auto _ : state) {
    const double read = limit.measure(evict);
    const double start = thread_now();
    cache.attend(0, query, out.data());
    ours.push_back(thread_now() - start);
    const double read_again = limit.measure(evict);
    const double again = thread_now();
    ggml.run();
    theirs.push_back(thread_now() - again);
    ratio.push_back(theirs.back() / ours.back());
    share.push_back(bytes / ours.back() / read);
    ggml_share.push_back(bytes / theirs.back() / read_again);
    state.SetIterationTime(ours.back());
  }
  state.counters["ms"] = 1e3 * median(ours);
  state.counters["ggml_ms"] = 1e3 * median(theirs);
  state.counters["times_faster"] = median(ratio);
  state.counters["share_of_read"] = median(share);
  state.counters["ggml_share"] = median(ggml_share);
  const std::vector<double> want = exact(c, keys, values, queries);
  state.counters["output"] = error(out, want);
  state.counters["ggml_output"] = error(ggml.out, want);
}

}  // namespace

int main(int count, char** arguments) {
  benchmark::Initialize(&count, arguments);
  benchmark::AddCustomContext("kernels", lesskv::kernels().name);
  ggml_cpu_init();
  for (const auto& [dim, group] : {std::pair{128, 1}, {128, 4}, {64, 3}, {64, 4}})
    for (Case c : {Case{"f16", "exact", GGML_TYPE_F16, 0, 0},
                   {"int8_b32", "keep(sinks=0)+int(bits=8,group=32)", GGML_TYPE_Q8_0, 0, 0},
                   {"int4_b32", "keep(sinks=0)+int(bits=4,group=32)", GGML_TYPE_Q4_0, 0, 0}}) {
      c.dim = dim;
      c.group = group;
      const std::string name = std::string("attend/") + c.name + "/d" + std::to_string(dim) + "/g" +
                               std::to_string(group);
      benchmark::RegisterBenchmark(name.c_str(), [c](benchmark::State& s) { attend(s, c); })
          ->Iterations(15)
          ->UseManualTime()
          ->Unit(benchmark::kMillisecond);
    }
  benchmark::RunSpecifiedBenchmarks();
  return 0;
}
