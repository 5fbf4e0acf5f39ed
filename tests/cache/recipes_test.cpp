// SPDX-License-Identifier: MIT
// Recipes by name: what they stand for, what may be said beside them, and that they hold no more than
// they promise.
#include <gtest/gtest.h>

#include <lesskv/any.hpp>

#include "support.hpp"

namespace recipes_test {

using namespace support;

const Shape shape{.layers = 2, .query_heads = 6, .kv_heads = 2, .head_dim = 64, .rope = Rope{}};

bool takes_table(const recipes::Recipe& recipe) { return recipe.name.starts_with("calibrated"); }

std::string spec_of(const recipes::Recipe& recipe) {
  return std::string(recipe.name) + (takes_table(recipe) ? "(shares=1:2:3:2)" : "");
}

TEST(Recipes, EachIsACacheOfItsSize) {
  const Index tokens = 3000;
  const std::vector<Tensors> text = tensors(shape, tokens, 1), others = tensors(shape, 64, 2);
  const double exact = 2.0 * double(tokens * shape.heads() * 2 * shape.head_dim);
  for (const recipes::Recipe& recipe : recipes::all) {
    SCOPED_TRACE(recipe.name);
    AnyCache cache = make_cache(spec_of(recipe), shape);
    EXPECT_EQ(cache.needs_probes(), recipe.name.starts_with("replay"));
    if (recipe.name.starts_with("kv"))
      for (int l = 0; l < shape.layers; ++l)  // no queries, no attention
        cache.append(l, text[std::size_t(l)].k(0, tokens), text[std::size_t(l)].v(0, tokens));
    else
      feed(cache, text, 0, tokens);
    if (cache.needs_probes()) {
      cache.begin_probes();
      feed(cache, others, 0, 64);
      cache.end_probes();
    }
    cache.compress();
    const double reached = exact / double(cache.bytes());
    EXPECT_GE(reached, recipe.compression);
    EXPECT_LE(reached, (recipe.compression < 32 ? 1.04 : 1.07) * recipe.compression)
        << "16 rows of a head are 3 % of what it holds at 32x";
  }
}

TEST(Recipes, NamesAreFoundAndDiffer) {
  for (const recipes::Recipe& one : recipes::all) {
    EXPECT_EQ(recipes::find(one.name), &one);
    if (!takes_table(one)) {
      EXPECT_EQ(parse_spec(one.name).to_string(), parse_spec(one.text).to_string());
    }
    for (const recipes::Recipe& other : recipes::all)
      if (&one != &other) {
        EXPECT_NE(one.name, other.name);
        EXPECT_NE(one.text, other.text);
      }
  }
  EXPECT_EQ(recipes::find("lagkv"), nullptr);
}

TEST(Recipes, WhatIsSaidBesideThemGoesFirst) {
  const std::string_view name = recipes::all[0].name;
  const auto with = [&](const std::string& more) {
    return parse_spec(more + "+" + std::string(name)).keep;
  };
  const Keep own = parse_spec(name).keep;
  EXPECT_EQ(own.compression, recipes::all[0].compression);
  EXPECT_EQ(with("keep(fraction=0.01)").fraction, 0.01);
  EXPECT_EQ(with("keep(fraction=0.01)").compression, 0);
  EXPECT_EQ(with("keep(compression=5)").compression, 5);
  EXPECT_EQ(with("keep(fraction=0.01)").recent, own.recent);
  EXPECT_EQ(with("keep(bytes=1M)").compression, 0);
  EXPECT_EQ(with("keep(bytes=1M)").bytes, std::size_t{1} << 20);
  EXPECT_EQ(with("keep(tokens=500)").tokens, 500);
  EXPECT_EQ(with("keep(sinks=7)").compression, own.compression);
  EXPECT_EQ(with("keep(sinks=7)").sinks, 7);
}

TEST(Recipes, SayWhatIsWrong) {
  const std::string name(recipes::all[0].name), other(recipes::all[1].name);
  const auto message = [](const std::string& text) {
    return message_of([&] { parse_spec(text); });
  };
  EXPECT_NE(message(name + "+" + other).find("two recipes"), std::string::npos);
  EXPECT_NE(message(name + "(x=1)").find("no parameters"), std::string::npos);
  const std::string table = message("calibrated_16x");
  EXPECT_NE(table.find("calibrated_16x(file="), std::string::npos) << table;
  EXPECT_NE(message("calibrated_16x(fil=x)").find("fil"), std::string::npos);
  EXPECT_EQ(
      parse_spec("calibrated_16x(shares=1:2)").methods,
      "h2o(age_normalised=true)+table(shares=1:2)+centroids(share=0.05)+lm(bits=4,value_bits=3)");
  EXPECT_NE(message("keep(sinks=1)+keep(sinks=2)+" + name).find("two keep"), std::string::npos);
  EXPECT_NE(message(name + "+h2o").find("two policies"), std::string::npos);
  EXPECT_NE(message(name.substr(0, name.size() - 1)).find("did you mean '" + name + "'"),
            std::string::npos);
}

}  // namespace recipes_test
