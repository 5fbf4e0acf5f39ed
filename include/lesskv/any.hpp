// SPDX-License-Identifier: MIT
// Policies by name, at run time. Includes all of lesskv and every method; engines that know their
// policies include lesskv.hpp alone and compile faster.
#pragma once

#include <string_view>

#include "cache/spec.hpp"
#include "lesskv.hpp"

LESSKV_BEGIN_NAMESPACE

using AnyCache = KVCache<Keep, AnyScorer, AnyBudgeter, AnyCodec>;
using AnyPlanner = Planner<Keep, AnyScorer, AnyBudgeter, AnyCodec>;

#if LESSKV_DECLARE_ONLY
extern template class KVCache<Keep, AnyScorer, AnyBudgeter, AnyCodec>;
extern template class Planner<Keep, AnyScorer, AnyBudgeter, AnyCodec>;
#elif defined(LESSKV_COMPILED)
template class KVCache<Keep, AnyScorer, AnyBudgeter, AnyCodec>;
template class Planner<Keep, AnyScorer, AnyBudgeter, AnyCodec>;
#endif

namespace detail {
template <class Target>
Target build(const PolicySpec& spec, Shape shape) {
  if (spec.dtype) shape.dtype = *spec.dtype;
  // Exact: all rows may stay, whatever the score.
  if (spec.exact) {
    Keep keep = spec.keep;
    keep.fraction = 1;
    return Target(shape, keep, AnyScorer(StreamingLLM{}), AnyBudgeter{}, spec.codec);
  }
  if (!spec.has_amount())
    fail(
        "spec: nothing says how much to keep; add keep(fraction=...), keep(tokens=...) or "
        "keep(bytes=...)");
  return Target(shape, spec.keep, *spec.scorer, spec.budgeter, spec.codec);
}
}  // namespace detail

// make_cache("keep(fraction=0.25) + lagkv(lag=128)", shape); cache/spec.hpp has the grammar. Errors
// name the place.
inline AnyCache make_cache(const PolicySpec& spec, const Shape& shape) {
  return detail::build<AnyCache>(spec, shape);
}
inline AnyCache make_cache(std::string_view spec, const Shape& shape) {
  return make_cache(parse_spec(spec), shape);
}

// The same without a store, for memory that the engine owns.
inline AnyPlanner make_planner(const PolicySpec& spec, const Shape& shape) {
  return detail::build<AnyPlanner>(spec, shape);
}
inline AnyPlanner make_planner(std::string_view spec, const Shape& shape) {
  return make_planner(parse_spec(spec), shape);
}

LESSKV_END_NAMESPACE
