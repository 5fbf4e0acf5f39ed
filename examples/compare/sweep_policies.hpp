// SPDX-License-Identifier: MIT
// What a sweep compares: one line a policy. Lines of one label are one curve of the report.
#pragma once

#include <lesskv/recipes.hpp>
#include <limits>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace compare {

struct SweepPolicy {
  std::string label;   // a few words, for legends
  std::string family;  // rows, budget, codec, composition: rows of 16 bits by a score; a budget
                       // beside it; all rows, coded; both. bound: no method
  std::string spec;
  double above = 0, up_to = std::numeric_limits<double>::infinity();  // compressions it is for
};

inline constexpr double any_compression = std::numeric_limits<double>::infinity();

namespace detail {
// The codec of a composition: fewer bits where fewer bytes are left.
inline void add_composition(std::vector<SweepPolicy>& out, const std::string& label,
                            const std::string& rows) {
  const std::string small_pins = "keep(sinks=4,recent=16,coded_recent=true)+" + rows + "+";
  out.push_back({label, "composition", small_pins + "int(bits=8)", 0, 3});
  out.push_back({label, "composition", small_pins + "lm(bits=6,value_bits=5)", 3, 6});
  out.push_back({label, "composition", small_pins + "lm(bits=5,value_bits=4)", 6, 12});
  out.push_back(
      {label, "composition", small_pins + "lm(bits=4,value_bits=3)", 12, any_compression});
}
}  // namespace detail

// Specs of a sweep alone, on documents: rows by what is still to come (oracle.hpp), and the channel
// of the rate-distortion bound (rate_distortion.hpp).
inline constexpr std::string_view oracle = "oracle+", rate_distortion = "rate_distortion(bits=";

inline std::vector<SweepPolicy> bounds() {
  return {
      {"Oracle", "bound", "oracle+keep(sinks=4)+random+globalcut"},
      {"Rate-distortion, codecs", "bound", "rate_distortion(bits=4)"},
      {"Rate-distortion, codecs", "bound", "rate_distortion(bits=3)"},
      {"Rate-distortion, codecs", "bound", "rate_distortion(bits=2)"},
      {"Rate-distortion, codecs", "bound", "rate_distortion(bits=1)"},
  };
}

// The recipes (lesskv/recipes.hpp) as curves, each at the compressions that it is nearest to; below
// 4x with codes of 8 bits.
inline std::vector<SweepPolicy> recipe_policies() {
  std::vector<SweepPolicy> out;
  for (const auto& [family, label] :
       {std::pair("kv_", "Recipe, keys and values"), std::pair("attention_", "Recipe, attention"),
        std::pair("replay_", "Recipe, replay")}) {
    const std::size_t first = out.size();
    for (const lesskv::recipes::Recipe& recipe : lesskv::recipes::all) {
      if (!recipe.name.starts_with(family)) continue;
      std::string spec(recipe.text);
      const std::size_t amount = spec.find("compression="), end = spec.find(',', amount) + 1;
      spec.erase(amount, end - amount);
      const double above = out.size() > first ? out.back().up_to : 3;
      if (out.size() == first)
        out.push_back(
            {label, "composition", spec.substr(0, spec.rfind('+')) + "+int(bits=8)", 0, above});
      if (out.back().spec != spec) out.push_back({label, "composition", spec, above});
      out.back().up_to = 1.5 * recipe.compression;
    }
    out.back().up_to = any_compression;
  }
  return out;
}

// The default: `--policy sweep`.
inline std::vector<SweepPolicy> sweep_policies() {
  std::vector<SweepPolicy> out = recipe_policies();
  for (SweepPolicy& line : std::vector<SweepPolicy>{
           {"Random", "rows", "random"},
           {"StreamingLLM", "rows", "streamingllm"},
           {"KeyDiff", "rows", "keydiff"},
           {"SnapKV", "rows", "snapkv"},
           {"H2O", "rows", "h2o"},
           {"LagKV", "rows", "keep(sinks=16)+lagkv(lag=128)"},
           {"SnapKV, ZigZagKV", "budget", "snapkv(window=32)+zigzag"},
           {"SnapKV, UNComp", "budget", "snapkv(window=8,pool=7,max_pool=true)+uncomp"},
           {"KVzip", "budget", "kvzip+globalcut"},
           {"INT", "codec", "int(bits=8)"},
           {"INT", "codec", "int(bits=4,group=32)"},
           {"KIVI", "codec", "kivi(bits=4)"},
           {"KIVI", "codec", "kivi(bits=2)"},
           {"Lloyd-Max", "codec", "lm(bits=5)"},
           {"Lloyd-Max", "codec", "lm(bits=4)"},
           {"Lloyd-Max", "codec", "lm(bits=3)"},
           {"Lloyd-Max", "codec", "lm(bits=2)"},
       })
    out.push_back(std::move(line));
  for (SweepPolicy& line : bounds()) out.push_back(std::move(line));
  return out;
}

// Beside them, where there is time: `--policy more`.
inline std::vector<SweepPolicy> more_policies() {
  std::vector<SweepPolicy> out = {
      {"TOVA", "rows", "tova"},
      {"Expected Attention", "rows", "expected"},
      {"Key norm", "rows", "keynorm"},
      {"H2O/age", "rows", "h2o(age_normalised=true)"},
      {"KeyDiff or SnapKV", "rows", "maxrank(keydiff,snapkv)"},
      {"SnapKV, PyramidKV", "budget", "snapkv+pyramid"},
      {"SnapKV, Ada-KV", "budget", "snapkv+adakv"},
      {"KeyDiff, model-wide cut", "budget", "keydiff+globalcut"},
      {"SnapKV, entropy", "budget", "snapkv+entropy"},
  };
  detail::add_composition(out, "H2O/age, coded", "h2o(age_normalised=true)");
  detail::add_composition(out, "H2O/age, entropy, coded", "h2o(age_normalised=true)+entropy");
  detail::add_composition(out, "KeyDiff, coded", "keydiff");
  return out;
}

}  // namespace compare
