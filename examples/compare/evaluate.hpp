// SPDX-License-Identifier: MIT
// One policy at one compression: on a document, on a text with pass keys, and against the clock.
#pragma once

#include "deleted_heads.hpp"
#include "passkey.hpp"
#include "policy.hpp"
#include "report.hpp"
#include "tasks.hpp"

namespace compare {

inline Footprint footprint_of(const lesskv::AnyCache& cache, std::size_t bytes_exact) {
  const lesskv::Stats stats = cache.stats();
  Footprint out;
  out.bytes = stats.bytes;
  out.bytes_shared = stats.bytes_shared;
  out.bytes_exact = bytes_exact;
  out.peak_bytes = stats.peak_bytes;
  out.kept_share = static_cast<double>(stats.held) / static_cast<double>(stats.seen);
  return out;
}

// Calls use(cache): the cache itself, or with heads that are deleted.
template <class Use>
void with_deletions(const Solved& solved, lesskv::AnyCache cache, const Use& use) {
  if (!solved.deletes_heads) return use(std::move(cache));
  use(DeletedHeads(std::move(cache), solved.spec));
}

// look(cache): the compressed cache before it is judged.
template <class Look>
DocumentResult evaluate_document(engine::Run& run, const Solved& solved, const Pass& pass,
                                 const DocumentTasks& tasks, const std::string& name,
                                 const Look& look) {
  lesskv::AnyCache cache = lesskv::make_cache(solved.spec, pass.exact.shape());
  replay(pass, cache);
  cache.compress();
  DocumentResult out;
  out.document = name;
  out.fraction = solved.fraction;
  out.footprint = footprint_of(cache, pass.exact.bytes());
  look(std::as_const(cache));
  const Index context = pass.tensors.tokens();
  with_deletions(solved, std::move(cache), [&](const auto& judged) {
    out.running = tasks.score_running(run, judged, context);
    out.copies = tasks.score_copies(run, judged, context);
  });
  return out;
}

inline DocumentResult evaluate_document(engine::Run& run, const Solved& solved, const Pass& pass,
                                        const DocumentTasks& tasks, const std::string& name) {
  return evaluate_document(run, solved, pass, tasks, name, [](const lesskv::AnyCache&) {});
}

struct KeysFound {
  Index agnostic = 0, aware = 0, of = 0;
  std::vector<Index> of_each;  // points of every key, question unseen; -1: exact does not find it
};

enum class Questions { unseen, both };

// agnostic: the context is compressed, then the question is fed. aware: all of the question but its
// last token lies in what is compressed, so that every digit comes out of the compressed cache;
// costs a replay and a compression a key, and is left out where only unseen questions are asked.
inline KeysFound evaluate_keys(engine::Run& run, const engine::Tokenizer& tokenizer,
                               const Solved& solved, const Pass& pass,
                               const PassKeyContext& context,
                               Questions questions = Questions::both) {
  lesskv::AnyCache replayed = lesskv::make_cache(solved.spec, pass.exact.shape());
  replay(pass, replayed);
  lesskv::AnyCache compressed =
      questions == Questions::both ? replayed.fork() : std::move(replayed);
  compressed.compress();
  const auto end = static_cast<Index>(context.tokens.size());
  KeysFound out;
  for (const PassKey& key : context.keys) {
    out.of_each.push_back(-1);
    if (!key.found_by_exact) continue;
    out.of += points(key);
    with_deletions(solved, compressed.fork(), [&](auto cache) {
      out.of_each.back() = points_said(run, tokenizer, std::move(cache), key.question, end, key);
    });
    out.agnostic += out.of_each.back();
    if (questions == Questions::unseen) continue;
    lesskv::AnyCache aware = replayed.fork();
    replay(*key.question_tensors, aware);
    aware.compress();
    with_deletions(solved, std::move(aware), [&](auto cache) {
      out.aware += points_said(run, tokenizer, std::move(cache), {key.question.back()},
                               end + static_cast<Index>(key.question.size()) - 1, key);
    });
  }
  return out;
}

struct Times {
  double compress_ms = 0;  // compress() after the whole context, and looking at queries before it
  double decode_tokens_per_s = 0;
};

// Alone on the machine and on this thread: the context in one piece, then one token a step with
// append, attend and compress in every layer.
inline Times measure_times(engine::Run& run, const Solved& solved, const Pass& pass,
                           std::span<const std::int32_t> tokens) {
  constexpr Index warm_up = 2, steps = 64;
  lesskv::AnyCache cache = lesskv::make_cache(solved.spec, pass.exact.shape());
  Times out;
  out.compress_ms = timed_replay(pass, cache, solved.replayed);
  const Clock compressing;
  cache.compress();
  out.compress_ms += compressing.milliseconds();
  const Index context = pass.tensors.tokens(), behind = static_cast<Index>(tokens.size()) - context;
  with_deletions(solved, std::move(cache), [&](auto decoder) {
    Clock decoding;
    for (Index t = 0; t < warm_up + steps; ++t) {
      if (t == warm_up) decoding = Clock();
      run.forward(decoder, tokens.subspan(static_cast<std::size_t>(context + t % behind), 1),
                  context + t);
      decoder.compress();
    }
    out.decode_tokens_per_s = 1000.0 * steps / decoding.milliseconds();
  });
  return out;
}

}  // namespace compare
