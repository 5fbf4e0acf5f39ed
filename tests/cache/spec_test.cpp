// SPDX-License-Identifier: MIT
// Policies as text: what the text says is what the cache does, and what is wrong with it is named.
#include <gtest/gtest.h>

#include <lesskv/any.hpp>
#include <random>

namespace spec_test {

using namespace lesskv;

constexpr Index tokens = 400;
constexpr int layers = 2, heads = 2, width = 16;

Shape shape() { return {.layers = layers, .query_heads = 4, .kv_heads = heads, .head_dim = width}; }

struct Tensors {
  std::vector<float> keys, values, queries;
  Tensors() {
    std::mt19937 random(1);
    std::normal_distribution<float> normal;
    const std::size_t n = std::size_t(layers * tokens * width);
    for (auto* x : {&keys, &values}) x->resize(n * heads);
    queries.resize(n * 4);
    for (auto* x : {&keys, &values, &queries})
      for (float& one : *x) one = normal(random);
  }
  template <class Cache>
  void feed(Cache& cache) const {
    for (int l = 0; l < layers; ++l) {
      const auto at = std::size_t(l * tokens * width);
      cache.append(l, View::packed(keys.data() + at * heads, tokens, heads, width),
                   View::packed(values.data() + at * heads, tokens, heads, width));
      cache.observe(l, View::packed(queries.data() + at * 4, tokens, 4, width));
    }
    cache.compress();
  }
};

// A cache made from text keeps what the cache of the types keeps.
template <class... Ps>
void expect_same(const std::string& text, const Ps&... policies) {
  SCOPED_TRACE(text);
  const Tensors tensors;
  AnyCache any = make_cache(text, shape());
  KVCache<Ps...> typed(shape(), policies...);
  tensors.feed(any);
  tensors.feed(typed);
  Index held = 0;
  for (int l = 0; l < layers; ++l)
    for (int h = 0; h < heads; ++h) {
      EXPECT_EQ(any.positions(l, h), typed.positions(l, h)) << l << " " << h;
      held += any.size(l, h);
    }
  EXPECT_LT(held, layers * heads * tokens);
}

TEST(Spec, TextAndTypesKeepTheSameRows) {
  expect_same("keep(fraction=0.25,sinks=16)+lagkv(lag=32)", Keep{.fraction = 0.25, .sinks = 16},
              LagKV{.lag = 32});
  expect_same("keep(fraction=0.25)+lagkv(lag=32,value_weight=0.5,skip_layers=1)",
              Keep{.fraction = 0.25, .sinks = LagKV::published.sinks},
              LagKV{.lag = 32, .value_weight = 0.5f, .skip_layers = {1}});
  expect_same("keep(tokens=100,recent=7)+snapkv(window=16,pool=7,max_pool=true)",
              Keep{.tokens = 100, .recent = 7}, SnapKV{.window = 16, .pool = 7, .max_pool = true});
  expect_same("keep(tokens=100,shared=model)+keydiff", Keep{.tokens = 100, .shared = Shared::model},
              KeyDiff{});
  expect_same("keep(tokens=100)+tova", Keep{.tokens = 100}, TOVA{});
  // A limit in bytes counts the policies themselves, and erased ones are larger: the same limit, not
  // the same rows.
  EXPECT_EQ(parse_spec("keep(bytes=20k)+h2o(age_normalised=true)").keep.bytes, 20u * 1024);
  expect_same("keep(fraction=0.2)+h2o(age_normalised=true)", Keep{.fraction = 0.2},
              H2O{.age_normalised = true});
  expect_same("keep(tokens=100)+keynorm+table(shares=1:3)", Keep{.tokens = 100}, KeyNorm{},
              TableBudget{.shares = {1, 3}});
  expect_same("keep(fraction=0.2)+random(seed=7)", Keep{.fraction = 0.2}, Random{.seed = 7});
  expect_same("keep(tokens=50,every=1)+streamingllm",
              Keep{.tokens = 50, .sinks = StreamingLLM::published.sinks, .every = 1},
              StreamingLLM{});
}

TEST(Spec, SpacesAndOrderDoNotMatter) {
  EXPECT_EQ(parse_spec(" lagkv( lag = 32 )\t+ keep(sinks = 3, fraction = 0.5)\n").to_string(),
            parse_spec("keep(fraction=0.5,sinks=3)+lagkv(lag=32)").to_string());
}

TEST(Spec, PrintedTextMeansTheSame) {
  for (const char* text :
       {"exact", "exact+store(dtype=bf16)", "keep(fraction=0.25,sinks=16)+lagkv(lag=64)",
        "keep(tokens=100,recent=3,shared=layer,every=1)+snapkv+store(dtype=f32)",
        "keep(bytes=1000000)+keydiff+table(shares=1:2:3:4)"}) {
    const std::string printed = parse_spec(text).to_string();
    EXPECT_EQ(printed, text);
    EXPECT_EQ(parse_spec(printed).to_string(), printed);
  }
}

TEST(Spec, PublishedPinsFillWhatIsNotSaid) {
  EXPECT_EQ(parse_spec("keep(fraction=0.5)+lagkv").keep.sinks, 16);
  EXPECT_EQ(parse_spec("keep(fraction=0.5,sinks=0)+lagkv").keep.sinks, 0);
  EXPECT_EQ(parse_spec("keep(fraction=0.5)+streamingllm").keep.sinks, 4);
}

TEST(Spec, UnitsAndStorage) {
  EXPECT_EQ(parse_spec("keep(bytes=3k)+tova").keep.bytes, 3u << 10);
  EXPECT_EQ(parse_spec("keep(bytes=3M)+tova").keep.bytes, 3u << 20);
  EXPECT_EQ(parse_spec("keep(bytes=3G)+tova").keep.bytes, std::size_t{3} << 30);
  EXPECT_EQ(make_cache("exact+store(dtype=f32)", shape()).shape().dtype, DType::f32);
  EXPECT_EQ(make_planner("keep(tokens=9)+tova+store(dtype=bf16)", shape()).shape().dtype,
            DType::bf16);
}

TEST(Spec, ExactKeepsEverything) {
  AnyCache cache = make_cache("exact", shape());
  Tensors().feed(cache);
  EXPECT_EQ(cache.size(1, 1), tokens);
}

TEST(Spec, WhatIsWrongIsNamed) {
  for (const auto& [text, parts] : std::vector<std::pair<const char*, std::vector<const char*>>>{
           {"", {"empty"}},
           {"  ", {"empty"}},
           {"+", {"a name is missing", "character 1"}},
           {"lagkv+", {"a name is missing"}},
           {"lagkv lagkv", {"lagkvlagkv"}},
           {"lagkv(lag", {"lagkv", "')'"}},
           {"lagkv(lag=", {"a value"}},
           {"lagkv(lag=3", {"lagkv", "')'"}},
           {"lagkv(lag=3)x", {"'+'", "character 13"}},
           {"lagvk", {"lagvk", "did you mean 'lagkv'"}},
           {"lagkv(lags=3)", {"lags", "did you mean 'lag'", "skip_layers"}},
           {"lagkv(lag=3.5)", {"lagkv(lag)", "3.5", "integer"}},
           {"lagkv(lag=99999999999999999999)", {"lagkv(lag)", "range"}},
           {"h2o(age_normalised=maybe)", {"age_normalised", "true or false"}},
           {"lagkv(skip_layers=1:x)", {"skip_layers", "'x'"}},
           {"keydiff(window=3)", {"window", "Known: none"}},
           {"keep(fraction=0.5)", {"which rows stay"}},
           {"keep(fraction=0.5)+keep(tokens=3)+tova", {"two keep"}},
           {"keep(share=head)+tova", {"share", "shared"}},
           {"keep(shared=heads)+tova", {"keep(shared)", "heads"}},
           {"keep(bytes=x)+tova", {"keep(bytes)"}},
           {"keep(bytes=-1)+tova", {"keep(bytes)"}},
           {"keep(bytes=18014398509481984k)+tova", {"keep(bytes)", "18014398509481984k"}},
           {"store(dtype=q8)+exact", {"store(dtype)", "q8"}},
           {"store(type=f16)+exact", {"type", "dtype"}},
           {"exact(1)", {"exact"}},
           {"exact+lagkv", {"exact"}},
           {"lagkv+tova", {"two policies"}},
           {"table(shares=1:2)", {"which rows stay"}}}) {
    try {
      parse_spec(text);
      ADD_FAILURE() << "'" << text << "' is taken";
    } catch (const Error& error) {
      const std::string what = error.what();
      EXPECT_NE(what.find("spec: "), std::string::npos) << what;
      for (const char* part : parts) EXPECT_NE(what.find(part), std::string::npos) << what;
    }
  }
}

TEST(Spec, BudgetsAreCheckedWhenACacheIsMade) {
  for (const auto& [text, part] : std::vector<std::pair<const char*, const char*>>{
           {"lagkv", "keep(fraction="},
           {"keep(fraction=2)+tova", "Keep::fraction"},
           {"keep(fraction=-1)+tova", "Keep::fraction"},
           {"keep(fraction=nan)+tova", "Keep::fraction"},
           {"keep(tokens=-3)+tova", "Keep::tokens"},
           {"keep(tokens=10)+lagkv", "Keep::"},
           {"keep(tokens=3,sinks=4)+keydiff", "Keep::tokens"},
           {"keep(fraction=0.5)+lagkv(lag=0)", "LagKV::lag"},
           {"keep(tokens=9)+keydiff+table(shares=1:2:3)", "TableBudget::shares"}}) {
    for (const bool planner : {false, true}) {
      try {
        if (planner)
          make_planner(text, shape());
        else
          make_cache(text, shape());
        ADD_FAILURE() << "'" << text << "' is taken";
      } catch (const Error& error) {
        EXPECT_NE(std::string(error.what()).find(part), std::string::npos) << error.what();
      }
    }
  }
}

TEST(Methods, TakeTheDefaultsThatTheListPrints) {
  for (const MethodInfo& method : list_methods()) {
    EXPECT_FALSE(method.summary.empty()) << method.name;
    // Every parameter is taken with the default that is printed for it.
    const bool combinator = method.role == "scorer made of scorers";
    std::string text = method.role == "scorer" || combinator ? method.name : "lagkv+" + method.name;
    std::string arguments;
    if (combinator) arguments = method.name.ends_with("rank") ? "lagkv,keydiff" : "keydiff";
    for (const ParameterInfo& parameter : method.parameters) {
      EXPECT_FALSE(parameter.text.empty()) << parameter.name;
      if (parameter.value != "none")
        arguments += (arguments.empty() ? "" : ",") + parameter.name + "=" + parameter.value;
    }
    if (!arguments.empty()) text += "(" + arguments + ")";
    EXPECT_NO_THROW(parse_spec("keep(fraction=0.5)+" + text)) << text;
  }
}

}  // namespace spec_test
