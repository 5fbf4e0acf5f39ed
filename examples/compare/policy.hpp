// SPDX-License-Identifier: MIT
// The policies that are compared: a spec as the user wrote it, and the amounts at which it runs.
#pragma once

#include <algorithm>
#include <cstdio>
#include <lesskv/any.hpp>
#include <limits>
#include <string>
#include <string_view>
#include <vector>

#include "fit.hpp"
#include "pass.hpp"

namespace compare {

struct Policy {
  std::string text;
  bool deletes_heads = false;  // "delete_heads+SPEC": see deleted_heads.hpp
  lesskv::PolicySpec spec;
  double above = 0, up_to = std::numeric_limits<double>::infinity();  // compressions it runs at

  // "dictionary=default" stands for `dictionary`. Throws lesskv::Error naming the place in the text.
  explicit Policy(std::string written, const std::string& dictionary = {})
      : text(std::move(written)),
        deletes_heads(text.starts_with(deletion)),
        spec(lesskv::parse_spec(
            with_dictionary(text.substr(deletes_heads ? deletion.size() : 0), dictionary))) {}

  static constexpr std::string_view deletion = "delete_heads+";

  static std::string with_dictionary(std::string text, const std::string& dictionary) {
    const std::string_view name = "dictionary=", word = "default";
    for (std::size_t at = 0; (at = text.find(name, at)) != std::string::npos;) {
      at += name.size();
      const std::size_t end = text.find_first_of(",)", at);
      if (text.substr(at, end == std::string::npos ? end : end - at) != word) continue;
      if (dictionary.empty())
        lesskv::fail("CSR::dictionary: there is no default; give --dictionary FILE");
      text.replace(at, word.size(), dictionary);
    }
    return text;
  }

  // Fails for what no cache of this shape takes, whatever is cached: a wrong parameter, a fraction
  // beyond 1. A limit that is merely too small gives a row that says so.
  void check(const lesskv::Shape& shape) const {
    lesskv::PolicySpec large = spec;
    if (solves_fraction()) large.keep.fraction = 0.5;
    if (large.keep.tokens > 0) large.keep.tokens = lesskv::Index{1} << 30;
    if (large.keep.bytes > 0) large.keep.bytes = std::size_t{1} << 60;
    lesskv::make_cache(large, shape);
  }

  // All rows, as the reference stores them.
  bool is_exact() const {
    return spec.exact && spec.methods.empty() && spec.dtype.value_or(DType::f16) == DType::f16;
  }
  bool runs_at(double compression) const { return compression > above && compression <= up_to; }
  // It names its amount, so it runs once.
  bool has_amount() const { return spec.has_amount(); }
  // What is solved for: the fraction, unless the spec has one or needs none.
  bool solves_fraction() const {
    return !spec.exact && spec.keep.fraction == 0 && spec.keep.compression == 0 &&
           (spec.judges_once() || !has_amount());
  }
  // The text has to be replayed.
  bool needs_probes() const {
    const auto asks = [](lesskv::Need needs) { return lesskv::asks(needs, lesskv::Need::probes); };
    return (spec.scorer && asks(spec.scorer->observe_needs())) ||
           std::any_of(spec.budgeters.begin(), spec.budgeters.end(),
                       [&](const auto& one) { return asks(one.traits().observe_needs); });
  }
  // Rows stay by KVzip alone, whose scores are worked out once for each text (Pass::probe_scores).
  bool by_kvzip() const {
    const std::string parts = "+" + spec.methods + "+";
    return parts.find("+kvzip+") != std::string::npos;
  }
  const char* kind() const {
    if (is_exact()) return "exact";
    return spec.methods_named + int{spec.dtype.has_value()} < 2 ? "single" : "composition";
  }
  // The compression that a given amount names; pins and bookkeeping come on top.
  double nominal_target(Index context, std::size_t bytes_exact) const {
    const auto ratio = [](auto whole, auto part) {
      return static_cast<double>(whole) / static_cast<double>(part);
    };
    if (spec.exact && spec.codec) return 0;  // what comes of it
    if (spec.exact)
      return 2.0 / static_cast<double>(lesskv::size_of(spec.dtype.value_or(DType::f16)));
    if (spec.keep.tokens > 0) return ratio(context, spec.keep.tokens);
    if (spec.keep.bytes > 0) return ratio(bytes_exact, spec.keep.bytes);
    if (spec.keep.compression > 0) return spec.keep.compression;
    return spec.keep.fraction > 0 ? 1 / spec.keep.fraction : 0;
  }
};

// One sequence of figures in the table: a policy at a compression. target 0: at the amount that the
// spec names.
struct Variant {
  const Policy* policy = nullptr;
  double target = 0;
};

// How many rows stay does not depend on which: with this scorer a cache is as large as with the one
// it stands for, at none of its cost. What that one gathers from queries counts, so it is shown them.
struct StandIn {
  lesskv::AnyScorer like;

  using State = lesskv::AnyScorer::State;
  static constexpr lesskv::Need needs = lesskv::Need::nothing;
  lesskv::Need observe_needs() const {
    return observes() ? lesskv::Need::queries | lesskv::Need::rope : lesskv::Need::nothing;
  }
  bool observes() const {
    return like.observes() && lesskv::asks(like.observe_needs(), lesskv::Need::queries);
  }
  State make_state() const { return like.make_state(); }
  void observe(const lesskv::Head& head, State& state) const { like.observe(head, state); }
  lesskv::detail::Reach reach() const { return like.reach(); }
  Index window_size() const { return like.window_size(); }
  int columns() const { return like.columns(); }
  lesskv::Shared shared() const { return like.shared(); }
  bool skips(int layer) const { return like.skips(layer); }
  void score(const lesskv::Head& head, std::span<float> out) const {
    for (Index r = head.first; r < head.last; ++r)
      out[static_cast<std::size_t>(r)] = static_cast<float>(r);
  }
};

// The spec with the amount that brings the cache of a pass to the target, or as close as it gets,
// without exceeding it: Keep::compression, or where that is not exact a fraction, within 0.2 %.
struct Solved {
  lesskv::PolicySpec spec;
  bool deletes_heads = false;
  bool replayed = false;  // it takes a replay of the text
  double fraction = 0;    // 0: nothing was solved for
  bool fits = true;
  double reached = 0;  // compression, if it does not fit

  Solved(const Policy& policy, const Pass& pass)
      : spec(policy.spec), deletes_heads(policy.deletes_heads), replayed(policy.needs_probes()) {
    if (policy.by_kvzip() && pass.probe_scores)
      spec.scorer.emplace(RowScores{pass.probe_scores, lesskv::KVzip::columns});
  }
  void set(double found) {
    spec.keep.fraction = fraction = found;
    spec.keep.tokens = 0;
    spec.keep.bytes = 0;
  }
  // Where the library itself turns bytes into rows: `target` counts what the exact cache holds beside
  // its numbers, Keep::compression does not.
  bool meets_bytes() const {
    return spec.scorer && !spec.judges_once() && spec.keep.tokens == 0 && spec.keep.bytes == 0;
  }
  void meet(double target, const Pass& pass) {
    const lesskv::Shape& shape = pass.exact.shape();
    const double numbers = static_cast<double>(pass.tensors.tokens() * shape.heads()) *
                           static_cast<double>(shape.head_dim + shape.value_width());
    spec.keep.compression =
        std::max(1.0, 2 * numbers * target / static_cast<double>(pass.exact.bytes()));
  }
  // The amount of a document that was solved before.
  void set(double found, const Variant& variant, const Pass& pass) {
    if (found > 0)
      set(found);
    else if (variant.policy->solves_fraction())
      meet(variant.target, pass);
  }
  std::string why() const {
    char text[64];
    std::snprintf(text, sizeof text, "cannot get there: %.2fx at most", reached);
    return text;
  }
};

inline Solved solve(const Variant& variant, const Pass& pass) {
  Solved out(*variant.policy, pass);
  if (!variant.policy->solves_fraction()) return out;
  const lesskv::Shape& shape = pass.exact.shape();
  const std::size_t bytes_exact = pass.exact.bytes();
  lesskv::PolicySpec trial = out.spec;
  // Under a limit in rows or bytes a policy that judges once would let its oldest rows go; the
  // fraction alone is to meet the limit.
  trial.keep.tokens = 0;
  trial.keep.bytes = 0;
  // How many rows a head gets depends on the scores only if a budget reads them.
  const bool reads_scores =
      std::any_of(trial.budgeters.begin(), trial.budgeters.end(), [](const auto& budgeter) {
        return lesskv::asks(budgeter.traits().measure_again_needs, lesskv::Need::scores);
      });
  std::size_t smallest = bytes_exact;
  const auto sizes_of = [&](lesskv::PolicySpec trying) {
    return [&, trying](double fraction) mutable {
      trying.keep.fraction = fraction;
      lesskv::AnyCache cache = lesskv::make_cache(trying, shape);
      replay(pass, cache);
      cache.compress();
      smallest = std::min(smallest, cache.bytes());
      return out.spec.keep.tokens > 0 ? static_cast<std::size_t>(cache.stats().held)
                                      : cache.bytes();
    };
  };
  lesskv::PolicySpec cheap = trial;
  cheap.scorer.emplace(StandIn{*out.spec.scorer});
  if (out.meets_bytes()) {
    out.meet(variant.target, pass);
    // Rows that cannot go may be too many: seen without scores, which do not change it.
    cheap.keep = out.spec.keep;
    if (reads_scores) cheap.budgeters.clear();
    lesskv::AnyCache cache = lesskv::make_cache(cheap, shape);
    replay(pass, cache);
    cache.compress();
    out.reached = static_cast<double>(bytes_exact) / static_cast<double>(cache.bytes());
    out.fits = out.reached >= 0.998 * variant.target;
    return out;
  }
  const lesskv::Keep& keep = out.spec.keep;
  const Index context = pass.tensors.tokens();
  std::size_t limit = keep.bytes, all = bytes_exact;
  if (keep.tokens > 0) {
    limit = static_cast<std::size_t>(keep.tokens * shape.heads());
    all = static_cast<std::size_t>(context * shape.heads());
  } else if (keep.bytes == 0) {
    limit = static_cast<std::size_t>(static_cast<double>(bytes_exact) / variant.target);
  }
  const Index chunk = out.spec.scorer->reach().chunk;
  const long steps = chunk > 0 ? chunk : context;
  Fit fit;
  if (reads_scores) {
    // The total is the same however it is divided; what blocks are filled to is not quite.
    cheap.budgeters.clear();
    const double near = fit_fraction(sizes_of(cheap), limit, all, steps, 0.002).fraction;
    fit = fit_fraction(sizes_of(trial), limit, all, steps, 0.002, near);
  } else {
    fit = fit_fraction(sizes_of(cheap), limit, all, steps, 0.002);
  }
  out.set(fit.fraction);
  out.fits = fit.fits;
  out.reached = static_cast<double>(bytes_exact) / static_cast<double>(smallest);
  return out;
}

// A policy that runs when no --policy is given, and the compressions that it is meant for.
struct DefaultPolicy {
  std::string text;
  double above = 0, up_to = std::numeric_limits<double>::infinity();
};

// Compositions, with fewer bits where fewer bytes are left, each with one part more than the one
// before: the budgets, then means of what leaves.
inline std::vector<DefaultPolicy> compositions() {
  const std::string small_pins = "keep(sinks=4,recent=16,coded_recent=true)+",
                    rows = "h2o(age_normalised=true)", few = "lm(bits=4,value_bits=3)",
                    some = "lm(bits=5,value_bits=4)", many = "lm(bits=6,value_bits=5)";
  const double inf = std::numeric_limits<double>::infinity();
  std::vector<DefaultPolicy> out = {{small_pins + rows + "+" + some, 6, 12}};
  const std::string budget_of_heads = "+entropy+globalcut(by=keydiff,alpha=0.5)+";
  for (const std::string& budget : {budget_of_heads, budget_of_heads + "centroids(share=0.05)+"}) {
    out.push_back({small_pins + rows + budget + many, 0, 6});
    out.push_back({small_pins + rows + budget + some, 6, 12});
    out.push_back({small_pins + rows + budget + few, 12, inf});
  }
  return out;
}

// Single methods as published, with f16 rows; codecs alone (int4 in groups of 32 is q4_0), and ours;
// budgets with the scorers that they were published with; and compositions.
inline std::vector<DefaultPolicy> default_policies(std::uint64_t seed) {
  std::vector<DefaultPolicy> out = {{"random(seed=" + std::to_string(seed) + ")"},
                                    {"streamingllm"},
                                    {"keydiff"},
                                    {"snapkv"},
                                    {"tova"},
                                    {"h2o"},
                                    {"keep(sinks=16)+lagkv(lag=128)"},
                                    {"int(bits=8)"},
                                    {"int(bits=4,group=32)"},
                                    {"kivi(bits=4)"},
                                    {"lm(bits=4)"},
                                    {"snapkv(window=32)+zigzag"},
                                    {"snapkv(window=8,pool=7,max_pool=true)+uncomp"}};
  for (DefaultPolicy& one : compositions()) out.push_back(std::move(one));
  return out;
}

// Beside the scalar codecs of the same bits, where a dictionary is at hand: 1, 2 and 4 bits a number
// at 64 channels; the paper's own form at 4 (16-bit coefficients, 2 chunks aside); coded keys with
// scalar values.
inline std::vector<std::string> dictionary_policies() {
  return {"csr(atoms=3,dictionary=default)", "csr(atoms=7,dictionary=default)",
          "csr(atoms=15,dictionary=default)", "csr(atoms=8,format=pairs,dictionary=default)",
          "keys(csr(atoms=7,dictionary=default))+values(lm(bits=2))"};
}

// What --policy list prints.
inline std::string list_policies() {
  std::string out =
      "SPEC = [keep(...)+]NAME[(PARAMETER=VALUE,...)][+NAME...], for example "
      "keep(fraction=0.25)+lagkv(lag=128)\n\n";
  out +=
      "keep      fraction, tokens (rows a head), bytes (with k, M, G) or "
      "compression (bytes of f16 over bytes held); sinks, recent, every, shared=head|layer|model\n";
  out += "store     dtype=f32|f16|bf16\n";
  out += "exact     everything stays\n";
  for (const lesskv::recipes::Recipe& recipe : lesskv::recipes::all)
    out += std::string(recipe.name) + "  stands for " + std::string(recipe.text) + "\n";
  out += "keys, values  a codec for one side: keys(lm(bits=4))+values(lm(bits=3))\n";
  out +=
      "delete_heads  in front of a SPEC: heads left with nothing but pins answer as the head of "
      "their layer most like them\n";
  out += "compositions  instead of a SPEC: the compositions of the default comparison\n";
  for (const lesskv::MethodInfo& method : lesskv::list_methods()) {
    out += "\n" + method.name + " (" + method.role + ")  " + method.summary + "\n";
    std::string pins;
    if (method.published.sinks > 0) pins += " sinks=" + std::to_string(method.published.sinks);
    if (method.published.recent > 0) pins += " recent=" + std::to_string(method.published.recent);
    if (!pins.empty()) out += "    published pins:" + pins + "\n";
    for (const lesskv::ParameterInfo& parameter : method.parameters)
      out += "    " + parameter.name + "=" + parameter.value + "  " + parameter.text + "\n";
  }
  return out;
}

}  // namespace compare
