// SPDX-License-Identifier: MIT
// Tokens a second of decoding with a real model, one thread, weights and sampling's logits included.
//   decode/depth<n>: one counter for each way of keeping the cache: tokens/s, the median of the rounds in
//     each of which all of them decode 16 tokens in turn; "<name> MB": what its cache holds;
//     "<name> compress": share of the time that compress() took, "<name> worst_ms": its longest call.
// The engine of the examples with an exact f16 cache, coded caches, and compositions at 8 times fewer
// bytes (solved for as the comparison of policies does); beside them, where they are built in, those of
// other engines (bench/run.sh --peers).
//   decode_bench --model=FILE.gguf --text=FILE [--policy=SPEC]...
// Run it pinned and alone: taskset -c 0 decode_bench ...
#include <benchmark/benchmark.h>

#include <algorithm>
#include <compare/document.hpp>
#include <compare/policy.hpp>
#include <cstdio>
#include <engine/run.hpp>
#include <engine/tokenizer.hpp>
#include <lesskv/any.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "decode.hpp"
#include "read_limit.hpp"

namespace {

using bench::Decoder;
using bench::NamedDecoder;
using lesskv::Index;

constexpr Index depths[] = {4096, 7000};
constexpr int rounds = 5, steps = 16, warm_up = 2;
constexpr double compression = 8;

class Ours final : public Decoder {
 public:
  Ours(engine::Run& run, lesskv::AnyCache cache, Index position)
      : run_(run), cache_(std::move(cache)), position_(position) {}
  void step(std::int32_t token) override {
    run_.forward(cache_, std::span(&token, 1), position_++);
    const double start = bench::thread_now();
    cache_.compress();
    const double seconds = bench::thread_now() - start;
    compress_.all += seconds;
    compress_.most = std::max(compress_.most, seconds);
  }
  Compress compress() const override { return compress_; }
  double bytes() const override { return static_cast<double>(cache_.bytes()); }

 private:
  engine::Run& run_;
  lesskv::AnyCache cache_;
  Index position_;
  Compress compress_;
};

struct Setting {
  std::string model, text;
  std::vector<std::string> policies;
};

class Bench {
 public:
  explicit Bench(const Setting& setting)
      : model_(engine::Model::open(setting.model)),
        run_(model_),
        pass_(engine::cache_shape(model_)),
        peer_(bench::make_peer(setting.model, depths[1] + rounds * steps + warm_up)) {
    const engine::Tokenizer tokenizer(model_.file());
    tokens_ = compare::read_document(setting.text, tokenizer).tokens;
    if (static_cast<Index>(tokens_.size()) < depths[1] + steps)
      throw engine::Error(setting.text + ": it has " + std::to_string(tokens_.size()) +
                          " tokens, too few");
    for (const std::string& text : setting.policies) policies_.emplace_back(text);
  }

  void run(benchmark::State& state, Index depth) {
    std::vector<NamedDecoder> all = decoders(depth);
    if (peer_)
      for (NamedDecoder& one :
           peer_->decoders(std::span(tokens_).first(static_cast<std::size_t>(depth))))
        all.push_back(std::move(one));
    const std::span<const std::int32_t> next =
        std::span(tokens_).subspan(static_cast<std::size_t>(depth), steps);
    for (NamedDecoder& one : all)
      for (int i = 0; i < warm_up; ++i) one.decoder->step(next[static_cast<std::size_t>(i)]);
    std::vector<std::vector<double>> speed(all.size());
    std::vector<double> total(all.size());
    std::vector<Decoder::Compress> before;
    for (const NamedDecoder& one : all) before.push_back(one.decoder->compress());
    for (auto _ : state)
      for (std::size_t i = 0; i < all.size(); ++i) {
        const double start = bench::thread_now();
        for (const std::int32_t token : next) all[i].decoder->step(token);
        const double seconds = bench::thread_now() - start;
        speed[i].push_back(steps / seconds);
        total[i] += seconds;
        if (i == 0) state.SetIterationTime(seconds);
      }
    for (std::size_t i = 0; i < all.size(); ++i) {
      state.counters[all[i].name] = bench::median(speed[i]);
      state.counters[all[i].name + " MB"] = all[i].decoder->bytes() / 1e6;
      const Decoder::Compress compress = all[i].decoder->compress();
      if (compress.all == 0) continue;
      state.counters[all[i].name + " compress"] = (compress.all - before[i].all) / total[i];
      state.counters[all[i].name + " worst_ms"] = 1e3 * compress.most;
    }
  }

 private:
  // Caches that hold the first `depth` tokens, which is more than at the call before.
  std::vector<NamedDecoder> decoders(Index depth) {
    const Index held = pass_.tensors.tokens();
    std::fprintf(stderr, "decode_bench: prefill to %td tokens\n", depth);
    compare::forward_and_keep(run_, pass_.exact, pass_.tensors,
                              std::span(tokens_).subspan(static_cast<std::size_t>(held),
                                                         static_cast<std::size_t>(depth - held)),
                              held);
    pass_.exact.compress();
    std::vector<NamedDecoder> out;
    for (const compare::Policy& policy : policies_) {
      const compare::Solved solved = compare::solve(compare::Variant{&policy, compression}, pass_);
      if (!solved.fits) throw engine::Error(policy.text + ": " + solved.why());
      lesskv::AnyCache cache = lesskv::make_cache(solved.spec, pass_.exact.shape());
      compare::replay(pass_.tensors, cache);
      cache.compress();
      out.push_back({(solved.fraction > 0 ? "8x " : "") + policy.text,
                     std::make_unique<Ours>(run_, std::move(cache), depth)});
    }
    return out;
  }

  engine::Model model_;
  engine::Run run_;
  compare::Pass pass_;
  std::unique_ptr<bench::Peer> peer_;
  std::vector<std::int32_t> tokens_;
  std::vector<compare::Policy> policies_;
};

}  // namespace

int main(int count, char** arguments) {
  benchmark::Initialize(&count, arguments);
  benchmark::AddCustomContext("kernels", lesskv::kernels().name);
  Setting setting;
  for (int i = 1; i < count; ++i) {
    const std::string_view argument = arguments[i];
    const auto value = [&](std::string_view name, std::string& to) {
      if (!argument.starts_with(name)) return false;
      to = argument.substr(name.size());
      return true;
    };
    std::string policy;
    if (value("--policy=", policy)) {
      setting.policies.push_back(policy);
    } else if (!value("--model=", setting.model) && !value("--text=", setting.text)) {
      std::fprintf(stderr, "decode_bench: %s: there is no such option\n", arguments[i]);
      return 2;
    }
  }
  if (setting.policies.empty()) {
    setting.policies = {"exact", "int(bits=8)", "int(bits=4)"};
    for (const compare::DefaultPolicy& one : compare::compositions())
      if (compression > one.above && compression <= one.up_to) setting.policies.push_back(one.text);
    setting.policies.push_back(
        "snapkv+lm(bits=5,value_bits=4)");  // looks at the prompt's end alone
  }
  try {
    Bench all(setting);
    for (const Index depth : depths)
      benchmark::RegisterBenchmark(
          ("decode/depth" + std::to_string(depth)).c_str(),
          [&all, depth](benchmark::State& state) { all.run(state, depth); })
          ->Iterations(rounds)
          ->UseManualTime()
          ->Unit(benchmark::kMillisecond);
    benchmark::RunSpecifiedBenchmarks();
  } catch (const std::exception& error) {
    std::fprintf(stderr, "decode_bench: %s\n", error.what());
    return 1;
  }
  return 0;
}
