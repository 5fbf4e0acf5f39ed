// SPDX-License-Identifier: MIT
// Recipes: compositions by name, one for a ratio of bytes and a need. A name stands for its text
// wherever policies are given as text:
//
//   AnyCache cache = make_cache("attention_8x", shape);
//   AnyCache other = make_cache("keep(bytes=12M) + attention_8x", shape);   // another amount, or pins
//
//   kv_*         keys and values alone
//   attention_*  queries, or the attention itself, through attend() or observe()
//   replay_*     these, and probes: the context read once more (KVzip)
//   calibrated_* attention, and a table of the model's heads that a replay of other text made
//                (examples/calibrate --kept): "calibrated_16x(file=model.calibration)"
//
// examples/methods/recipes.md says where they come from, what was chosen on which texts and what was
// not, and the commands that print their figures.
#pragma once

#include <string_view>

#include "core/config.hpp"

LESSKV_BEGIN_NAMESPACE

namespace recipes {

struct Recipe {
  std::string_view name;
  double compression;  // bytes of the exact f16 cache over bytes held, with heads of 64 channels
  std::string_view text;
};

inline constexpr Recipe all[] = {
    {"kv_4x", 4,
     "keep(compression=4,sinks=4,recent=16,coded_recent=true)"
     "+maxrank(keydiff,streamingllm)+globalcut(by=keydiff,alpha=0.5)+lm(bits=5,value_bits=4)"},
    {"kv_8x", 8,
     "keep(compression=8,sinks=4,recent=16,coded_recent=true)"
     "+maxrank(keydiff,streamingllm)+globalcut(by=keydiff,alpha=0.5)+lm(bits=4,value_bits=3)"},
    {"kv_16x", 16,
     "keep(compression=16,sinks=4,recent=16,coded_recent=true)"
     "+maxrank(keydiff,streamingllm)+globalcut(by=keydiff,alpha=0.5)+lm(bits=4,value_bits=3)"},
    {"kv_32x", 32,
     "keep(compression=32,sinks=4,recent=16,coded_recent=true)"
     "+maxrank(keydiff,streamingllm)+globalcut(by=keydiff,alpha=0.5)+lm(bits=4,value_bits=3)"},
    {"attention_4x", 4,
     "keep(compression=4,sinks=4,recent=16,coded_recent=true)"
     "+h2o(age_normalised=true)+entropy+globalcut(by=keydiff,alpha=0.5)+centroids(share=0.05)"
     "+lm(bits=6,value_bits=5)"},
    {"attention_8x", 8,
     "keep(compression=8,sinks=4,recent=16,coded_recent=true)"
     "+h2o(age_normalised=true)+entropy+globalcut(by=keydiff,alpha=0.5)+centroids(share=0.05)"
     "+lm(bits=5,value_bits=4)"},
    {"attention_16x", 16,
     "keep(compression=16,sinks=4,recent=16,coded_recent=true)"
     "+h2o(age_normalised=true)+entropy+globalcut(by=keydiff,alpha=0.5)+centroids(share=0.05)"
     "+lm(bits=4,value_bits=3)"},
    {"attention_32x", 32,
     "keep(compression=32,sinks=4,recent=16,coded_recent=true)"
     "+h2o(age_normalised=true)+entropy+globalcut(by=keydiff,alpha=0.1)+centroids(share=0.05)"
     "+lm(bits=4,value_bits=3)"},
    {"calibrated_16x", 16,
     "keep(compression=16,sinks=4,recent=16,coded_recent=true)"
     "+h2o(age_normalised=true)+table+centroids(share=0.05)+lm(bits=4,value_bits=3)"},
    {"calibrated_32x", 32,
     "keep(compression=32,sinks=4,recent=16,coded_recent=true)"
     "+h2o(age_normalised=true)+table+centroids(share=0.05)+lm(bits=4,value_bits=3)"},
    {"replay_4x", 4,
     "keep(compression=4,sinks=4,recent=16,coded_recent=true)"
     "+kvzip+globalcut(alpha=0.1)+centroids(share=0.05)"
     "+lm(bits=6,value_bits=5)"},
    {"replay_8x", 8,
     "keep(compression=8,sinks=4,recent=16,coded_recent=true)"
     "+kvzip+globalcut(alpha=0.1)+centroids(share=0.05)"
     "+lm(bits=5,value_bits=4)"},
    {"replay_16x", 16,
     "keep(compression=16,sinks=4,recent=16,coded_recent=true)"
     "+kvzip+globalcut(alpha=0.1)+centroids(share=0.05)"
     "+lm(bits=4,value_bits=3)"},
    {"replay_32x", 32,
     "keep(compression=32,sinks=4,recent=16,coded_recent=true)"
     "+kvzip+globalcut(alpha=0.1)+centroids(share=0.1)"
     "+lm(bits=4,value_bits=3)"},
};

// Null if there is none of that name.
constexpr const Recipe* find(std::string_view name) {
  for (const Recipe& one : all)
    if (one.name == name) return &one;
  return nullptr;
}

}  // namespace recipes

LESSKV_END_NAMESPACE
