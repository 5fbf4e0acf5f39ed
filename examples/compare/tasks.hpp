// SPDX-License-Identifier: MIT
// The two tasks on a document: the real continuation, and copying of earlier text. Both feed tokens
// behind a compressed context and compare every logit with those behind the exact one.
#pragma once

#include <cmath>
#include <stdexcept>
#include <string>

#include "metrics.hpp"
#include "pass.hpp"

namespace compare {

// Tokens fed behind the context. The last next.size() logit rows are compared; `next` are the
// tokens that really follow.
struct Continuation {
  std::vector<std::int32_t> fed, next;
};

// The tokens behind the context, fed one after another (teacher-forced).
inline Continuation running_text(std::span<const std::int32_t> tokens, Index context, Index score) {
  if (static_cast<Index>(tokens.size()) < context + score + 1)
    throw std::runtime_error("it has " + std::to_string(tokens.size()) + " tokens; --context " +
                             std::to_string(context) + " and --score " + std::to_string(score) +
                             " need " + std::to_string(context + score + 1));
  const auto at = tokens.begin() + context;
  return {{at, at + score}, {at + 1, at + score + 1}};
}

// Five spans of the context, from 6 to 80 % of it, each to be repeated behind it. The first tokens
// of a span are the cue; what the model says after them is compared.
inline std::vector<Continuation> copy_spans(std::span<const std::int32_t> tokens, Index context) {
  constexpr Index spans = 5, length = 48, cue = 16;
  constexpr double first = 0.06, last = 0.80;
  if (context < 2 * length)
    throw std::runtime_error("--context must be at least " + std::to_string(2 * length));
  std::vector<Continuation> out;
  for (Index i = 0; i < spans; ++i) {
    const double share = first + (last - first) * static_cast<double>(i) / (spans - 1);
    const Index start = std::min(std::lround(share * static_cast<double>(context)),
                                 static_cast<long>(context - length));
    const auto at = tokens.begin() + start;
    out.push_back({{at, at + length - 1}, {at + cue, at + length}});
  }
  return out;
}

// Logits [next.size()][vocabulary] of a continuation. `cache` is a fork that may be written to; it
// is not compressed again: the tokens fed stay exact.
template <class Cache>
std::span<const float> answer(engine::Run& run, Cache cache, const Continuation& task,
                              Index position) {
  engine::ForwardOptions options;
  options.logits = static_cast<Index>(task.next.size());
  return run.forward(cache, task.fed, position, options);
}

// All tasks of one document, with the exact answers.
struct DocumentTasks {
  Continuation running;
  std::vector<Continuation> copies;
  std::vector<float> running_exact;
  std::vector<std::vector<float>> copies_exact;

  DocumentTasks(engine::Run& run, const lesskv::KVCache<>& exact,
                std::span<const std::int32_t> tokens, Index context, Index score)
      : running(running_text(tokens, context, score)), copies(copy_spans(tokens, context)) {
    running_exact = keep(answer(run, exact.fork(), running, context));
    for (const Continuation& copy : copies)
      copies_exact.push_back(keep(answer(run, exact.fork(), copy, context)));
  }

  template <class Cache>
  TokenScores score_running(engine::Run& run, const Cache& cache, Index context) const {
    TokenScores out;
    out.add(running_exact, answer(run, cache.fork(), running, context), running.next);
    return out;
  }
  template <class Cache>
  TokenScores score_copies(engine::Run& run, const Cache& cache, Index context) const {
    TokenScores out;
    for (std::size_t i = 0; i < copies.size(); ++i)
      out.add(copies_exact[i], answer(run, cache.fork(), copies[i], context), copies[i].next);
    return out;
  }

 private:
  static std::vector<float> keep(std::span<const float> logits) {
    return {logits.begin(), logits.end()};
  }
};

}  // namespace compare
