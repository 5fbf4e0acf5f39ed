// SPDX-License-Identifier: MIT
// The text form of policies: "keep(fraction=0.25, sinks=16) + lagkv(lag=128)".
//
//   spec   = part { "+" part } | "exact"
//   part   = name [ "(" argument { "," argument } ")" ]
//   argument = key "=" value | part                    (part: a scorer that the named one is made of)
//   value  = number | true | false | word | value { ":" value } | part   (lists: skip_layers=0:1)
//
// "maxrank(h2o(age_normalised=true), keydiff, offsets=0:-0.04) + globalcut(by=keydiff)" names
// scorers inside others, "keys(lm(bits=5)) + values(lm(bits=3))" a codec for each side. Spaces are
// ignored. `keep` takes the fields of Keep (bytes with k, M, G; shared=head, layer or
// model); `store` takes dtype=f32, f16 or bf16; every other name is a method of methods.hpp, or one of
// recipes.hpp, which stands for its text: "keep(bytes=12M) + attention_8x". What
// the user does not say about sinks and recent rows is filled in from the method's published pins.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "any_policy.hpp"

LESSKV_BEGIN_NAMESPACE

// A parsed spec. May be edited before a cache is made of it.
struct PolicySpec {
  Keep keep;
  bool exact = false;  // nothing ever leaves
  std::optional<AnyScorer> scorer;
  std::vector<AnyPolicy> budgeters;
  std::optional<AnyPolicy> merger;
  std::optional<AnyPolicy> codec;
  std::optional<DType> dtype;
  std::string methods;    // the text of all parts but `keep`
  int methods_named = 0;  // scorers and budgeters, those inside others included

  // Something says how much to keep. (If it is negative, the cache says so.)
  bool has_amount() const {
    return exact || keep.fraction != 0 || keep.tokens != 0 || keep.bytes > 0 ||
           keep.compression != 0;
  }
  // Rows are judged once, a chunk at a time: only a share shortens them.
  bool judges_once() const { return scorer && scorer->reach().chunk > 0; }
  std::string to_string() const;
};

struct ParameterInfo {
  std::string name, value, text;  // value: the default
};
struct MethodInfo {
  std::string name, role, summary;
  Keep published;  // pins of the published form
  std::vector<ParameterInfo> parameters;
};

// Names, parameters with defaults, and published pins of all methods.
std::vector<MethodInfo> list_methods();

// Errors name the place.
PolicySpec parse_spec(std::string_view text);

LESSKV_END_NAMESPACE

#if !LESSKV_DECLARE_ONLY
#include "parse_spec.hpp"
#endif
