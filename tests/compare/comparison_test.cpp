// SPDX-License-Identifier: MIT
#include "compare/comparison.hpp"

#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>

#include "support/npy.hpp"

namespace comparison_test {

using namespace compare;

const char* model_file() { return std::getenv("LESSKV_TEST_MODEL"); }

// The reference document as a file of token ids.
std::string text_file(const std::string& name, std::size_t tokens, int bad = 0) {
  const auto ids =
      support::load_npy<std::int32_t>(std::string(LESSKV_TEST_DATA) + "/model/token_ids.npy");
  std::vector<std::int32_t> out(
      ids.data.begin(),
      ids.data.begin() + static_cast<std::ptrdiff_t>(std::min(tokens, ids.data.size())));
  if (bad != 0) out[5] = bad;
  const std::string path =
      (std::filesystem::temp_directory_path() / ("lesskv_" + std::to_string(getpid()) + name))
          .string();
  std::ofstream(path, std::ios::binary)
      .write(reinterpret_cast<const char*>(out.data()),
             static_cast<std::streamsize>(4 * out.size()));
  return path;
}

Options options() {
  Options out;
  out.model = model_file();
  out.texts = {text_file("document.i32", 900)};
  out.policies = {"random", "snapkv", "keep(sinks=16)+lagkv(lag=64)",
                  "keep(tokens=200,sinks=4)+streamingllm", "store(dtype=bf16)+exact"};
  out.compressions = {2, 4};
  out.context = 512;
  out.score = 24;
  out.pass_key_contexts = 1;
  return out;
}

// Every default is a policy that a small model takes, and a composition of the bits meant for it
// stands at every compression.
TEST(DefaultPolicies, AreTakenAndCoverEveryCompression) {
  const lesskv::Shape shape{.layers = 30, .query_heads = 9, .kv_heads = 3, .head_dim = 64};
  for (const DefaultPolicy& one : default_policies(1)) {
    const Policy policy(one.text);
    EXPECT_NO_THROW(policy.check(shape)) << one.text;
  }
  for (const double compression : {1.5, 4.0, 6.0, 8.0, 12.0, 16.0, 40.0}) {
    int with_entropy = 0, singles = 0;
    for (const DefaultPolicy& one : default_policies(1)) {
      Policy policy(one.text);
      policy.above = one.above;
      policy.up_to = one.up_to;
      with_entropy += policy.runs_at(compression) && one.text.find("entropy") != std::string::npos;
      singles += policy.runs_at(compression) && policy.kind() == std::string("single");
    }
    EXPECT_EQ(with_entropy, 2) << compression;
    EXPECT_GE(singles, 8) << compression;
  }
}

TEST(DefaultPolicies, EndWithTheCompositions) {
  const std::vector<DefaultPolicy> all = default_policies(1), ours = compositions();
  ASSERT_GE(all.size(), ours.size());
  for (std::size_t i = 0; i < ours.size(); ++i) {
    const DefaultPolicy& one = all[all.size() - ours.size() + i];
    EXPECT_EQ(one.text, ours[i].text);
    EXPECT_EQ(one.above, ours[i].above);
    EXPECT_EQ(Policy(one.text).kind(), std::string("composition"));
  }
}

class ComparisonTest : public testing::Test {
 protected:
  void SetUp() override {
    if (!model_file()) GTEST_SKIP() << "LESSKV_TEST_MODEL names no model";
  }
};

const Row& find(const Report& report, const std::string& policy, double target = 0) {
  for (const Row& row : report.rows)
    if (row.policy == policy && (target == 0 || row.target == target)) return row;
  throw std::runtime_error("no row " + policy);
}

TEST_F(ComparisonTest, RowsSayWhatTheCachesDid) {
  const Report report = Comparison(options()).run();
  ASSERT_EQ(report.rows.size(), 1 + 3 * 2 + 2U);
  EXPECT_GT(report.prefill_ms, 0);

  const Row& exact = report.rows.front();
  EXPECT_EQ(exact.kind, "exact");
  EXPECT_EQ(exact.running().divergence.count(), 24);
  EXPECT_EQ(exact.copies().divergence.count(), 5 * 32);
  EXPECT_LT(exact.running().divergence.value(), 1e-6);
  EXPECT_LT(exact.copies().divergence.value(), 1e-6);
  EXPECT_NEAR(exact.footprint().compression(), 1, 2e-3);  // its books are a little larger
  // 30 layers, 3 KV heads, K and V of 64 channels in f16, and a little for positions.
  const double rows_only = 512.0 * 30 * 3 * 2 * 64 * 2;
  EXPECT_GT(static_cast<double>(exact.footprint().bytes), rows_only);
  EXPECT_LT(static_cast<double>(exact.footprint().bytes), 1.03 * rows_only);

  for (const double target : {2.0, 4.0})
    for (const char* policy : {"random", "snapkv"}) {
      const Row& row = find(report, policy, target);
      ASSERT_TRUE(row.measured()) << row.note;
      EXPECT_NE(row.mark(), '+');
      EXPECT_GT(row.footprint().compression(), target);
      EXPECT_LT(row.footprint().compression(), 1.35 * target);
      EXPECT_GT(row.running().divergence.value(), 1e-5);
      EXPECT_GT(*row.decode_tokens_per_s, 0);
      EXPECT_EQ(row.keys, exact.keys);
    }
  EXPECT_LT(find(report, "snapkv", 2).running().divergence.value(),
            find(report, "random", 2).running().divergence.value());

  // 16 sinks and at least two lags of 64 stay: 4x of 512 tokens cannot be.
  const Row& impossible = find(report, "keep(sinks=16)+lagkv(lag=64)", 4);
  EXPECT_FALSE(impossible.measured());
  EXPECT_NE(impossible.note.find("cannot get there"), std::string::npos);
  EXPECT_TRUE(find(report, "keep(sinks=16)+lagkv(lag=64)", 2).measured());

  const Row& given = find(report, "keep(tokens=200,sinks=4)+streamingllm");
  EXPECT_NEAR(given.footprint().kept_share, 200.0 / 512, 1e-9);
  EXPECT_NEAR(given.target, 512.0 / 200, 1e-9);

  const Row& other_type = find(report, "store(dtype=bf16)+exact");
  EXPECT_EQ(other_type.footprint().kept_share, 1);
  EXPECT_GT(other_type.running().divergence.value(), 1e-7);
  EXPECT_LT(other_type.running().divergence.value(), 1e-2);
}

TEST_F(ComparisonTest, CompositionsLayersAndDeletedHeads) {
  Options more = options();
  more.policies = {"compositions", "keep(tokens=60)+snapkv(window=8)+uncomp(weights=0:1:1)",
                   "delete_heads+keep(tokens=60)+snapkv(window=8)+uncomp(weights=0:1:1)"};
  more.compressions = {8};
  more.pass_key_contexts = 0;
  more.similarity = 0.95;
  const Report report = Comparison(more).run();
  int ours = 0;
  for (const DefaultPolicy& one : compositions()) ours += one.above < 8 && one.up_to >= 8;
  EXPECT_EQ(report.rows.size(), static_cast<std::size_t>(1 + ours + 2));
  const Row &without = find(report, more.policies[1]), &with = find(report, more.policies[2]);
  ASSERT_TRUE(with.measured()) << with.note;
  EXPECT_EQ(with.footprint().bytes, without.footprint().bytes);
  EXPECT_NE(with.running().divergence.value(), without.running().divergence.value());
  ASSERT_EQ(report.layers.lmba.size(), 30U);
  for (std::size_t l = 0; l < 30; ++l) {
    EXPECT_GE(report.layers.lmba[l], 1);
    EXPECT_LE(report.layers.lmba[l], 512);
    EXPECT_GE(report.layers.lmbo[l], 1);
    EXPECT_LE(report.layers.lmbo[l], 512);
  }
}

TEST_F(ComparisonTest, EveryDigitOfALongPassKeyCounts) {
  Options longer = options();
  longer.policies = {"keep(tokens=64)+streamingllm"};
  longer.pass_key_digits = 24;
  const Report report = Comparison(longer).run();
  EXPECT_TRUE(report.keys_are_digits);
  const Row& exact = report.rows.front();
  EXPECT_GT(exact.keys, 0);
  EXPECT_EQ(exact.keys % 24, 0);
  EXPECT_GE(10 * exact.keys_agnostic, 9 * exact.keys);
  // Most keys are gone; what is said then is right by chance, or nothing.
  const Row& few = find(report, "keep(tokens=64)+streamingllm");
  EXPECT_EQ(few.keys, exact.keys);
  EXPECT_LT(few.keys_agnostic, exact.keys_agnostic);
}

TEST_F(ComparisonTest, ThreadsChangeNoFigure) {
  Options one = options();
  one.texts.push_back(text_file("other.i32", 600));
  one.policies = {"random", "snapkv"};
  one.compressions = {4};
  one.context = 256;
  Options two = one;
  two.threads = 2;
  auto a = Comparison(one).run().json()["rows"], b = Comparison(two).run().json()["rows"];
  for (auto* rows : {&a, &b})
    for (auto& row : *rows) {
      row.erase("compress_ms");
      row.erase("decode_tokens_per_s");
    }
  EXPECT_EQ(a, b);
}

// Of every wrong input: one sentence that names it.
std::string error_of(const Options& wrong) {
  try {
    Comparison(wrong).run();
  } catch (const std::exception& error) {
    return error.what();
  }
  return "no error";
}

TEST_F(ComparisonTest, WrongInputIsNamed) {
  Options wrong = options();
  wrong.texts = {text_file("short.i32", 300)};
  EXPECT_NE(error_of(wrong).find("short.i32: it has 300 tokens"), std::string::npos)
      << error_of(wrong);
  wrong.texts = {text_file("beyond.i32", 900, 1 << 20)};
  EXPECT_NE(error_of(wrong).find("beyond.i32: token 5 is 1048576"), std::string::npos)
      << error_of(wrong);
  wrong.texts = {text_file("negative.i32", 900, -1)};
  EXPECT_NE(error_of(wrong).find("negative.i32: token 5 is -1"), std::string::npos)
      << error_of(wrong);
  wrong = options();
  std::filesystem::resize_file(wrong.texts[0], 1001);
  EXPECT_NE(error_of(wrong).find("multiple of 4"), std::string::npos) << error_of(wrong);
  wrong = options();
  wrong.texts = {"/nonexistent/text"};
  EXPECT_NE(error_of(wrong).find("/nonexistent/text: cannot be opened"), std::string::npos)
      << error_of(wrong);
  wrong = options();
  wrong.policies = {"lagkv(lag=0.5)"};
  EXPECT_NE(error_of(wrong).find("lag"), std::string::npos) << error_of(wrong);
  wrong.policies = {"nonesuch"};
  EXPECT_NE(error_of(wrong).find("nonesuch"), std::string::npos) << error_of(wrong);
  wrong = options();
  wrong.model = wrong.texts[0];
  EXPECT_NE(error_of(wrong).find("document.i32"), std::string::npos) << error_of(wrong);
}

}  // namespace comparison_test
