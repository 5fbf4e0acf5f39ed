// SPDX-License-Identifier: MIT
// Prefill of one document, exact and with hidden states dropped, in turn, and what the dropped ones
// answer behind it.
#pragma once

#include <algorithm>
#include <compare/metrics.hpp>
#include <compare/pass.hpp>
#include <compare/progress.hpp>
#include <compare/tasks.hpp>
#include <ctime>
#include <engine/run.hpp>
#include <optional>
#include <span>
#include <string>
#include <vector>

namespace prefill {

using compare::Index;

// Of one prefill. Processor time is that of the calling thread: the two differ on a busy machine.
struct Times {
  double seconds = 0, processor_seconds = 0;
  double choosing_seconds = 0;  // attention sums and selection at the borders
};

inline double processor_seconds() {
  timespec now{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

inline double median(std::vector<double> x) {
  if (x.empty()) return 0;
  std::sort(x.begin(), x.end());
  return (x[(x.size() - 1) / 2] + x[x.size() / 2]) / 2;
}

// One way to run the prefill; no `drop`: exactly, as forward() does it.
struct Way {
  std::string name;
  std::optional<engine::DropHidden> drop = {};
  std::vector<Times> times = {};
  compare::TokenScores running = {}, copies = {};
  double bytes = 0;  // of the cache, summed over the documents

  // Tokens of every layer.
  std::vector<Index> tokens_of_layers(Index tokens, int layers) const {
    if (!drop) return std::vector<Index>(static_cast<std::size_t>(layers), tokens);
    std::vector<Index> out;
    const std::vector<Index> budgets = drop->budgets_for(tokens);
    for (std::size_t s = 0; s < budgets.size(); ++s)
      out.insert(out.end(), static_cast<std::size_t>(drop->groups[s]), budgets[s]);
    return out;
  }
  // Tokens times layers that are run, and pairs of a query and a row that it sees: what the time
  // of the matrix products and of attention grows with.
  double work(Index tokens, int layers) const {
    double sum = 0;
    for (const Index n : tokens_of_layers(tokens, layers)) sum += static_cast<double>(n);
    return sum;
  }
  double attention_work(Index tokens, int layers) const {
    double sum = 0;
    for (const Index n : tokens_of_layers(tokens, layers))
      sum += 0.5 * static_cast<double>(n) * static_cast<double>(n + 1);
    return sum;
  }

  lesskv::KVCache<> run(engine::Run& run, std::span<const std::int32_t> tokens,
                        compare::Progress& progress) {
    lesskv::KVCache<> cache(engine::cache_shape(run.model()));
    engine::ForwardOptions options;
    options.on_tensors = [&](const engine::LayerTensors& part) { progress.step(part.tokens); };
    Times taken;
    const compare::Clock clock;
    const double processor = processor_seconds();
    if (drop) {
      drop->on_kept = [&](const engine::KeptTokens& kept) {
        taken.choosing_seconds += kept.seconds;
      };
      run.prefill(cache, tokens, 0, *drop, options);
    } else {
      run.forward(cache, tokens, 0, options);
    }
    taken.processor_seconds = processor_seconds() - processor;
    taken.seconds = clock.milliseconds() / 1e3;
    times.push_back(taken);
    return cache;
  }
};

// ways[0] is the exact one. Every round runs each of them once; the first one is also judged.
inline void measure(engine::Run& run, const std::string& name, std::span<const std::int32_t> tokens,
                    Index context, Index score, int rounds, std::vector<Way>& ways,
                    compare::Progress& progress) {
  const auto prompt = tokens.first(static_cast<std::size_t>(context));
  const int layers = static_cast<int>(run.model().config().layers);
  double work = 0;
  for (const Way& way : ways) work += way.work(context, layers);
  std::optional<compare::DocumentTasks> tasks;
  for (int round = 0; round < rounds; ++round) {
    progress.start(name + ", round " + std::to_string(round + 1), static_cast<long>(work));
    std::vector<lesskv::KVCache<>> caches;
    for (Way& way : ways) {
      lesskv::KVCache<> cache = way.run(run, prompt, progress);
      if (round == 0) caches.push_back(std::move(cache));
    }
    if (round > 0) continue;
    progress.start(name + ", answers", static_cast<long>(ways.size()));
    tasks.emplace(run, caches[0], tokens, context, score);
    for (std::size_t w = 0; w < ways.size(); ++w) {
      ways[w].running.add(tasks->score_running(run, caches[w], context));
      ways[w].copies.add(tasks->score_copies(run, caches[w], context));
      ways[w].bytes += static_cast<double>(caches[w].bytes());
      progress.step();
    }
  }
}

}  // namespace prefill
