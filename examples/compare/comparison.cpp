// SPDX-License-Identifier: MIT
#include "comparison.hpp"

#include <mutex>

#include "environment.hpp"
#include "evaluate.hpp"
#include "layers.hpp"
#include "parallel.hpp"

namespace compare {

Comparison::Comparison(const Options& options)
    : options_(options),
      model_(engine::Model::open(options.model)),
      tokenizer_(model_.file()),
      progress_(options.progress) {
  for (int t = 0; t < options_.threads; ++t) runs_.emplace_back(model_);
  for (const double target : options_.compressions)
    if (!(target >= 1 && target <= 1000))
      throw std::runtime_error("--compression must lie between 1 and 1000");
  policies_.emplace_back("exact");
  std::vector<DefaultPolicy> wanted;
  for (const std::string& text : options_.policies) {
    if (text != "compositions") {
      wanted.push_back({text});
      continue;
    }
    for (DefaultPolicy& one : compositions()) wanted.push_back(std::move(one));
  }
  if (wanted.empty()) {
    wanted = default_policies(options_.seed);
    if (!options_.dictionary.empty())
      for (const std::string& spec : dictionary_policies()) wanted.push_back({spec});
  }
  for (const auto& [text, above, up_to] : wanted) {
    try {
      Policy policy(text, options_.dictionary);
      policy.above = above;
      policy.up_to = up_to;
      policy.check(engine::cache_shape(model_));
      if (!policy.is_exact()) policies_.push_back(std::move(policy));
    } catch (const lesskv::Error& error) {
      throw std::runtime_error("--policy '" + text + "': " + error.what());
    }
  }
  for (const Policy& policy : policies_) {
    if (policy.has_amount()) {
      variants_.push_back({&policy, 0});
    } else {
      for (const double target : options_.compressions)
        if (policy.runs_at(target)) variants_.push_back({&policy, target});
    }
  }
  for (const std::string& file : options_.texts) {
    Text text{read_document(file, tokenizer_), {}, {}};
    if (text.document.dropped_bytes > 0)
      std::fprintf(stderr, "%s: %zu bytes have no token in this vocabulary and are left out\n",
                   file.c_str(), text.document.dropped_bytes);
    try {
      running_text(text.document.tokens, options_.context, options_.score);
      copy_spans(text.document.tokens, options_.context);
    } catch (const std::exception& error) {
      throw std::runtime_error(file + ": " + error.what());
    }
    texts_.push_back(std::move(text));
  }
  make_key_texts();
}

void Comparison::make_key_texts() {
  const int count = options_.pass_key_contexts;
  for (int i = 0; i < count; ++i) {
    const auto& tokens = texts_[static_cast<std::size_t>(i) % texts_.size()].document.tokens;
    KeyText text;
    text.context = make_pass_keys(
        tokenizer_, pass_key_prose(tokens, options_.context, options_.score, i, count),
        mix(options_.seed) + static_cast<std::uint64_t>(i),
        static_cast<std::size_t>(options_.pass_key_digits));
    key_texts_.push_back(std::move(text));
  }
}

Report Comparison::run() {
  report_.version = version();
  report_.keys_are_digits = options_.pass_key_digits >= static_cast<int>(long_pass_key);
  report_.cpu = cpu_name();
  report_.model = std::filesystem::path(options_.model).filename().string();
  report_.model_sha256 = options_.model_sha256;
  for (const Text& text : texts_) report_.documents.push_back(text.document.name);
  report_.context = options_.context;
  report_.score = options_.score;
  report_.seed = options_.seed;
  run_exact_passes();
  if (options_.similarity > 0) analyse_layers();
  for (const Variant& variant : variants_) {
    Row row;
    row.policy = variant.policy->text;
    row.kind = variant.policy->kind();
    row.target = variant.target > 0 ? variant.target
                                    : variant.policy->nominal_target(
                                          options_.context, texts_[0].pass[0].exact.bytes());
    report_.rows.push_back(std::move(row));
  }
  score_documents();
  score_keys();
  measure();
  report_.sort();
  return report_;
}

void Comparison::run_exact_passes() {
  progress_.start("exact passes", static_cast<long>(texts_.size() + key_texts_.size()));
  const bool probes = std::any_of(policies_.begin(), policies_.end(),
                                  [](const Policy& policy) { return policy.needs_probes(); });
  const auto run_text = [&](Text& text, engine::Run& run) {
    const std::span<const std::int32_t> tokens(text.document.tokens);
    const auto context = tokens.first(static_cast<std::size_t>(options_.context));
    text.pass.push_back(exact_pass(run, context));
    if (probes) keep_probes(run, text.pass[0], engine::replay_chunks(tokenizer_, context));
    progress_.step();
  };
  // The first one alone, on one thread: its time is a figure of the report.
  run_text(texts_[0], runs_[0]);
  report_.prefill_ms = texts_[0].pass[0].milliseconds;
  run_parallel(options_.threads, texts_.size() - 1 + key_texts_.size(),
               [&](std::size_t i, int thread) {
                 engine::Run& run = runs_[static_cast<std::size_t>(thread)];
                 if (i + 1 < texts_.size()) return run_text(texts_[i + 1], run);
                 KeyText& text = key_texts_[i + 1 - texts_.size()];
                 text.pass.push_back(exact_pass(run, tokenizer_, text.context, probes));
                 progress_.step();
               });
  progress_.start("exact answers", static_cast<long>(texts_.size()));
  run_parallel(options_.threads, texts_.size(), [&](std::size_t i, int thread) {
    Text& text = texts_[i];
    text.tasks.emplace_back(runs_[static_cast<std::size_t>(thread)], text.pass[0].exact,
                            text.document.tokens, options_.context, options_.score);
    progress_.step();
  });
}

void Comparison::analyse_layers() {
  std::vector<LayerNeeds> needs(texts_.size());
  progress_.start("layers", static_cast<long>(texts_.size()));
  run_parallel(options_.threads, texts_.size(), [&](std::size_t i, int) {
    needs[i] = layer_needs(texts_[i].pass[0], options_.similarity);
    progress_.step();
  });
  std::vector<std::vector<double>> samples;
  report_.layers.similarity = options_.similarity;
  report_.layers.lmbo.assign(needs[0].lmbo.size(), 0);
  for (LayerNeeds& one : needs) {
    samples.push_back(std::move(one.lmba));
    for (std::size_t layer = 0; layer < one.lmbo.size(); ++layer)
      report_.layers.lmbo[layer] += one.lmbo[layer] / static_cast<double>(needs.size());
  }
  report_.layers.lmba = lesskv::mean_lmba(samples);
}

void Comparison::score_documents() {
  struct Job {
    const Text* text;
    std::size_t variant;
  };
  std::vector<Job> jobs;
  for (const Text& text : texts_)
    for (std::size_t v = 0; v < variants_.size(); ++v) jobs.push_back({&text, v});
  std::vector<DocumentResult> results(jobs.size());
  std::vector<std::string> notes(jobs.size());
  progress_.start("documents", static_cast<long>(jobs.size()));
  run_parallel(options_.threads, jobs.size(), [&](std::size_t i, int thread) {
    const auto& [text, v] = jobs[i];
    try {
      const Solved solved = solve(variants_[v], text->pass[0]);
      if (solved.fits)
        results[i] = evaluate_document(runs_[static_cast<std::size_t>(thread)], solved,
                                       text->pass[0], text->tasks[0], text->document.name);
      else
        notes[i] = solved.why();
    } catch (const lesskv::Error& error) {
      notes[i] = error.what();
    }
    progress_.step();
  });
  // A row is complete or empty: averages over different documents would not compare.
  for (std::size_t i = 0; i < jobs.size(); ++i) {
    Row& row = report_.rows[jobs[i].variant];
    if (row.note.empty()) row.note = notes[i];
    row.documents.push_back(std::move(results[i]));
  }
  for (Row& row : report_.rows)
    if (!row.note.empty()) row.documents.clear();
}

void Comparison::score_keys() {
  std::mutex mutex;
  const std::size_t count = key_texts_.size() * variants_.size();
  progress_.start("pass keys", static_cast<long>(count));
  run_parallel(options_.threads, count, [&](std::size_t i, int thread) {
    const KeyText& text = key_texts_[i / variants_.size()];
    const std::size_t v = i % variants_.size();
    if (report_.rows[v].measured()) {
      const Solved solved = solve(variants_[v], text.pass[0]);
      if (solved.fits) {
        const KeysFound found = evaluate_keys(runs_[static_cast<std::size_t>(thread)], tokenizer_,
                                              solved, text.pass[0], text.context);
        const std::lock_guard lock(mutex);
        Row& row = report_.rows[v];
        row.keys_agnostic += found.agnostic;
        row.keys_aware += found.aware;
        row.keys += found.of;
      }
    }
    progress_.step();
  });
}

void Comparison::measure() {
  if (!options_.times) return;
  progress_.start("times", static_cast<long>(variants_.size()));
  for (std::size_t v = 0; v < variants_.size(); ++v) {
    Row& row = report_.rows[v];
    if (row.measured()) {
      // As it was solved for the first document.
      Solved solved(*variants_[v].policy, texts_[0].pass[0]);
      solved.set(row.documents[0].fraction, variants_[v], texts_[0].pass[0]);
      const Times times =
          measure_times(runs_[0], solved, texts_[0].pass[0], texts_[0].document.tokens);
      row.compress_ms = times.compress_ms;
      row.decode_tokens_per_s = times.decode_tokens_per_s;
    }
    progress_.step();
  }
}

}  // namespace compare
