// SPDX-License-Identifier: MIT
// The cost of compress(): LagKV's score, selection, the moving of rows, and all of it for one layer
// of 8 KV heads of 128 after a prompt of 32768 tokens.
//   score/<scorer>/<storage>: share_of_read counts keys and values (keynorm: keys) once, as stored;
//     "_f32" is the way over f32 maps that every scorer has.
//   select/n<candidates>/k<kept>: one head; nth_element_us is the same selection by
//     std::nth_element on a list of rows and std::sort, in turn.
//   gather/<storage>/keep<percent>: HeadStore::keep, all heads, rows scattered. The layout makes it
//     read nearly all keys, and the kept values, and write what stays: read_share counts these
//     bytes against the read limit; of_copy divides the time (of selecting too: with_select) by
//     that of a copy of as many bytes, memcpy of contiguous memory.
//   encode/<codec>, decode/<codec>: 512 rows of 128 channels that stay in the caches, keys and values in
//     turn; bytes/s counts the rows as f16.
//   compress/<storage>[_to_<codec>]: KVCache::compress(), Keep{.fraction = .25, .sinks = 16}, LagKV
//     (and a codec); passes is its time in units of reading the layer once at the limit.
// Medians of rounds taken in turn with the read limit, which also evicts the caches; time of the
// thread, so that a busy machine counts less.
// Run it pinned and alone: taskset -c 0 compress_bench
#include <benchmark/benchmark.h>

#include <algorithm>
#include <lesskv/cache/head_store.hpp>
#include <lesskv/cache/kv_cache.hpp>
#include <lesskv/codec/int_code.hpp>
#include <lesskv/codec/lloyd_max.hpp>
#include <lesskv/core/select.hpp>
#include <lesskv/score/key_norm.hpp>
#include <lesskv/score/lagkv.hpp>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "read_limit.hpp"

namespace {

using namespace lesskv;
using bench::median;
using bench::thread_now;
using detail::HeadStore;
using detail::uz;

constexpr Index rows = 32768;
constexpr int heads = 8, dim = 128;
constexpr std::size_t evict = std::size_t{256} << 20;  // more than any cache holds

const bench::ReadLimit& limit() {
  static const bench::ReadLimit one;
  return one;
}

// Numbers like those of a model: every channel has its own offset, neighbours are alike.
std::vector<float> numbers(Index count, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> offset(dim), x(uz(count * dim));
  for (float& o : offset) o = 2 * normal(random);
  for (Index i = 0; i < count * dim; ++i) x[uz(i)] = offset[uz(i % dim)] + normal(random);
  return x;
}

// Heads in turn by parts of 512 tokens, as a prefill writes them that has said how many come
// (AnyCache::reserve).
std::vector<HeadStore> layer(DType type) {
  std::vector<HeadStore> out(heads, HeadStore(dim, dim, type));
  for (HeadStore& head : out) head.expect(rows);
  const std::vector<float> part = numbers(4096, 1);
  std::mt19937 random(2);
  for (Index first = 0; first < rows; first += 512)
    for (HeadStore& head : out) {
      const float* k = part.data() + static_cast<Index>(random() % 3500) * dim;
      const float* v = part.data() + static_cast<Index>(random() % 3500) * dim;
      head.append(k, v, 512);
    }
  return out;
}
double bytes_of(DType type) {
  return 2.0 * rows * heads * dim * static_cast<double>(size_of(type));
}

struct Rounds {
  std::vector<double> seconds, read;
  template <class F>
  void add(benchmark::State& state, F&& f) {
    read.push_back(limit().measure(evict));
    const double start = thread_now();
    f();
    seconds.push_back(thread_now() - start);
    state.SetIterationTime(seconds.back());
  }
  // Share of the same round's limit.
  double share(double bytes) const {
    std::vector<double> out;
    for (std::size_t i = 0; i < read.size(); ++i) out.push_back(bytes / seconds[i] / read[i]);
    return median(out);
  }
};

template <class Scorer>
void score(benchmark::State& state, DType type, bool stored, double bytes) {
  const std::vector<HeadStore> store = layer(type);
  const Scorer scorer{};
  std::vector<Position> positions(uz(rows));
  std::vector<float> out(uz(rows)), keys, values;
  Rounds rounds;
  const Index chunk = 128;
  for (auto _ : state)
    rounds.add(state, [&] {
      for (const HeadStore& head : store) {
        Head seen;
        seen.positions = positions;
        seen.last = rows - chunk;
        if (stored) {
          std::vector<BlockRef> blocks;
          for (Index b = 0; b < head.block_count(); ++b) blocks.push_back(head.block(b));
          scorer.score_tiles(seen, Tiles{blocks, 0, type, dim, dim}, out);
        } else {
          keys.resize(uz(rows * dim));
          values.resize(uz(rows * dim));
          head.read(0, rows, keys.data(), values.data());
          detail::point(seen.keys, keys.data(), rows, dim, dim);
          detail::point(seen.values, values.data(), rows, dim, dim);
          for (Index first = 0; first + 2 * chunk <= rows; first += chunk) {
            seen.first = first;
            seen.last = first + chunk;
            scorer.score(seen, out);
          }
        }
        benchmark::DoNotOptimize(out.data());
      }
    });
  state.counters["share_of_read"] = rounds.share(bytes);
  state.counters["bytes/s"] = bytes / median(rounds.seconds);
  state.counters["read"] = median(rounds.read);
  state.counters["ns_per_row_head"] = 1e9 * median(rounds.seconds) / (rows * heads);
}

std::vector<float> scores(Index n) {
  std::mt19937 random(3);
  std::normal_distribution<float> normal;
  std::vector<float> x(uz(n));
  for (float& v : x) v = normal(random);
  return x;
}

void select(benchmark::State& state, Index n, Index k) {
  const std::vector<float> x = scores(n);
  std::vector<std::int32_t> kept, by_rows(uz(n));
  kept.reserve(uz(k));
  std::vector<double> ours, theirs;
  for (auto _ : state) {
    double start = thread_now();
    kept.clear();
    detail::select_largest(x, {}, 0, n, k, 0, kept);
    benchmark::DoNotOptimize(kept.data());
    ours.push_back(thread_now() - start);
    state.SetIterationTime(ours.back());
    start = thread_now();
    std::iota(by_rows.begin(), by_rows.end(), 0);
    const auto end = by_rows.begin() + k;
    std::nth_element(by_rows.begin(), end, by_rows.end(),
                     [&](std::int32_t a, std::int32_t b) { return x[uz(a)] > x[uz(b)]; });
    std::sort(by_rows.begin(), end);
    benchmark::DoNotOptimize(by_rows.data());
    theirs.push_back(thread_now() - start);
  }
  state.counters["us"] = 1e6 * median(ours);
  state.counters["nth_element_us"] = 1e6 * median(theirs);
  state.counters["times_faster"] = median(theirs) / median(ours);
}

void gather(benchmark::State& state, DType type, double share) {
  const std::vector<HeadStore> whole = layer(type);
  const Index k = static_cast<Index>(share * rows);
  const std::vector<float> x = scores(rows);
  std::vector<std::int32_t> kept;
  detail::select_largest(x, {}, 0, rows, k, 0, kept);
  const auto all = static_cast<std::size_t>(bytes_of(type) / 2);
  const auto part = static_cast<std::size_t>(static_cast<double>(k) / rows * bytes_of(type) / 2);
  std::vector<char> from(all + part, 1), to(2 * part);
  Rounds rounds;
  std::vector<double> select_seconds, copy_seconds;
  for (auto _ : state) {
    // Blocks of its own: a fork would be copied on write.
    std::vector<HeadStore> store(heads, HeadStore(dim, dim, type));
    for (HeadStore& head : store) head.expect(rows);
    {
      std::vector<float> keys(uz(512 * dim)), values(uz(512 * dim));
      for (Index first = 0; first < rows; first += 512)
        for (int h = 0; h < heads; ++h) {
          whole[uz(h)].read(first, 512, keys.data(), values.data());
          store[uz(h)].append(keys.data(), values.data(), 512);
        }
    }
    limit().measure(evict);
    // The copy reads as many bytes as the layout makes the gather read, and writes as many.
    double start = thread_now();
    long long sum = bench::ReadLimit::sum()(from.data(), (all - part) / 512 * 512);
    benchmark::DoNotOptimize(sum);
    std::memcpy(to.data(), from.data() + all - part, 2 * part);
    benchmark::DoNotOptimize(to.data());
    copy_seconds.push_back(thread_now() - start);
    rounds.add(state, [&] {
      for (HeadStore& head : store) head.keep(kept, true);
    });
    start = thread_now();
    for (int h = 0; h < heads; ++h) {
      kept.clear();
      detail::select_largest(x, {}, 0, rows, k, 0, kept);
      benchmark::DoNotOptimize(kept.data());
    }
    select_seconds.push_back(thread_now() - start);
  }
  state.counters["read_share"] = rounds.share(static_cast<double>(all + part));
  state.counters["of_copy"] = median(rounds.seconds) / median(copy_seconds);
  state.counters["with_select"] =
      (median(rounds.seconds) + median(select_seconds)) / median(copy_seconds);
  state.counters["ns_per_kept_row"] =
      1e9 * median(rounds.seconds) / (static_cast<double>(k) * heads);
}

template <class... Policies>
void compress(benchmark::State& state, DType type, const Policies&... policies) {
  const Shape shape{.query_heads = heads, .kv_heads = heads, .head_dim = dim, .dtype = type};
  const std::vector<float> part = numbers(512 * heads, 4);
  Rounds rounds;
  Index held = 0;
  for (auto _ : state) {
    KVCache cache(shape, Keep{.fraction = 0.25, .sinks = 16}, LagKV{}, policies...);
    cache.reserve(rows);
    for (Index first = 0; first < rows; first += 512)
      cache.append(0, View::packed(part.data(), 512, heads, dim),
                   View::packed(part.data(), 512, heads, dim));
    rounds.add(state, [&] { cache.compress(); });
    held = cache.size(0, 0);
  }
  state.counters["passes"] = 1 / rounds.share(bytes_of(type));
  state.counters["ms"] = 1e3 * median(rounds.seconds);
  state.counters["read"] = median(rounds.read);
  state.counters["rows_held"] = static_cast<double>(held);
}

template <class Policy>
void code(benchmark::State& state, const Policy& policy, bool encode) {
  constexpr Index blocks = 8, n = detail::block_rows;
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  std::vector<float> in(uz(blocks * n * dim)), out(in.size());
  for (float& x : in) x = normal(random);
  std::vector<std::uint32_t> positions(uz(n));
  std::iota(positions.begin(), positions.end(), 0U);
  const std::shared_ptr<const SideCodec> codecs[] = {policy.codec(Side::keys, dim),
                                                     policy.codec(Side::values, dim)};
  const std::size_t most = std::max(codecs[0]->bytes(n), codecs[1]->bytes(n));
  detail::Floats coded(blocks * static_cast<Index>(most / sizeof(float) + 16));
  std::vector<double> seconds;
  for (auto _ : state) {
    const double start = thread_now();
    for (const auto& codec : codecs)
      for (Index b = 0; b < blocks; ++b) {
        char* to = reinterpret_cast<char*>(coded.data()) + uz(b) * (most + 63) / 64 * 64;
        if (encode || seconds.empty())
          codec->encode(in.data() + b * n * dim, positions.data(), n, to);
        if (!encode) codec->decode(to, positions.data(), 0, n, out.data() + b * n * dim);
      }
    seconds.push_back(thread_now() - start);
    state.SetIterationTime(seconds.back());
    benchmark::DoNotOptimize(coded.data());
    benchmark::DoNotOptimize(out.data());
  }
  state.counters["bytes/s"] = 2.0 * blocks * n * dim * 2 / median(seconds);
}

template <class F>
void add(const std::string& name, int rounds, F f) {
  benchmark::RegisterBenchmark(name.c_str(), [f](benchmark::State& state) { f(state); })
      ->Iterations(rounds)
      ->UseManualTime()
      ->Unit(benchmark::kMillisecond);
}

}  // namespace

int main(int count, char** arguments) {
  benchmark::Initialize(&count, arguments);
  using S = benchmark::State;
  for (const DType type : {DType::f16, DType::bf16, DType::f32}) {
    const std::string name = name_of(type);
    const double bytes = bytes_of(type);
    add("score/lagkv/" + name, 9, [=](S& s) { score<LagKV>(s, type, true, bytes); });
    add("score/keynorm/" + name, 9, [=](S& s) { score<KeyNorm>(s, type, true, bytes / 2); });
  }
  add("score/lagkv_f32/f16", 5,
      [](S& s) { score<LagKV>(s, DType::f16, false, bytes_of(DType::f16)); });
  add("select/n32768/k8192", 200, [](S& s) { select(s, 32768, 8192); });
  add("select/n32768/k1024", 200, [](S& s) { select(s, 32768, 1024); });
  add("select/n4096/k1024", 500, [](S& s) { select(s, 4096, 1024); });
  add("select/n128/k32", 2000, [](S& s) { select(s, 128, 32); });
  for (const DType type : {DType::f16, DType::f32})
    for (const double share : {0.25, 0.5})
      add(std::string("gather/") + name_of(type) + "/keep" + (share < 0.3 ? "25" : "50"), 5,
          [=](S& s) { gather(s, type, share); });
  for (const bool encode : {true, false}) {
    const std::string what = encode ? "encode/" : "decode/";
    for (const int bits : {2, 3, 4, 5, 6})
      add(what + "lm" + std::to_string(bits), 100,
          [=](S& s) { code(s, LloydMax{.bits = bits}, encode); });
    for (const int bits : {4, 8})
      for (const int group : {0, 32})
        add(what + "int" + std::to_string(bits) + (group > 0 ? "_b32" : "_tok"), 100,
            [=](S& s) { code(s, IntCode{.bits = bits, .group = group}, encode); });
  }
  for (const DType type : {DType::f16, DType::f32})
    add(std::string("compress/") + name_of(type), 5, [=](S& s) { compress(s, type); });
  add("compress/f16_to_int4", 5, [](S& s) { compress(s, DType::f16, IntCode{.bits = 4}); });
  add("compress/f16_to_lm4", 5, [](S& s) { compress(s, DType::f16, LloydMax{}); });
  benchmark::RunSpecifiedBenchmarks();
  return 0;
}
