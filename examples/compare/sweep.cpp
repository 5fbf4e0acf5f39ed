// SPDX-License-Identifier: MIT
#include "sweep.hpp"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <utility>

#include "environment.hpp"
#include "oracle.hpp"
#include "parallel.hpp"
#include "rate_distortion.hpp"
#include "sweep_results.hpp"

namespace compare {
namespace {

using Json = Records::Json;

std::string hash_of(const std::vector<std::int32_t>& tokens) {
  return sha256(std::as_bytes(std::span(tokens)));
}

// Rough tenths of a second, so that the time left is right where units differ.
constexpr long document_cost = 30, keys_cost = 60, exact_pass_cost = 120, probes_cost = 250,
               times_cost = 35;

// Where a curve is looked at first: what a sweep does before the rest of a text.
constexpr double first_compression = 8;

}  // namespace

Sweep::Sweep(const SweepOptions& options)
    : options_(options),
      model_(engine::Model::open(options.model)),
      tokenizer_(model_.file()),
      model_name_(std::filesystem::path(options.model).filename().string()),
      records_(options.records),
      progress_(options.progress) {
  if (options_.model_sha256.empty()) {
    std::ifstream file(options_.model, std::ios::binary);
    options_.model_sha256 = sha256(file);
  }
  for (int t = 0; t < options_.threads; ++t) runs_.emplace_back(model_);
  read_policies();
  read_texts();
}

void Sweep::read_policies() {
  lines_.push_back({"Exact", "exact", "exact"});
  for (const std::string& text : options_.policies) {
    if (text == "sweep" || text == "more")
      for (SweepPolicy& line : text == "sweep" ? sweep_policies() : more_policies())
        lines_.push_back(std::move(line));
    else
      lines_.push_back({text, "", text});
  }
  for (SweepPolicy& line : lines_) {
    try {
      read_policy(line);
    } catch (const lesskv::Error& error) {
      throw std::runtime_error("--policy '" + line.spec + "': " + error.what());
    }
  }
}

void Sweep::read_policy(SweepPolicy& line) {
  Variant variant{&line, {}};
  std::string spec = line.spec;
  if (spec.starts_with(oracle)) {
    variant.oracle = true;
    spec.erase(0, oracle.size());
  } else if (spec.starts_with(rate_distortion)) {
    char end = 0;
    if (std::sscanf(spec.c_str() + rate_distortion.size(), "%lf%c", &variant.bits, &end) != 2 ||
        end != ')' || !(variant.bits > 0 && variant.bits <= 16))
      lesskv::fail("rate_distortion::bits must be a number from 0 to 16");
    spec = "exact";
  }
  Policy policy(spec, options_.dictionary);
  policy.above = line.above;
  policy.up_to = line.up_to;
  policy.check(engine::cache_shape(model_));
  if (policy.is_exact() && !variant.bound() && !policies_.empty()) return;
  if (line.family.empty())
    line.family = variant.bound()      ? "bound"
                  : !policy.spec.codec ? "rows"
                  : policy.spec.scorer ? "composition"
                                       : "codec";
  variant.what.policy = &policies_.emplace_back(std::move(policy));
  if (variant.what.policy->has_amount()) {
    variants_.push_back(variant);
    return;
  }
  for (const double target : options_.compressions) {
    variant.what.target = target;
    if (variant.what.policy->runs_at(target)) variants_.push_back(variant);
  }
}

// Documents and texts with keys in turn, so that a sweep that is stopped has some of both.
void Sweep::read_texts() {
  for (const std::string& file : options_.texts) add_document(file);
  const std::deque<Text> documents = std::exchange(texts_, {});
  const int count = options_.pass_key_contexts, of = static_cast<int>(documents.size());
  for (int i = 0; i < std::max(count, of); ++i) {
    const Text& document = documents[static_cast<std::size_t>(i % of)];
    if (i < of) texts_.push_back(document);
    if (i < count)
      add_key_text(document, "keys", options_.pass_key_digits, options_.pass_keys, i, count);
  }
}

void Sweep::add_document(const std::string& file) {
  Document document = read_document(file, tokenizer_);
  try {
    running_text(document.tokens, options_.context, options_.score);
    copy_spans(document.tokens, options_.context);
  } catch (const std::exception& error) {
    throw std::runtime_error(file + ": " + error.what());
  }
  Text text;
  text.name = document.name;
  text.sha256 = hash_of(document.tokens);
  text.tokens = std::move(document.tokens);
  text.unit = "document";
  texts_.push_back(std::move(text));
}

void Sweep::add_key_text(const Text& document, const std::string& unit, int digits, int count,
                         int i, int of) {
  Text text;
  text.name = document.name;
  text.keys = make_pass_keys(
      tokenizer_, pass_key_prose(document.tokens, options_.context, options_.score, i, of),
      mix(options_.seed) + static_cast<std::uint64_t>(i), static_cast<std::size_t>(digits),
      static_cast<std::size_t>(count));
  text.sha256 = hash_of(text.keys.tokens);
  text.unit = unit;
  texts_.push_back(std::move(text));
}

// Five keys in one text, of the longest kind that the exact cache repeats.
void Sweep::add_long_keys() {
  constexpr int count = 5, enough = 4;
  Records::Key key = key_of("long_keys_length", texts_[0], nullptr);
  key.settings["lengths"] = options_.long_keys;
  key.settings["seed"] = options_.seed;
  if (missing(key)) {
    progress_.start("longest pass key", static_cast<long>(options_.long_keys.size()));
    std::vector<int> found(options_.long_keys.size());
    run_parallel(options_.threads, found.size(), [&](std::size_t i, int thread) {
      PassKeyContext context = make_pass_keys(
          tokenizer_, pass_key_prose(texts_[0].tokens, options_.context, options_.score, 0, 1),
          mix(options_.seed), static_cast<std::size_t>(options_.long_keys[i]), count);
      exact_pass(runs_[static_cast<std::size_t>(thread)], tokenizer_, context);
      for (const PassKey& one : context.keys) found[i] += one.found_by_exact;
      progress_.step();
    });
    int longest = 0;
    for (std::size_t i = 0; i < found.size(); ++i)
      if (found[i] >= enough) longest = std::max(longest, options_.long_keys[i]);
    records_.add(key, {{"digits", longest}, {"found", found}, {"of", count}});
    ++units_;
  }
  if (const int digits = records_.find(key)->at("digits").get<int>(); digits > 0)
    add_key_text(texts_[0], "long_keys", digits, count, 0, 1);
}

Records::Key Sweep::key_of(const std::string& unit, const Text& text,
                           const Variant* variant) const {
  Records::Key out;
  out.unit = unit;
  out.model = options_.model_sha256;
  out.text = text.sha256;
  if (variant) {
    out.policy = variant->line->spec;
    out.target = variant->what.target;
  }
  out.settings["version"] = version();
  out.settings["context"] = options_.context;
  if (unit == "document" || unit == "text") out.settings["score"] = options_.score;
  if (unit == "layers") out.settings["similarity"] = options_.similarity;
  if (text.has_keys()) {
    out.settings["digits"] = text.keys.keys.front().digits.size();
    out.settings["keys"] = text.keys.keys.size();
    out.settings["seed"] = options_.seed;
  }
  return out;
}

std::vector<Sweep::Job> Sweep::missing_jobs(Text& text) {
  std::vector<Job> out;
  for (const Variant& variant : variants_) {
    if (variant.bound() && text.has_keys()) continue;
    if (Job job{&text, &variant, key_of(text.unit, text, &variant)}; missing(job.key))
      out.push_back(std::move(job));
  }
  // Every policy at one compression before any is at the next.
  const auto distance = [](const Job& job) {
    const double target = job.variant->what.target;
    return target > 0 ? std::abs(std::log2(target / first_compression)) : 0;
  };
  std::stable_sort(out.begin(), out.end(),
                   [&](const Job& a, const Job& b) { return distance(a) < distance(b); });
  return out;
}

bool Sweep::needs_probes(Text& text) {
  const std::vector<Job> jobs = missing_jobs(text);
  const auto asks = [](const Variant* variant) { return variant->what.policy->needs_probes(); };
  if (std::any_of(jobs.begin(), jobs.end(), [&](const Job& job) { return asks(job.variant); }))
    return true;
  if (&text != &texts_[0]) return false;
  const std::vector<const Variant*> times = missing_times();
  return std::any_of(times.begin(), times.end(), asks);
}

std::vector<const Sweep::Variant*> Sweep::missing_times() const {
  std::vector<const Variant*> out;
  if (!options_.times) return out;
  for (const Variant& variant : variants_)
    if (!variant.bound() && missing(key_of("times", texts_[0], &variant))) out.push_back(&variant);
  return out;
}

// 0: nothing to do.
long Sweep::cost_of(Text& text) {
  const long each = text.has_keys() ? keys_cost : document_cost;
  long out = each * static_cast<long>(missing_jobs(text).size());
  if (&text == &texts_[0])
    out += times_cost * options_.threads * static_cast<long>(missing_times().size());
  if (out > 0 || missing(key_of("text", text, nullptr)) ||
      (!text.has_keys() && missing(key_of("layers", text, nullptr))))
    out += exact_pass_cost;
  if (out > 0 && needs_probes(text)) out += probes_cost;
  return out;
}

long Sweep::run() {
  if (!options_.long_keys.empty()) add_long_keys();
  std::vector<Text*> texts;
  long cost = 0;
  for (Text& text : texts_)
    if (const long one = cost_of(text); one > 0) {
      texts.push_back(&text);
      cost += one;
    }
  progress_.start("sweep", std::max(cost, 1L));
  // As many texts at a time as there are threads; four are enough to keep many busy.
  const std::size_t batch = std::min<std::size_t>(4, runs_.size());
  for (std::size_t first = 0; first < texts.size(); first += batch) {
    const std::size_t count = std::min(batch, texts.size() - first);
    run_parallel(options_.threads, count, [&](std::size_t i, int thread) {
      prepare(*texts[first + i], runs_[static_cast<std::size_t>(thread)]);
    });
    std::vector<Job> jobs;
    for (std::size_t i = first; i < first + count; ++i)
      for (Job& job : missing_jobs(*texts[i])) jobs.push_back(std::move(job));
    run_parallel(options_.threads, jobs.size(), [&](std::size_t i, int thread) {
      run_job(jobs[i], runs_[static_cast<std::size_t>(thread)]);
    });
    for (std::size_t i = first; i < first + count; ++i) {
      if (texts[i] == &texts_[0]) record_times();
      texts[i]->tasks.clear();
      texts[i]->pass.clear();
    }
  }
  if (cost == 0) progress_.step();
  return units_;
}

// The exact pass of a text, its exact answers, and what is recorded of them.
void Sweep::prepare(Text& text, engine::Run& run) {
  Json about = {{"document", text.name}, {"model_name", model_name_}, {"cpu", cpu_name()}};
  const bool probes = needs_probes(text);
  if (text.has_keys()) {
    text.pass.push_back(exact_pass(run, tokenizer_, text.keys, probes));
    long found = 0;
    for (const PassKey& key : text.keys.keys) found += key.found_by_exact;
    about["keys_found"] = found;
    about["tokens"] = text.keys.tokens.size();
  } else {
    const std::span<const std::int32_t> tokens(text.tokens);
    const auto context = tokens.first(static_cast<std::size_t>(options_.context));
    text.pass.push_back(exact_pass(run, context));
    if (probes) keep_probes(run, text.pass[0], engine::replay_chunks(tokenizer_, context));
    text.tasks.emplace_back(run, text.pass[0].exact, tokens, options_.context, options_.score);
    about["tokens"] = options_.context;
  }
  about["prefill_ms"] = text.pass[0].milliseconds;
  if (probes) about["replay_ms"] = text.pass[0].probe_milliseconds;
  about["bytes_exact"] = text.pass[0].exact.bytes();
  about["layers"] = model_.config().layers;
  about["kv_heads"] = model_.config().kv_heads;
  add(key_of("text", text, nullptr), about);
  if (!text.has_keys())
    if (const Records::Key key = key_of("layers", text, nullptr); missing(key))
      add(key, layers_json(text.pass[0], options_.similarity));
  progress_.step(exact_pass_cost + (probes ? probes_cost : 0));
}

void Sweep::add(const Records::Key& key, const Json& result) {
  if (!missing(key)) return;
  records_.add(key, result);
  ++units_;
}

void Sweep::run_job(const Job& job, engine::Run& run) {
  const Text& text = *job.text;
  Json result = {{"document", text.name},
                 {"label", job.variant->line->label},
                 {"family", job.variant->line->family}};
  const Clock clock;
  try {
    if (!text.has_keys()) {
      result.update(document_result(job, run));
    } else if (const Solved solved = solve(job.variant->what, text.pass[0]); solved.fits) {
      result.update(json_of(
          evaluate_keys(run, tokenizer_, solved, text.pass[0], text.keys, Questions::unseen)));
    } else {
      result["note"] = solved.why();
    }
  } catch (const lesskv::Error& error) {
    result["note"] = error.what();
  }
  result["seconds"] = clock.milliseconds() / 1000;  // of the whole unit
  add(job.key, result);
  progress_.step(text.has_keys() ? keys_cost : document_cost);
}

Json Sweep::document_result(const Job& job, engine::Run& run) const {
  const Text& text = *job.text;
  const Pass& pass = text.pass[0];
  const DocumentTasks& tasks = text.tasks[0];
  const Variant& variant = *job.variant;
  if (variant.bits > 0)
    return json_of(evaluate_rate_distortion(run, variant.bits, pass, tasks, text.name), {});
  Kept kept;
  const auto look = [&](const lesskv::AnyCache& cache) {
    kept = kept_rows(cache, options_.context);
  };
  Solved solved(*variant.what.policy, pass);
  DocumentResult found;
  if (variant.oracle) {
    found = evaluate_oracle(run, variant.what, pass, tasks, text.name, look, solved);
  } else {
    solved = solve(variant.what, pass);
    if (solved.fits) found = evaluate_document(run, solved, pass, tasks, text.name, look);
  }
  if (!solved.fits) return {{"note", solved.why()}};
  return json_of(found, kept);
}

// Alone on the machine, one after another, each with the fraction that was solved for the document.
void Sweep::record_times() {
  const Text& text = texts_[0];
  for (const Variant* variant : missing_times()) {
    const Json& found = *records_.find(key_of("document", text, variant));
    Json result = {{"label", variant->line->label}, {"family", variant->line->family}};
    if (found.contains("note")) {
      result["note"] = found["note"];
    } else {
      Solved solved(*variant->what.policy, text.pass[0]);
      solved.set(found["fraction"], variant->what, text.pass[0]);
      const Times times = measure_times(runs_[0], solved, text.pass[0], text.tokens);
      result["compress_ms"] = times.compress_ms;
      result["tokens_per_s"] = times.decode_tokens_per_s;
    }
    add(key_of("times", text, variant), result);
    progress_.step(times_cost * options_.threads);
  }
}

}  // namespace compare
