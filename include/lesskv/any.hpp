// SPDX-License-Identifier: MIT
// Policies by name, at run time. Includes all of lesskv and every method; engines that know their
// policies include lesskv.hpp alone and compile faster.
#pragma once

#include <string_view>

#include "cache/spec.hpp"
#include "codec/csr.hpp"
#include "lesskv.hpp"
#include "recipes.hpp"

LESSKV_BEGIN_NAMESPACE

// make_cache("keep(fraction=0.25) + lagkv(lag=128)", shape); cache/spec.hpp has the grammar. Errors
// name the place.
AnyCache make_cache(const PolicySpec& spec, const Shape& shape);
AnyCache make_cache(std::string_view spec, const Shape& shape);

// The same without a store, for memory that the engine owns.
AnyPlanner make_planner(const PolicySpec& spec, const Shape& shape);
AnyPlanner make_planner(std::string_view spec, const Shape& shape);

#if !LESSKV_DECLARE_ONLY
namespace detail {
// The policies of a spec, its keep made whole.
inline std::vector<AnyPolicy> policies_of(const PolicySpec& spec, Keep& keep) {
  std::vector<AnyPolicy> out;
  keep = spec.keep;
  // Exact: all rows may stay, whatever the score.
  if (spec.exact) {
    keep.fraction = 1;
    out.emplace_back(StreamingLLM{});
  } else {
    if (!spec.has_amount())
      fail(
          "spec: nothing says how much to keep; add keep(fraction=...), keep(tokens=...), "
          "keep(bytes=...) or keep(compression=...)");
    out.emplace_back(*spec.scorer);
    out.insert(out.end(), spec.budgeters.begin(), spec.budgeters.end());
    if (spec.merger) out.push_back(*spec.merger);
  }
  if (spec.codec) out.push_back(*spec.codec);
  return out;
}
template <class Target>
Target build(const PolicySpec& spec, Shape shape) {
  if (spec.dtype) shape.dtype = *spec.dtype;
  Keep keep;
  std::vector<AnyPolicy> policies = policies_of(spec, keep);
  return Target(shape, &keep, std::move(policies));
}
}  // namespace detail

LESSKV_FUNCTION AnyCache make_cache(const PolicySpec& spec, const Shape& shape) {
  return detail::build<AnyCache>(spec, shape);
}
LESSKV_FUNCTION AnyCache make_cache(std::string_view spec, const Shape& shape) {
  return make_cache(parse_spec(spec), shape);
}

LESSKV_FUNCTION AnyPlanner make_planner(const PolicySpec& spec, const Shape& shape) {
  return detail::build<AnyPlanner>(spec, shape);
}
LESSKV_FUNCTION AnyPlanner make_planner(std::string_view spec, const Shape& shape) {
  return make_planner(parse_spec(spec), shape);
}

#endif

LESSKV_END_NAMESPACE
