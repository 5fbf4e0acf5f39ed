// SPDX-License-Identifier: MIT
// Reads the text form of policies; the grammar is in spec.hpp. With methods of its own, a project
// calls parse_spec<MethodList<...>>(text).
#pragma once

#include <algorithm>
#include <charconv>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <optional>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "../codec/csr.hpp"
#include "../methods.hpp"
#include "expand_recipes.hpp"
#include "spec.hpp"
#include "split_spec.hpp"

LESSKV_BEGIN_NAMESPACE

namespace detail {

// Stands for any scorer where only the name of a combinator is asked for.
struct StandInScorer {
  void score(const Head&, std::span<float>) const {}
};

// Numbers of edits between two words, for "did you mean".
inline std::size_t edits(std::string_view a, std::string_view b) {
  std::vector<std::size_t> row(b.size() + 1);
  for (std::size_t j = 0; j <= b.size(); ++j) row[j] = j;
  for (std::size_t i = 1; i <= a.size(); ++i) {
    std::size_t diagonal = row[0];
    row[0] = i;
    for (std::size_t j = 1; j <= b.size(); ++j) {
      const std::size_t above = row[j];
      row[j] = std::min({above + 1, row[j - 1] + 1, diagonal + (a[i - 1] != b[j - 1])});
      diagonal = above;
    }
  }
  return row[b.size()];
}

[[noreturn]] inline void fail_unknown(const std::string& what, const std::string& word,
                                      const std::vector<std::string>& known) {
  std::string list, nearest;
  std::size_t least = 3;
  for (const std::string& one : known) {
    list += (list.empty() ? "" : ", ") + one;
    if (const std::size_t distance = edits(word, one); distance < least) {
      least = distance;
      nearest = one;
    }
  }
  fail("spec: unknown ", what, " '", word, "'",
       nearest.empty() ? "" : "; did you mean '" + nearest + "'?",
       " Known: ", list.empty() ? "none" : list);
}

[[noreturn]] inline void fail_value(const std::string& where, const std::string& text,
                                    const char* wanted) {
  fail("spec: ", where, ": '", text, "' is not ", wanted);
}

template <class T>
requires std::integral<T>
void parse_value(const std::string& where, const std::string& text, T& out) {
  if constexpr (std::same_as<T, bool>) {
    if (text == "true" || text == "1")
      out = true;
    else if (text == "false" || text == "0")
      out = false;
    else
      fail_value(where, text, "true or false");
  } else {
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), out);
    if (error != std::errc() || end != text.data() + text.size())
      fail_value(where, text, "an integer in range");
  }
}
template <class T>
requires std::floating_point<T>
void parse_value(const std::string& where, const std::string& text, T& out) {
  double value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size()) fail_value(where, text, "a number");
  out = static_cast<T>(value);
}
template <class T>
void parse_value(const std::string& where, const std::string& text, std::vector<T>& out) {
  out.clear();
  for (std::size_t at = 0; at <= text.size();) {
    const std::size_t end = std::min(text.find(':', at), text.size());
    parse_value(where, text.substr(at, end - at), out.emplace_back());
    at = end + 1;
  }
}

// Enumerations name their values: std::array<std::string_view, n> names_of(T).
template <class T>
requires std::is_enum_v<T>
void parse_value(const std::string& where, const std::string& text, T& out) {
  std::string list;
  int value = 0;
  for (const std::string_view name : names_of(T{})) {
    if (text == name) {
      out = static_cast<T>(value);
      return;
    }
    ++value;
    list += (list.empty() ? "" : ", ") + std::string(name);
  }
  fail("spec: ", where, ": '", text, "' is none of ", list);
}

template <class T>
std::string value_text(const T& value) {
  if constexpr (std::same_as<T, bool>)
    return value ? "true" : "false";
  else if constexpr (std::is_enum_v<T>)
    return std::string(names_of(value)[static_cast<std::size_t>(value)]);
  else if constexpr (std::integral<T>)
    return std::to_string(value);
  else if constexpr (std::floating_point<T>) {
    char text[32];
    std::snprintf(text, sizeof text, "%g", double{value});
    return text;
  } else {
    std::string out;
    for (const auto& one : value) {
      if (!out.empty()) out += ':';
      out += value_text(one);
    }
    return out.empty() ? "none" : out;
  }
}

inline void parse_keep(const SpecPart& part, PolicySpec& spec, bool& sinks, bool& recent) {
  for (const auto& argument : part.arguments) {
    const std::string& key = argument.first;
    const std::string where = "keep(" + key + ")";
    std::string text = argument.second;
    if (key.empty()) fail("spec: 'keep': '=' is missing after '", text, "'");
    if (key == "fraction")
      parse_value(where, text, spec.keep.fraction);
    else if (key == "compression")
      parse_value(where, text, spec.keep.compression);
    else if (key == "tokens")
      parse_value(where, text, spec.keep.tokens);
    else if (key == "every")
      parse_value(where, text, spec.keep.every);
    else if (key == "coded_recent")
      parse_value(where, text, spec.keep.coded_recent);
    else if (key == "sinks")
      parse_value(where, text, spec.keep.sinks), sinks = true;
    else if (key == "recent")
      parse_value(where, text, spec.keep.recent), recent = true;
    else if (key == "bytes") {
      std::size_t unit = 1;
      const char last = text.back();
      if (last == 'k' || last == 'M' || last == 'G') {
        unit = last == 'k'   ? std::size_t{1} << 10
               : last == 'M' ? std::size_t{1} << 20
                             : std::size_t{1} << 30;
        text.pop_back();
      }
      parse_value(where, text, spec.keep.bytes);
      if (spec.keep.bytes > std::numeric_limits<std::size_t>::max() / unit)
        fail_value(where, argument.second, "an integer in range");
      spec.keep.bytes *= unit;
    } else if (key == "shared") {
      if (text == "head")
        spec.keep.shared = Shared::head;
      else if (text == "layer")
        spec.keep.shared = Shared::layer;
      else if (text == "model")
        spec.keep.shared = Shared::model;
      else
        fail_value(where, text, "head, layer or model");
    } else {
      fail_unknown("parameter of keep", key,
                   {"fraction", "tokens", "bytes", "compression", "sinks", "recent", "shared",
                    "every", "coded_recent"});
    }
  }
}

inline void parse_store(const SpecPart& part, PolicySpec& spec) {
  for (const auto& [key, text] : part.arguments) {
    if (key.empty()) fail("spec: 'store': '=' is missing after '", text, "'");
    if (key != "dtype") fail_unknown("parameter of store", key, {"dtype"});
    if (text == "f32")
      spec.dtype = DType::f32;
    else if (text == "f16")
      spec.dtype = DType::f16;
    else if (text == "bf16")
      spec.dtype = DType::bf16;
    else
      fail_value("store(dtype)", text, "f32, f16 or bf16");
  }
}

// Sets the parameters of a policy. Arguments without a key are scorers and were read before; so was
// `by`.
template <class P>
void parse_parameters(const SpecPart& part, P& policy, bool has_parts = false) {
  for (const auto& argument : part.arguments) {
    if (has_parts && (argument.first.empty() || argument.first == "by")) continue;
    if (argument.first.empty())
      fail("spec: '", part.name, "': '=' is missing after '", argument.second, "'");
    bool found = false;
    std::vector<std::string> known;
    P::parameters(policy, [&](const char* name, auto& field, const char*) {
      known.push_back(name);
      if (argument.first != name) return;
      found = true;
      parse_value(part.name + "(" + name + ")", argument.second, field);
    });
    if (!found) fail_unknown("parameter of " + part.name, argument.first, known);
  }
}

struct ParsedScorer {
  AnyScorer scorer;
  Keep published;
  int methods = 1;  // named in it
};

template <class P>
bool add_scorer(const SpecPart& part, std::optional<ParsedScorer>& out) {
  if constexpr (Scorer<P>) {
    if (part.name != P::name) return false;
    P policy;
    parse_parameters(part, policy);
    out.emplace(ParsedScorer{AnyScorer(std::move(policy)), P::published, 1});
    return true;
  } else {
    return false;
  }
}

std::optional<ParsedScorer> parse_scorer(const SpecPart& part, auto methods, auto combinators);

// One scorer, as an argument of another policy.
inline ParsedScorer parse_inner(const std::string& outer, const std::string& text, auto methods,
                                auto combinators) {
  const std::vector<SpecPart> parts = split_spec(text);
  if (parts.size() == 1)
    if (std::optional<ParsedScorer> one = parse_scorer(parts[0], methods, combinators))
      return std::move(*one);
  std::vector<std::string> known;
  [&]<class... Ps>(MethodList<Ps...>) {
    const auto add = [&](const std::string_view name, bool scorer) {
      if (scorer) known.emplace_back(name);
    };
    (add(Ps::name, Scorer<Ps>), ...);
  }(methods);
  fail_unknown("scorer in " + outer, parts.size() == 1 ? parts[0].name : text, known);
}

template <template <class...> class C, std::size_t N>
AnyScorer combine(const SpecPart& part, const std::vector<AnyScorer>& scorers) {
  return [&]<std::size_t... I>(std::index_sequence<I...>) {
    C<std::enable_if_t<I + 1 != 0, AnyScorer>...> policy(scorers[I]...);
    parse_parameters(part, policy, true);
    return AnyScorer(std::move(policy));
  }
  (std::make_index_sequence<N>{});
}

// What a combinator is called is known without its parts.
template <template <class...> class C>
using NamedCombinator = C<StandInScorer>;

template <template <class...> class C, int least, int most>
bool add_combinator(Combinator<C, least, most>, const SpecPart& part,
                    std::optional<ParsedScorer>& out, auto methods, auto combinators) {
  if (part.name != NamedCombinator<C>::name) return false;
  std::vector<AnyScorer> scorers;
  Keep published;
  int named = 0;
  for (const auto& [key, text] : part.arguments)
    if (key.empty()) {
      ParsedScorer one = parse_inner(part.name, text, methods, combinators);
      published.sinks = std::max(published.sinks, one.published.sinks);
      published.recent = std::max(published.recent, one.published.recent);
      named += one.methods;
      scorers.push_back(std::move(one.scorer));
    }
  const int count = static_cast<int>(scorers.size());
  if (count < least || count > most)
    fail("spec: ", part.name, " is made of ", least == most ? "" : "at least ", least,
         least == most ? "" : " and at most ", least == most ? "" : std::to_string(most),
         least == 1 ? " scorer" : " scorers", ", not ", count);
  [&]<int... n>(std::integer_sequence<int, n...>) {
    const auto one = [&](auto number) {
      constexpr int N = decltype(number)::value;
      if constexpr (N >= least)
        if (N == count)
          out.emplace(ParsedScorer{combine<C, static_cast<std::size_t>(N)>(part, scorers),
                                   published, named});
    };
    (one(std::integral_constant<int, n>{}), ...);
  }
  (std::make_integer_sequence<int, most + 1>{});
  return true;
}

// The scorer that a part names; none if it names something else.
std::optional<ParsedScorer> parse_scorer(const SpecPart& part, auto methods, auto combinators) {
  std::optional<ParsedScorer> out;
  [&]<class... Ps>(MethodList<Ps...>) { (void)(add_scorer<Ps>(part, out) || ...); }(methods);
  if (out) return out;
  [&]<class... Cs>(CombinatorList<Cs...>) {
    (void)(add_combinator(Cs{}, part, out, methods, combinators) || ...);
  }(combinators);
  return out;
}

template <class P>
bool add_budgeter(const SpecPart& part, PolicySpec& spec, auto methods, auto combinators) {
  if constexpr (!Budgeter<P>) {
    return false;
  } else {
    if (part.name != P::name) return false;
    P policy;
    if constexpr (std::same_as<P, GlobalCut<>>) {
      for (const auto& [key, text] : part.arguments) {
        if (key != "by") continue;
        ParsedScorer by = parse_inner(part.name, text, methods, combinators);
        spec.methods_named += by.methods;
        parse_parameters(part, policy, true);
        spec.budgeters.push_back(GlobalCut<AnyScorer>{std::move(by.scorer), policy.alpha});
        return true;
      }
    }
    parse_parameters(part, policy);
    spec.budgeters.push_back(std::move(policy));
    return true;
  }
}

template <class P>
bool add_codec(const SpecPart& part, PolicySpec& spec, Keep& published) {
  if constexpr (!Codec<P>) {
    return false;
  } else {
    if (part.name != P::name) return false;
    if (spec.codec) fail("spec: two policies say how rows are stored; name one");
    P policy;
    parse_parameters(part, policy);
    published.sinks = std::max(published.sinks, P::published.sinks);
    published.recent = std::max(published.recent, P::published.recent);
    spec.codec.emplace(std::move(policy));
    return true;
  }
}

template <class P>
bool add_merger(const SpecPart& part, PolicySpec& spec) {
  if constexpr (!Merger<P>) {
    return false;
  } else {
    if (part.name != P::name) return false;
    if (spec.merger) fail("spec: two policies say what becomes of rows that leave; name one");
    P policy;
    parse_parameters(part, policy);
    spec.merger.emplace(std::move(policy));
    return true;
  }
}

// keys(codec), values(codec): the two sides apart.
struct CodecSides {
  std::optional<AnyPolicy> keys, values;

  bool empty() const { return !keys && !values; }
  void check(const Shape& shape) const {
    if (keys) keys->check(shape);
    if (values) values->check(shape);
  }
  bool per_head() const {
    return (keys && keys->traits().codec_per_head) || (values && values->traits().codec_per_head);
  }
  std::shared_ptr<const SideCodec> codec(Side side, int dim, int layer, int head) const {
    const std::optional<AnyPolicy>& of = side == Side::keys ? keys : values;
    return of ? of->codec(side, dim, layer, head) : nullptr;
  }
};

template <class... Ps>
bool add_side(const SpecPart& part, CodecSides& sides, Keep& published, MethodList<Ps...>) {
  if (part.name != "keys" && part.name != "values") return false;
  std::optional<AnyPolicy>& side = part.name == "keys" ? sides.keys : sides.values;
  if (side) fail("spec: two policies say how ", part.name, " are stored; name one");
  const std::vector<SpecPart> inner = part.arguments.size() == 1 && part.arguments[0].first.empty()
                                          ? split_spec(part.arguments[0].second)
                                          : std::vector<SpecPart>{};
  PolicySpec of;
  const auto refuse = [&](std::string_view one, bool both) {
    if (both && inner.size() == 1 && inner[0].name == one)
      fail("spec: ", one, " divides bits between keys and values; it cannot be in ", part.name,
           "(...)");
  };
  (refuse(Ps::name, BitBudgeter<Ps>), ...);
  if (inner.size() == 1 && (add_codec<Ps>(inner[0], of, published) || ...)) {
    side = of.codec;
    return true;
  }
  std::vector<std::string> known;
  const auto name = [&](std::string_view one, bool codec) {
    if (codec) known.emplace_back(one);
  };
  (name(Ps::name, Codec<Ps> && !BitBudgeter<Ps>), ...);
  if (inner.size() == 1) fail_unknown("codec in " + part.name, inner[0].name, known);
  fail("spec: ", part.name, " takes one codec, for example ", part.name, "(", known[0], ")");
}

template <class P>
MethodInfo describe(std::string role, const P& policy) {
  MethodInfo info{std::string(P::name), std::move(role), std::string(P::summary), {}, {}};
  P::parameters(policy, [&](const char* name, const auto& field, const char* text) {
    info.parameters.push_back({name, value_text(field), text});
  });
  return info;
}
template <class P>
MethodInfo info_of() {
  MethodInfo info = describe(Scorer<P>   ? "scorer"
                             : Codec<P>  ? "codec"
                             : Merger<P> ? "merger"
                                         : "budgeter",
                             P{});
  if constexpr (Scorer<P> || Codec<P>) info.published = P::published;
  return info;
}
template <template <class...> class C, int least, int most>
MethodInfo info_of(Combinator<C, least, most>) {
  return describe("scorer made of scorers", NamedCombinator<C>{});
}

template <class... Ps, class... Cs>
PolicySpec parse_spec(std::string_view text, MethodList<Ps...> methods,
                      CombinatorList<Cs...> combinators) {
  PolicySpec spec;
  Keep published;
  CodecSides sides;
  bool sinks = false, recent = false, kept = false;
  for (const SpecPart& part : expand_recipes(split_spec(text))) {
    if (part.name == "keep") {
      if (kept) fail("spec: two keep(...) parts; say once how much to keep");
      kept = true;
      parse_keep(part, spec, sinks, recent);
      continue;
    }
    if (part.name == "exact") {
      if (!part.arguments.empty()) fail("spec: exact has no parameters");
      spec.exact = true;
      continue;
    }
    std::string own = part.name;
    for (std::size_t i = 0; i < part.arguments.size(); ++i)
      own += (i == 0 ? "(" : ",") + part.arguments[i].first +
             (part.arguments[i].first.empty() ? "" : "=") + part.arguments[i].second;
    spec.methods += (spec.methods.empty() ? "" : "+") + own + (part.arguments.empty() ? "" : ")");
    if (part.name == "store") {
      parse_store(part, spec);
      continue;
    }
    ++spec.methods_named;
    if (add_side(part, sides, published, methods)) continue;
    if (std::optional<ParsedScorer> parsed = parse_scorer(part, methods, combinators)) {
      if (spec.scorer) fail("spec: two policies say which rows stay; name one");
      spec.scorer.emplace(std::move(parsed->scorer));
      spec.methods_named += parsed->methods - 1;
      published.sinks = std::max(published.sinks, parsed->published.sinks);
      published.recent = std::max(published.recent, parsed->published.recent);
    } else if (!((add_budgeter<Ps>(part, spec, methods, combinators) ||
                  add_merger<Ps>(part, spec) || add_codec<Ps>(part, spec, published)) ||
                 ...)) {
      std::vector<std::string> known{"exact", "keep",   "store",
                                     "keys",  "values", std::string(Ps::name)...};
      for (const MethodInfo& one : {info_of(Cs{})...}) known.push_back(one.name);
      for (const recipes::Recipe& one : recipes::all) known.emplace_back(one.name);
      fail_unknown("name", part.name, known);
    }
  }
  if (!sides.empty()) {
    if (spec.codec) fail("spec: two policies say how rows are stored; name one");
    spec.codec.emplace(std::move(sides));
  }
  if (!spec.scorer) {
    if (!spec.budgeters.empty() || spec.merger || (kept && (!spec.codec || spec.has_amount())))
      fail("spec: nothing says which rows stay; add a scorer, for example lagkv");
    spec.exact = true;
  } else if (spec.exact) {
    fail("spec: 'exact' keeps everything; it goes with no scorer");
  }
  if (!sinks) spec.keep.sinks = published.sinks;
  if (!recent) spec.keep.recent = published.recent;
  return spec;
}

}  // namespace detail

template <class List>
PolicySpec parse_spec(std::string_view text) {
  return detail::parse_spec(text, List{}, Combinators{});
}

template <class... Ps>
std::vector<MethodInfo> list_methods(MethodList<Ps...>) {
  return {detail::info_of<Ps>()...};
}

#if !LESSKV_DECLARE_ONLY
LESSKV_FUNCTION std::string PolicySpec::to_string() const {
  if (exact && !codec) return methods.empty() ? "exact" : "exact+" + methods;
  std::string out = "keep(", comma;
  const auto add = [&](const char* key, const std::string& value) {
    out += comma + key + "=" + value;
    comma = ",";
  };
  for (const auto& [key, value] :
       {std::pair("fraction", keep.fraction), std::pair("compression", keep.compression)}) {
    if (!(value > 0)) continue;
    char text[32];
    std::snprintf(text, sizeof text, "%.6g", value);
    add(key, text);
  }
  if (keep.tokens > 0) add("tokens", std::to_string(keep.tokens));
  if (keep.bytes > 0) add("bytes", std::to_string(keep.bytes));
  if (keep.sinks > 0) add("sinks", std::to_string(keep.sinks));
  if (keep.recent > 0) add("recent", std::to_string(keep.recent));
  if (keep.shared != Shared::head) add("shared", keep.shared == Shared::layer ? "layer" : "model");
  if (keep.coded_recent) add("coded_recent", "true");
  if (keep.every != Keep{}.every) add("every", std::to_string(keep.every));
  return (comma.empty() ? "" : out + ")+") + methods;
}

LESSKV_FUNCTION PolicySpec parse_spec(std::string_view text) { return parse_spec<Methods>(text); }

LESSKV_FUNCTION std::vector<MethodInfo> list_methods() {
  std::vector<MethodInfo> out = list_methods(Methods{});
  [&]<class... Cs>(CombinatorList<Cs...>) {
    (out.push_back(detail::info_of(Cs{})), ...);
  }(Combinators{});
  return out;
}
#endif

LESSKV_END_NAMESPACE
