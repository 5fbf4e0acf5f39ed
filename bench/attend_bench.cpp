// SPDX-License-Identifier: MIT
// Attention over a cache that lies in DRAM, against what one core can read at most.
//   attend/<storage>/d<head_dim>/kv<KV heads>/g<group>/n<entries>: one query token. bytes/s counts
//   keys and values as stored, once; share_of_read divides it by what a vector sum over 1 GiB read
//   in the same round, just before: it also evicts the cache. Medians of 20 rounds.
//   two_threads/...: the same on two threads, heads in turn; share_of_read_on_two divides by what two
//   threads read, of_one_thread is the speed-up.
//   hot/...: one head of 1024 entries that stays in the caches; of_eigen is the speed-up over the same
//   attention written plainly with Eigen on f32 matrices, in turn with it.
//   prefill/...: 512 query tokens; share_of_fma divides by the FMA peak that this run measures.
// Run it pinned and alone: taskset -c 0 attend_bench
#include <benchmark/benchmark.h>

#include <Eigen/Core>
#include <algorithm>
#include <cmath>
#include <functional>
#include <lesskv/cache/head_store.hpp>
#include <lesskv/codec/int_code.hpp>
#include <lesskv/codec/lloyd_max.hpp>
#include <lesskv/core/scratch.hpp>
#include <lesskv/kernels/kernels.hpp>
#include <limits>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "read_limit.hpp"

namespace {

using bench::median;
using bench::ReadLimit;
using bench::thread_now;
using lesskv::AttendTask;
using lesskv::BlockRef;
using lesskv::DType;
using lesskv::Index;
using lesskv::Side;
using lesskv::SideCodec;
using lesskv::detail::block_rows;
using lesskv::detail::Floats;
using lesskv::detail::HeadStore;
using lesskv::detail::uz;

#if defined(__x86_64__)
// Operations per second of `chains` independent chains of FMA, whose code is `run`: a million turns.
template <class Run>
double operations_per_second(double lanes, int chains, Run&& run) {
  constexpr int turns = 1000000;
  double best = 1e30;
  for (int round = 0; round < 10; ++round) {
    const double start = thread_now();
    for (int i = 0; i < turns; ++i) run();
    best = std::min(best, thread_now() - start);
  }
  return 2 * lanes * chains * turns / best;
}
#define FMA(reg, n) "vfmadd231ps %%" reg "13, %%" reg "14, %%" reg #n "\n\t"
#define FMA4(reg, a, b, c, d) FMA(reg, a) FMA(reg, b) FMA(reg, c) FMA(reg, d)
#define FMAS(reg) FMA4(reg, 0, 1, 2, 3) FMA4(reg, 4, 5, 6, 7) FMA4(reg, 8, 9, 10, 11)
#define FMA_REGISTERS \
  "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11"
double fma_peak() {
  if (__builtin_cpu_supports("avx512f"))
    return operations_per_second(16, 12, [] { asm volatile(FMAS("zmm")::: FMA_REGISTERS); });
  if (__builtin_cpu_supports("fma"))
    return operations_per_second(8, 12, [] { asm volatile(FMAS("ymm")::: FMA_REGISTERS); });
  return 0;
}
#undef FMA_REGISTERS
#undef FMAS
#undef FMA4
#undef FMA
#endif

// How rows are stored: a number type, or a codec for all of them.
struct Storage {
  std::string name;
  DType type = DType::f16;
  std::function<std::shared_ptr<const SideCodec>(Side, int)> codec = {};
};

std::vector<Storage> storages() {
  const auto coded = [](std::string name, auto policy) {
    return Storage{std::move(name), DType::f16,
                   [policy](Side side, int dim) { return policy.codec(side, dim); }};
  };
  std::vector<Storage> out{{"f16", DType::f16}, {"bf16", DType::bf16}, {"f32", DType::f32}};
  for (const int bits : {8, 4}) {
    const std::string name = "int" + std::to_string(bits);
    out.push_back(coded(name + "_b32", lesskv::IntCode{.bits = bits, .group = 32}));
    out.push_back(coded(name + "_tok", lesskv::IntCode{.bits = bits}));
  }
  for (const int bits : {6, 5, 4, 3, 2})
    out.push_back(coded("lm" + std::to_string(bits), lesskv::LloydMax{.bits = bits}));
  return out;
}

// The heads of one layer as a cache stores them.
struct Layer {
  Layer(const Storage& storage, int width, int heads, Index rows)
      : type(storage.type), dim(width), blocks(uz(heads)) {
    if (storage.codec) {
      keys = storage.codec(Side::keys, dim);
      values = storage.codec(Side::values, dim);
    }
    std::mt19937 random(1);
    std::normal_distribution<float> normal;
    std::vector<float> part(uz(512 * dim));
    for (float& x : part) x = normal(random);
    std::vector<std::int32_t> kept(keys ? uz(rows) : 0);
    std::iota(kept.begin(), kept.end(), 0);
    const std::vector<std::uint32_t> positions(kept.begin(), kept.end());
    for (auto& head : blocks) {
      stores.emplace_back(dim, dim, type, keys, values);
      HeadStore& store = stores.back();
      store.expect(rows);
      for (Index row = 0; row < rows; row += block_rows) {
        // Numbers that differ from block to block, cheaply: the same rows from another start.
        const float* of_block =
            part.data() + static_cast<Index>(random() % (512 - block_rows)) * dim;
        store.append(of_block, of_block, std::min(block_rows, rows - row));
      }
      if (keys) store.compact(kept, 0, rows, true, positions.data());
      for (Index b = 0; b < store.block_count(); ++b) head.push_back(store.block(b));
      bytes += static_cast<double>(store.bytes());
    }
  }

  DType type;
  int dim;
  std::shared_ptr<const SideCodec> keys, values;
  double bytes = 0;
  std::vector<HeadStore> stores;
  std::vector<std::vector<BlockRef>> blocks;
};

// All heads of a layer, `query_rows` each.
class Attention {
 public:
  Attention(const Layer& layer, Index query_rows) : layer_(layer), rows_(query_rows) {
    std::mt19937 random(2);
    std::normal_distribution<float> normal;
    queries_.resize(uz(rows_ * layer.dim));
    for (float& x : queries_) x = normal(random);
    max_.resize(uz(rows_));
    den_.resize(uz(rows_));
    num_.resize(uz(rows_ * layer.dim));
    AttendTask task = make();
    workspace_.reserve(attend_workspace(task));
  }
  // Heads first, first + step, ...
  void run(std::size_t first = 0, std::size_t step = 1) {
    for (std::size_t h = first; h < layer_.blocks.size(); h += step) {
      const std::vector<BlockRef>& head = layer_.blocks[h];
      std::fill(max_.begin(), max_.end(), -std::numeric_limits<float>::infinity());
      std::fill(den_.begin(), den_.end(), 0.f);
      std::fill(num_.begin(), num_.end(), 0.f);
      AttendTask task = make();
      task.blocks = head.data();
      task.block_count = static_cast<Index>(head.size());
      lesskv::kernels().attend(task);
      benchmark::DoNotOptimize(num_.data());
      benchmark::ClobberMemory();
    }
  }

 private:
  AttendTask make() {
    AttendTask task{};
    task.dtype = layer_.type;
    if (layer_.keys) {
      task.key_code = &layer_.keys->code();
      task.value_code = &layer_.values->code();
    }
    task.key_dim = task.value_dim = layer_.dim;
    task.queries = queries_.data();
    task.query_rows = rows_;
    task.scale = 1 / std::sqrt(static_cast<float>(layer_.dim));
    task.max = max_.data();
    task.den = den_.data();
    task.num = num_.data();
    task.workspace = workspace_.data();
    return task;
  }

  const Layer& layer_;
  Index rows_;
  std::vector<float> queries_, max_, den_, num_;
  Floats workspace_;
};

struct Case {
  Storage storage;
  int dim, heads;
  Index group, rows;
  std::string name() const {
    return storage.name + "/d" + std::to_string(dim) + "/kv" + std::to_string(heads) + "/g" +
           std::to_string(group) + "/n" + std::to_string(rows);
  }
};

void decode(benchmark::State& state, const Case& c) {
  static const ReadLimit limit;
  const Layer layer(c.storage, c.dim, c.heads, c.rows);
  Attention attention(layer, c.group);
  std::vector<double> seconds, read, share;
  for (auto _ : state) {
    read.push_back(limit.measure());
    const double start = thread_now();
    attention.run();
    seconds.push_back(thread_now() - start);
    share.push_back(layer.bytes / seconds.back() / read.back());
    state.SetIterationTime(seconds.back());
  }
  state.counters["bytes/s"] = layer.bytes / median(seconds);
  state.counters["read"] = median(read);
  state.counters["share_of_read"] = median(share);
}

// Every other head on a thread of its own, against two threads that read, and against one thread.
void decode_on_two(benchmark::State& state, const Case& c) {
  static const ReadLimit limit;
  const Layer layer(c.storage, c.dim, c.heads, c.rows);
  Attention own(layer, c.group), other(layer, c.group);
  const auto both = [](auto&& first, auto&& second) {
    const double start = bench::now();
    std::thread thread(second);
    first();
    thread.join();
    return bench::now() - start;
  };
  std::vector<double> two, one, read;
  for (auto _ : state) {
    constexpr std::size_t half = ReadLimit::bytes / 2;
    read.push_back(ReadLimit::bytes /
                   both([&] { limit.measure(half); }, [&] { limit.measure(half, half); }));
    two.push_back(both([&] { own.run(0, 2); }, [&] { other.run(1, 2); }));
    limit.measure(half);
    const double start = bench::now();
    own.run();
    one.push_back(bench::now() - start);
    state.SetIterationTime(two.back());
  }
  state.counters["bytes/s"] = layer.bytes / median(two);
  state.counters["share_of_read_on_two"] = layer.bytes / median(two) / median(read);
  state.counters["of_one_thread"] = median(one) / median(two);
}

// Attention of a group over one head as anybody would write it with Eigen.
struct PlainEigen {
  using Matrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
  Matrix keys, values, queries, weights, out;
  PlainEigen(Index rows, int dim, Index group)
      : keys(Matrix::Random(rows, dim)),
        values(Matrix::Random(rows, dim)),
        queries(Matrix::Random(group, dim)) {}
  void run() {
    weights.noalias() = queries * keys.transpose();
    weights *= 1 / std::sqrt(static_cast<float>(keys.cols()));
    for (Index i = 0; i < weights.rows(); ++i) {
      weights.row(i) = (weights.row(i).array() - weights.row(i).maxCoeff()).exp();
      weights.row(i) /= weights.row(i).sum();
    }
    out.noalias() = weights * values;
    benchmark::DoNotOptimize(out.data());
  }
};

void hot(benchmark::State& state, const Case& c) {
  constexpr int turns = 50;
  const Layer layer(c.storage, c.dim, c.heads, c.rows);
  Attention attention(layer, c.group);
  PlainEigen plain(c.rows, c.dim, c.group);
  std::vector<double> ours, eigen;
  for (auto _ : state) {
    const double start = thread_now();
    for (int i = 0; i < turns; ++i) attention.run();
    const double middle = thread_now();
    for (int i = 0; i < turns; ++i) plain.run();
    ours.push_back((middle - start) / turns);
    eigen.push_back((thread_now() - middle) / turns);
    state.SetIterationTime(ours.back());
  }
  state.counters["bytes/s"] = layer.bytes / median(ours);
  state.counters["of_eigen"] = median(eigen) / median(ours);
}

void prefill(benchmark::State& state, const Case& c) {
  constexpr Index tokens = 512;
  const Layer layer(c.storage, c.dim, c.heads, c.rows);
  Attention attention(layer, tokens * c.group);
  std::vector<double> seconds;
  for (auto _ : state) {
    const double start = thread_now();
    attention.run();
    seconds.push_back(thread_now() - start);
    state.SetIterationTime(seconds.back());
  }
  const double operations = 4.0 * static_cast<double>(tokens * c.group * c.rows) * c.dim * c.heads;
  state.counters["flop/s"] = operations / median(seconds);
#if defined(__x86_64__)
  if (const double peak = fma_peak(); peak > 0)
    state.counters["share_of_fma"] = operations / median(seconds) / peak;
#endif
}

}  // namespace

int main(int count, char** arguments) {
  benchmark::Initialize(&count, arguments);
  std::vector<Case> cases;
  const std::vector<Storage> all = storages();
  const auto find = [&](const char* name) {
    return *std::find_if(all.begin(), all.end(), [&](const Storage& s) { return s.name == name; });
  };
  for (const Storage& storage : all)
    for (const int dim : {128, 64})
      for (const Index group : {1, 3, 4, 8}) cases.push_back({storage, dim, 8, group, 32768});
  cases.push_back({find("f16"), 64, 3, 3, 131072});
  cases.push_back({find("f16"), 64, 3, 3, 4096});
  cases.push_back({find("f16"), 128, 8, 4, 4096});
  for (const Case& c : cases)
    benchmark::RegisterBenchmark(("attend/" + c.name()).c_str(),
                                 [c](benchmark::State& state) { decode(state, c); })
        ->Iterations(20)
        ->UseManualTime()
        ->Unit(benchmark::kMillisecond);
  for (const Storage& storage : all)
    for (const int dim : {128, 64})
      for (const Index group : {1, 4}) {
        const Case c{storage, dim, 1, group, 1024};
        benchmark::RegisterBenchmark(("hot/" + c.name()).c_str(),
                                     [c](benchmark::State& state) { hot(state, c); })
            ->Iterations(20)
            ->UseManualTime()
            ->Unit(benchmark::kMicrosecond);
      }
  for (const char* name : {"f16", "int8_tok", "lm4"})
    for (const Index group : {1, 4}) {
      const Case c{find(name), 128, 8, group, 32768};
      benchmark::RegisterBenchmark(("two_threads/" + c.name()).c_str(),
                                   [c](benchmark::State& state) { decode_on_two(state, c); })
          ->Iterations(20)
          ->UseManualTime()
          ->Unit(benchmark::kMillisecond);
    }
  for (const char* name : {"f16", "f32", "int8_tok", "lm4"})
    for (const int dim : {64, 128}) {
      const Case c{find(name), dim, 1, 3, 4096};
      benchmark::RegisterBenchmark(("prefill/" + c.name()).c_str(),
                                   [c](benchmark::State& state) { prefill(state, c); })
          ->Iterations(9)
          ->UseManualTime()
          ->Unit(benchmark::kMillisecond);
    }
  benchmark::RunSpecifiedBenchmarks();
  return 0;
}
