// SPDX-License-Identifier: MIT
// The sweep: its list of policies, and small real ones that are stopped and go on.
#include "compare/sweep.hpp"

#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <set>

#include "compare/kept.hpp"
#include "support/npy.hpp"

namespace sweep_test {

namespace fs = std::filesystem;
using namespace compare;
using Json = Records::Json;

TEST(SweepPolicies, AreTakenAndEveryCompressionHasOneCodecOfEachComposition) {
  const lesskv::Shape shape{
      .layers = 30, .query_heads = 9, .kv_heads = 3, .head_dim = 64, .rope = lesskv::Rope{}};
  std::vector<SweepPolicy> lines = sweep_policies();
  for (SweepPolicy& line : more_policies()) lines.push_back(std::move(line));
  std::set<std::string> specs;
  std::map<std::string, std::string> family_of;
  for (const SweepPolicy& line : lines) {
    if (line.family != "bound") {
      EXPECT_NO_THROW(Policy(line.spec).check(shape)) << line.spec;
    }
    EXPECT_TRUE(specs.insert(line.spec).second) << line.spec << " stands there twice";
    EXPECT_EQ(family_of.emplace(line.label, line.family).first->second, line.family);
  }
  for (const double compression : {2.0, 3.0, 4.0, 8.0, 12.0, 16.0, 32.0}) {
    std::map<std::string, int> at;
    for (const SweepPolicy& line : lines)
      if (line.family == "composition")
        at[line.label] += compression > line.above && compression <= line.up_to;
    EXPECT_GE(at.size(), 3U);
    for (const auto& [label, count] : at) EXPECT_EQ(count, 1) << label << " at " << compression;
  }
}

TEST(SweepPolicies, RecipesAreTheirCurves) {
  for (const lesskv::recipes::Recipe& recipe : lesskv::recipes::all) {
    if (recipe.name.starts_with("calibrated")) continue;  // needs a file of the model
    int found = 0;
    for (const SweepPolicy& line : recipe_policies())
      found += recipe.compression > line.above && recipe.compression <= line.up_to &&
               lesskv::parse_spec(line.spec).methods == lesskv::parse_spec(recipe.text).methods;
    EXPECT_EQ(found, 1) << recipe.name;
  }
}

TEST(KeptRows, CountsHeadsAndParts) {
  const lesskv::Shape shape{.layers = 2, .query_heads = 2, .kv_heads = 2, .head_dim = 4};
  constexpr Index tokens = 128;
  lesskv::AnyCache cache =
      lesskv::make_cache("keep(tokens=12,sinks=4,recent=8)+streamingllm", shape);
  const std::vector<float> rows(tokens * 2 * 4, 1.f);
  for (int layer = 0; layer < 2; ++layer)
    cache.append(layer, View::packed(rows.data(), tokens, 2, 4),
                 View::packed(rows.data(), tokens, 2, 4));
  cache.compress();
  const Kept kept = kept_rows(cache, tokens);
  EXPECT_EQ(kept.heads, (std::vector<Index>(4, 12)));
  ASSERT_EQ(kept.positions.size(), 2U * Kept::bins);
  for (Index layer = 0; layer < 2; ++layer)
    for (Index bin = 0; bin < Kept::bins; ++bin) {
      // Two positions a part: the first two parts are sinks, the last four are recent, of two heads.
      const Index expected = bin < 2 || bin >= Kept::bins - 4 ? 4 : 0;
      EXPECT_EQ(kept.positions[std::size_t(layer * Kept::bins + bin)], expected) << bin;
    }
}

class SweepTest : public testing::Test {
 protected:
  void SetUp() override {
    const char* const model = std::getenv("LESSKV_TEST_MODEL");
    if (!model) GTEST_SKIP() << "LESSKV_TEST_MODEL names no model";
    folder_ = fs::temp_directory_path() / ("lesskv sweep " + std::to_string(getpid()));
    fs::create_directories(folder_);
    const auto ids =
        support::load_npy<std::int32_t>(std::string(LESSKV_TEST_DATA) + "/model/token_ids.npy");
    const std::string text = (folder_ / "text.i32").string();
    std::ofstream(text, std::ios::binary)
        .write(reinterpret_cast<const char*>(ids.data.data()), 4 * 500);
    options_.records = (folder_ / "records.jsonl").string();
    options_.model = model;
    options_.model_sha256 = "m";
    options_.texts = {text};
    options_.policies = {"streamingllm", "lm(bits=4)", "keep(tokens=3)+snapkv(window=8)"};
    options_.compressions = {2};
    options_.context = 192;
    options_.score = 8;
    options_.pass_key_contexts = 1;
    options_.pass_keys = 2;
    options_.long_keys = {};
  }
  void TearDown() override { fs::remove_all(folder_); }

  std::vector<Json> records() const {
    std::ifstream file(options_.records);
    std::vector<Json> out;
    for (std::string line; std::getline(file, line);) out.push_back(Json::parse(line));
    return out;
  }

  fs::path folder_;
  SweepOptions options_;
};

TEST_F(SweepTest, AddsWhatIsMissingAndNothingElse) {
  options_.threads = 2;
  // Two texts, the needs of layers, and four policies each on document, pass keys and the clock.
  EXPECT_EQ(Sweep(options_).run(), 3 + 4 * 3);
  const std::vector<Json> all = records();
  ASSERT_EQ(all.size(), 15U);
  std::map<std::string, int> units;
  for (const Json& one : all) {
    ++units[one["unit"]];
    EXPECT_EQ(one["settings"]["context"], 192);
    if (one["unit"] != "document") continue;
    if (one["policy"] == "keep(tokens=3)+snapkv(window=8)") {
      EXPECT_TRUE(one.contains("note"));
      continue;
    }
    ASSERT_FALSE(one.contains("note")) << one["note"];
    EXPECT_EQ(one["kept_heads"].size(), 90U);
    Index heads = 0, positions = 0;
    for (const Index rows : one["kept_heads"]) heads += rows;
    for (const Index rows : one["kept_positions"]) positions += rows;
    EXPECT_EQ(heads, positions);
    EXPECT_NEAR(double(heads) / (90.0 * 192), one["kept_share"].get<double>(), 1e-9);
    EXPECT_EQ(one["running"]["kld"]["n"], 8);
    if (one["policy"] == "exact") {
      EXPECT_LT(one["running"]["kld"]["mean"].get<double>(), 1e-6);
    }
    if (one["policy"] == "streamingllm") {
      EXPECT_EQ(one["family"], "rows");
      EXPECT_GT(one["bytes_exact"].get<double>() / one["bytes"].get<double>(), 2);
    }
    if (one["policy"] == "lm(bits=4)") {
      EXPECT_EQ(one["family"], "codec");
    }
  }
  EXPECT_EQ(units, (std::map<std::string, int>{
                       {"text", 2}, {"layers", 1}, {"document", 4}, {"keys", 4}, {"times", 4}}));

  EXPECT_EQ(Sweep(options_).run(), 0);

  // Stopped while it wrote: what is lost is made again, and is what it was.
  Json lost;
  std::ofstream file(options_.records);
  for (const Json& one : all)
    if (one["unit"] == "keys" && one["policy"] == "streamingllm")
      lost = one;
    else
      file << one.dump() << "\n";
  file << lost.dump().substr(0, 50);
  file.close();
  EXPECT_EQ(Sweep(options_).run(), 1);
  Json again = records().back();
  for (Json* one : {&again, &lost}) one->erase("seconds");
  EXPECT_EQ(again, lost);

  // Other settings are other results, beside those.
  options_.policies = {"streamingllm"};
  options_.compressions = {2, 3};
  EXPECT_EQ(Sweep(options_).run(), 3);
}

// A stopped sweep has every policy at 8x before any at another compression, and documents and keys.
TEST_F(SweepTest, GoesFromTheMiddleToTheEnds) {
  options_.policies = {"streamingllm", "random"};
  options_.compressions = {2, 8, 16};
  options_.texts.push_back(options_.texts[0]);
  options_.times = false;
  Sweep(options_).run();
  std::vector<double> targets;
  std::vector<std::string> texts;
  for (const Json& one : records()) {
    if (one["unit"] == "text") texts.push_back(one.contains("keys_found") ? "keys" : "document");
    if (one["unit"] == "document") targets.push_back(one["target"]);
    EXPECT_NE(one["unit"], "times");
  }
  EXPECT_EQ(targets, (std::vector<double>{0, 8, 8, 16, 16, 2, 2}));
  EXPECT_EQ(texts,
            (std::vector<std::string>{"document", "keys"}));  // the second is the first again
}

// What a replay pays is worked out once for a text; a cache that sees the probes keeps the same rows.
TEST_F(SweepTest, ReplaysTextsForPoliciesThatAskForProbes) {
  engine::Model model = engine::Model::open(options_.model);
  const engine::Tokenizer tokenizer(model.file());
  engine::Run run(model);
  const Document document = read_document(options_.texts[0], tokenizer);
  const auto context = std::span<const std::int32_t>(document.tokens).first(192);
  Pass pass = exact_pass(run, context);
  keep_probes(run, pass, engine::replay_chunks(tokenizer, context));
  const Policy policy("keep(fraction=0.3,sinks=4)+kvzip+globalcut");
  const Solved solved(policy, pass);
  EXPECT_TRUE(solved.replayed);
  lesskv::AnyCache seen = lesskv::make_cache(policy.spec, pass.exact.shape()),
                   noted = lesskv::make_cache(solved.spec, pass.exact.shape());
  EXPECT_TRUE(seen.needs_probes());
  EXPECT_FALSE(noted.needs_probes());
  Index same = 0, all = 0;
  for (lesskv::AnyCache* cache : {&seen, &noted}) {
    replay(pass, *cache);
    cache->compress();
  }
  EXPECT_NEAR(double(seen.bytes()), double(noted.bytes()), 0.02 * double(seen.bytes()));
  for (int layer = 0; layer < pass.exact.shape().layers; ++layer)
    for (int head = 0; head < pass.exact.shape().kv_heads; ++head) {
      const auto a = seen.positions(layer, head), b = noted.positions(layer, head);
      std::vector<lesskv::Position> both;
      std::set_intersection(a.begin(), a.end(), b.begin(), b.end(), std::back_inserter(both));
      same += static_cast<Index>(both.size());
      all += static_cast<Index>(a.size());
    }
  // Probes are kept in 16 bits: rows at the cut may change places.
  EXPECT_GE(same, all * 99 / 100);
  EXPECT_LT(all, 192 * 90 / 2);

  options_.policies = {"kvzip+globalcut", "maxrank(kvzip,h2o)+globalcut(by=kvzip)", "random"};
  Sweep(options_).run();
  std::map<std::string, double> copied;
  for (const Json& one : records()) {
    EXPECT_FALSE(one.contains("note")) << one;
    if (one["unit"] == "text") {
      EXPECT_TRUE(one.contains("replay_ms"));
    }
    if (one["unit"] == "document") copied[one["policy"]] = one["copy"]["kld"]["mean"];
  }
  EXPECT_EQ(copied.size(), 4U);
  for (const auto& [spec, kld] : copied)
    if (spec != "random") {
      EXPECT_LT(kld, 0.5 * copied["random"]) << spec;
    }
}

// An oracle beats chance by far, more bits beat fewer; both are asked on documents alone.
TEST_F(SweepTest, Bounds) {
  options_.policies = {"random", "oracle+random+globalcut", "rate_distortion(bits=1)",
                       "rate_distortion(bits=6)"};
  options_.compressions = {4};
  options_.context = 256;
  Sweep(options_).run();
  std::map<std::string, double> running, copied;
  std::map<std::string, int> units;
  for (const Json& one : records()) {
    if (one.contains("family") && one["family"] == "bound") ++units[one["unit"]];
    if (one["unit"] != "document") continue;
    ASSERT_FALSE(one.contains("note")) << one["note"];
    running[one["policy"]] = one["running"]["kld"]["mean"];
    copied[one["policy"]] = one["copy"]["kld"]["mean"];
  }
  EXPECT_EQ(units, (std::map<std::string, int>{{"document", 3}}));
  for (const auto& kld : {running, copied}) {
    EXPECT_LT(5 * kld.at("oracle+random+globalcut"), kld.at("random"));
    EXPECT_LT(5 * kld.at("rate_distortion(bits=6)"), kld.at("rate_distortion(bits=1)"));
  }
  for (const char* const wrong :
       {"rate_distortion(bits=0)", "rate_distortion(bits=17)", "rate_distortion(bits=x)",
        "rate_distortion(bits=2", "oracle+snapvk"}) {
    options_.policies = {wrong};
    EXPECT_THROW(Sweep{options_}, std::runtime_error) << wrong;
  }
}

TEST_F(SweepTest, AsksForTheLongestKeyThatTheExactCacheRepeats) {
  options_.policies = {"exact"};
  options_.pass_key_contexts = 0;
  options_.long_keys = {1, 2};
  Sweep(options_).run();
  for (const Json& one : records())
    if (one["unit"] == "long_keys_length") {
      int longest = 0;
      for (std::size_t i = 0; i < 2; ++i)
        if (one["found"][i] >= 4) longest = options_.long_keys[i];
      EXPECT_EQ(one["digits"], longest);
      return;
    }
  ADD_FAILURE() << "no record says how long keys may be";
}

TEST_F(SweepTest, WrongPoliciesAndTextsAreNamedBeforeAnythingRuns) {
  options_.policies = {"snapvk"};
  EXPECT_THROW(
      try { Sweep sweep(options_); } catch (const std::exception& error) {
        EXPECT_NE(std::string(error.what()).find("snapvk"), std::string::npos);
        throw;
      },
      std::runtime_error);
  options_.policies = {"exact"};
  options_.context = 1000;
  EXPECT_THROW(Sweep{options_}, std::runtime_error);
}

}  // namespace sweep_test
