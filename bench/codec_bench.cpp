// SPDX-License-Identifier: MIT
// Bits against error on real keys and values: 960 rows of layers 0, 15 and 29 of SmolLM2-135M
// (tests/data/inputs; 9 heads), answered by the decode kernels to the queries of the 64 tokens behind.
//   code/<name>: all rows stored alike. bits: a number, scales and means of blocks included; held: the
//     same for all that the cache holds, positions and a dictionary included. key_nmse, value_nmse:
//     square error / sum of squares; key_bound, value_bound: the smallest that Gaussian rows of this
//     covariance allow at these bits (tests/oracle/rate_distortion.hpp); key_max, value_max: largest
//     error / root mean square; logits: root mean square error of q.k / sqrt(dim), less its mean over
//     the rows; output: relative error of the attention output; output_4_exact: the same with four
//     exact rows in front. Means over the heads. encode_ns, decode_ns: a number, one thread.
//   format/q8_0, format/q4_0: the same of ggml's block formats, by their definition
//     (tests/oracle/ggml_blocks.hpp), with queries as q8_0 as ggml has them. of_format: output of a code
//     of the same bytes / theirs.
//   rows/<x>/<policy>: layer 15, at x times fewer bytes than the exact f16 cache, everything counted:
//     output as above; kept: share of the rows; compress_ms, and attend_us, one query.
// --dictionary=FILE: CSR with this dictionary too. Run it pinned: taskset -c 0 codec_bench
#include <benchmark/benchmark.h>

#include <algorithm>
#include <compare/fit.hpp>
#include <cstdio>
#include <lesskv/any.hpp>
#include <memory>
#include <numeric>
#include <string>
#include <string_view>
#include <vector>

#include "oracle/ggml_blocks.hpp"
#include "oracle/rate_distortion.hpp"
#include "read_limit.hpp"
#include "support/real_layers.hpp"

namespace {

using bench::median;
using bench::thread_now;
using lesskv::AnyCache;
using lesskv::Index;
using lesskv::PolicySpec;
using lesskv::Side;
using lesskv::SideCodec;
using lesskv::detail::uz;
using support::CodeError;
using support::RealHeads;
using support::RealLayer;

constexpr Index block = lesskv::detail::kernel_block;
constexpr double numbers_a_side = 9.0 * RealLayer::rows * RealLayer::dim;

const RealHeads& real() {
  static const RealHeads all(LESSKV_TEST_DATA);
  return all;
}

void report(benchmark::State& state, const CodeError& e, double key_bits, double value_bits) {
  const auto bound = [](bool keys, double bits) {
    return real().mean(
        keys, [&](auto rows) { return oracle::gaussian_bound(rows, RealLayer::dim, bits); });
  };
  state.counters["bits"] = (key_bits + value_bits) / 2;
  state.counters["key_nmse"] = e.key_nmse;
  state.counters["value_nmse"] = e.value_nmse;
  state.counters["key_bound"] = bound(true, key_bits);
  state.counters["value_bound"] = bound(false, value_bits);
  state.counters["key_max"] = e.key_max;
  state.counters["value_max"] = e.value_max;
  state.counters["logits"] = e.logits;
  state.counters["output"] = e.output;
}

// A format that only engines have: rows go through it and back, queries through q8_0.
using Format = std::vector<float> (*)(std::span<const float>);
CodeError error_of(Format format) {
  return real().error_of(format,
                         [](const std::vector<float>& q) { return oracle::through_q8_0(q); });
}
void format(benchmark::State& state, Format through, double bits) {
  for (auto _ : state) {
    const double start = thread_now();
    report(state, error_of(through), bits, bits);
    state.SetIterationTime(thread_now() - start);
  }
}

// One side of one head: its codec, its rows, room for its blocks.
struct CodedSide {
  std::shared_ptr<const SideCodec> codec;
  std::span<const float> rows;
  std::vector<std::uint32_t> positions;
  std::size_t stride;
  lesskv::detail::Floats blocks;

  CodedSide(std::shared_ptr<const SideCodec> one, std::span<const float> x)
      : codec(std::move(one)), rows(x), positions(RealLayer::rows) {
    std::iota(positions.begin(), positions.end(), 0U);
    if (codec->adapts()) codec = codec->adapted(rows.data(), positions.data(), RealLayer::rows);
    stride = (codec->bytes(block) + 63) / 64 * 64;
    blocks.reserve(static_cast<Index>(stride / sizeof(float)) * (RealLayer::rows / block));
  }
  template <class F>
  void each_block(F&& f) {
    for (Index b = 0; b < RealLayer::rows / block; ++b)
      f(reinterpret_cast<char*>(blocks.data()) + uz(b) * stride, b * block);
  }
  void encode() {
    each_block([&](char* to, Index row) {
      codec->encode(rows.data() + row * RealLayer::dim, positions.data() + row, block, to);
    });
  }
  void decode(float* out) {
    each_block([&](const char* from, Index row) {
      codec->decode(from, positions.data() + row, 0, block, out);
      benchmark::DoNotOptimize(out);
      benchmark::ClobberMemory();
    });
  }
};

void code(benchmark::State& state, const std::string& text, Format peer) {
  PolicySpec spec = lesskv::parse_spec(text);
  spec.keep.sinks = 4;
  spec.keep.recent = 0;
  AnyCache cache = real().fill(lesskv::make_cache(spec, RealHeads::shape()));
  const double with_sinks = real().error_of(cache).output;
  spec.keep.sinks = 0;
  cache = real().fill(lesskv::make_cache(spec, RealHeads::shape()));
  const CodeError error = real().error_of(cache);

  std::vector<CodedSide> sides;
  std::vector<std::shared_ptr<const void>> encoders;
  double bits[2] = {};
  for (const RealLayer& layer : real().layers())
    for (int h = 0; h < layer.kv_heads && spec.codec; ++h)
      for (const Side side : {Side::keys, Side::values}) {
        sides.emplace_back(spec.codec->codec(side, layer.dim, layer.layer, h),
                           side == Side::keys ? layer.keys_of(h) : layer.values_of(h));
        encoders.push_back(sides.back().codec->encoder());
        bits[side == Side::values] += 8.0 * static_cast<double>(sides.back().codec->bytes(block)) /
                                      (block * RealLayer::dim) / 9;
      }
  std::vector<float> out(uz(block * RealLayer::dim));
  std::vector<double> encode, decode;
  for (auto _ : state) {
    const double start = thread_now();
    for (CodedSide& side : sides) side.encode();
    const double middle = thread_now();
    for (CodedSide& side : sides) side.decode(out.data());
    encode.push_back(middle - start);
    decode.push_back(thread_now() - middle);
    state.SetIterationTime(thread_now() - start);
  }
  if (!spec.codec)
    bits[0] = bits[1] = 8.0 * static_cast<double>(size_of(spec.dtype.value_or(lesskv::DType::f16)));
  report(state, error, bits[0], bits[1]);
  state.counters["output_4_exact"] = with_sinks;
  state.counters["held"] = 8.0 * static_cast<double>(cache.bytes()) / (2 * numbers_a_side);
  if (spec.codec) {
    state.counters["encode_ns"] = 1e9 * median(encode) / (2 * numbers_a_side);
    state.counters["decode_ns"] = 1e9 * median(decode) / (2 * numbers_a_side);
  }
  if (peer) state.counters["of_format"] = error.output / error_of(peer).output;
}

// ---- which rows stay, at equal bytes

const RealLayer& middle_layer() { return real().layers()[1]; }

AnyCache filled(const PolicySpec& spec) {
  lesskv::Shape shape = RealHeads::shape();
  shape.layers = 1;
  AnyCache cache = lesskv::make_cache(spec, shape);
  const RealLayer& layer = middle_layer();
  cache.append(0, layer.k(0, layer.rows), layer.v(0, layer.rows));
  cache.observe(0, layer.q(0, layer.rows));
  return cache;
}

void rows(benchmark::State& state, const std::string& text, double times_fewer) {
  static const std::vector<support::HeadError> exact = [] {
    std::vector<support::HeadError> out;
    for (int h = 0; h < RealLayer::kv_heads; ++h) out.emplace_back(middle_layer(), h);
    return out;
  }();
  const std::size_t all = filled(lesskv::parse_spec("exact")).bytes();
  PolicySpec spec = lesskv::parse_spec(text);
  const auto size = [&](double fraction) {
    spec.keep.fraction = fraction;
    AnyCache cache = filled(spec);
    cache.compress();
    return cache.bytes();
  };
  const auto limit = static_cast<std::size_t>(static_cast<double>(all) / times_fewer);
  const compare::Fit fit =
      compare::fit_fraction(size, limit, all, static_cast<long>(RealLayer::rows));
  if (!fit.fits) {
    state.SkipWithError("cannot get there");
    return;
  }
  spec.keep.fraction = fit.fraction;
  AnyCache cache = filled(spec);
  const AnyCache before = cache;
  std::vector<double> compress, attend;
  std::size_t bytes = 0;
  std::vector<float> out(RealLayer::query_heads * RealLayer::dim);
  for (auto _ : state) {
    cache = before;
    double start = thread_now();
    cache.compress();
    compress.push_back(thread_now() - start);
    state.SetIterationTime(compress.back());
    bytes = cache.bytes();
    start = thread_now();
    for (Index t = RealLayer::rows; t < RealLayer::tokens; ++t)
      cache.attend(0, middle_layer().q(t, 1), out.data());
    attend.push_back((thread_now() - start) / RealLayer::queries);
  }
  const auto answers = support::answers(cache, middle_layer(), 0);
  double error = 0;
  for (std::size_t h = 0; h < exact.size(); ++h)
    error += exact[h].output_error(answers[h]) / static_cast<double>(exact.size());
  const lesskv::Stats stats = cache.stats();
  state.counters["x"] = static_cast<double>(all) / static_cast<double>(bytes);
  state.counters["kept"] = static_cast<double>(stats.held) / static_cast<double>(stats.seen);
  state.counters["output"] = error;
  state.counters["compress_ms"] = 1e3 * median(compress);
  state.counters["attend_us"] = 1e6 * median(attend);
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
  benchmark::AddCustomContext("kernels", lesskv::kernels().name);
  std::string dictionary;
  for (int i = 1; i < count; ++i) {
    const std::string_view argument = arguments[i], name = "--dictionary=";
    if (!argument.starts_with(name)) {
      std::fprintf(stderr, "codec_bench: %s: there is no such option\n", arguments[i]);
      return 2;
    }
    dictionary = argument.substr(name.size());
  }
  using S = benchmark::State;
  const auto add_code = [](const std::string& name, const std::string& spec,
                           Format peer = nullptr) {
    add("code/" + name, 9, [=](S& s) { code(s, spec, peer); });
  };
  const Format q8_0 = oracle::through_q8_0, q4_0 = oracle::through_q4_0;
  for (const std::string type : {"f32", "f16", "bf16"})
    add_code(type, "store(dtype=" + type + ")+exact");
  add_code("int8_b32", "int(bits=8,group=32)", q8_0);
  add_code("int8_tok", "int(bits=8)");
  add_code("int4_b32", "int(bits=4,group=32)", q4_0);
  add_code("int4_tok", "int(bits=4)");
  for (const std::string bits : {"6", "5", "4", "3", "2"}) {
    add_code("lm" + bits, "lm(bits=" + bits + ")");
    add_code("lm" + bits + "_no_mean", "lm(mean=false,bits=" + bits + ")");
  }
  for (const std::string bits : {"8", "4", "2"}) add_code("kivi" + bits, "kivi(bits=" + bits + ")");
  if (!dictionary.empty())
    for (const std::string atoms : {"15", "7", "3"})
      add_code("csr" + atoms, "csr(atoms=" + atoms + ",dictionary=" + dictionary + ")");
  add("format/q8_0", 1, [=](S& s) { format(s, q8_0, 8.5); });
  add("format/q4_0", 1, [=](S& s) { format(s, q4_0, 4.5); });
  for (const int times : {4, 8})
    for (const char* scorer : {"random", "streamingllm", "keydiff", "keep(sinks=16)+lagkv(lag=32)",
                               "tova", "snapkv", "h2o(age_normalised=true)"})
      for (const char* codec : {"", "+lm(bits=5,value_bits=4)"}) {
        const std::string spec = std::string(scorer) + codec;
        add("rows/" + std::to_string(times) + "x/" + spec, 9, [=](S& s) { rows(s, spec, times); });
      }
  benchmark::RunSpecifiedBenchmarks();
  return 0;
}
