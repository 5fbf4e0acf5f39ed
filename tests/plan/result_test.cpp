// SPDX-License-Identifier: MIT
// What the program says beside the rows: budgets, bytes, the error of the storage type.
#include <cmath>

#include "support.hpp"

namespace result_test {

using namespace support;

constexpr Index tokens = 200;

// Two layers of 2 heads, keys of 16 and values of 24 channels.
struct Model {
  Folder folder;
  plan::Paths paths{folder / "k", folder / "v", "", ""};
  std::vector<std::vector<float>> keys, values;

  Model() {
    for (unsigned l = 0; l < 2; ++l) {
      const std::string file = "/l0" + std::to_string(l) + ".npy";
      keys.push_back(normal(2 * tokens * 16, 2 * l));
      values.push_back(normal(2 * tokens * 24, 2 * l + 1));
      write_f32(paths.keys + file, {2, tokens, 16}, keys.back());
      write_f32(paths.values + file, {2, tokens, 24}, values.back());
    }
  }
  plan::Result run(const std::string& policy) const {
    return plan::run(plan::read_tensors(paths), plan::parse_policy(policy));
  }
};

Index total(const plan::Result& result) {
  Index sum = 0;
  for (const plan::HeadResult& head : result.heads) sum += static_cast<Index>(head.kept.size());
  return sum;
}

TEST(Result, BudgetsAddUpAndATableMovesThem) {
  const Model model;
  for (const char* shares : {"1:3", "1:2:3:4", "0:1"}) {
    const plan::Result result =
        model.run(std::string("keep(tokens=50)+keydiff+table(shares=") + shares + ")");
    EXPECT_EQ(total(result), 200) << shares;
    EXPECT_LT(result.heads[0].kept.size(), result.heads[3].kept.size()) << shares;
  }
  const plan::Result even = model.run("keep(fraction=0.3,sinks=10)+keynorm");
  for (const plan::HeadResult& head : even.heads) EXPECT_EQ(head.kept.size(), 10u + 57u);
  EXPECT_TRUE(even.judged);
}

TEST(Result, BytesAreThoseOfTheRows) {
  const Model model;
  for (const auto& [dtype, size] : {std::pair<const char*, std::size_t>{"f32", 4}, {"bf16", 2}}) {
    const plan::Result result =
        model.run(std::string("keep(bytes=10000)+random+store(dtype=") + dtype + ")");
    EXPECT_EQ(result.bytes(1), 40 * size);
    EXPECT_LE(result.bytes(static_cast<std::size_t>(total(result))), 10000u);
    EXPECT_GT(result.bytes(static_cast<std::size_t>(total(result)) + 1), 10000u);
  }
}

TEST(Result, ErrorIsThatOfStoringTheKeptRows) {
  const Model model;
  for (const std::string dtype : {"f32", "f16", "bf16"}) {
    const plan::Result result = model.run("keep(tokens=40)+keynorm+store(dtype=" + dtype + ")");
    for (const plan::HeadResult& head : result.heads) {
      double error = 0, square = 0;
      for (const std::int32_t row : head.kept)
        for (Index c = 0; c < 16; ++c) {
          const float x =
              model.keys[std::size_t(head.layer)][std::size_t((head.head * tokens + row) * 16 + c)];
          const float y = dtype == "f16"    ? to_float(to_f16(x))
                          : dtype == "bf16" ? to_float(to_bf16(x))
                                            : x;
          error += std::pow(double{x} - double{y}, 2);
          square += std::pow(double{x}, 2);
        }
      EXPECT_DOUBLE_EQ(head.key_error, error / square);
      // A step of 2^-p of the power of two below x makes errors of step^2 / 12 on average, and x is
      // one to two times that power: with p = 10 or 7, between 2^-2p / 48 and 2^-2p / 12 of x^2.
      const double square_step = dtype == "f16" ? std::exp2(-20) : std::exp2(-14);
      if (dtype == "f32") {
        EXPECT_EQ(head.value_error, 0);
      } else {
        EXPECT_GT(head.value_error, square_step / 48);
        EXPECT_LT(head.value_error, square_step / 12);
      }
    }
  }
}

TEST(Result, TheTableNamesEverything) {
  const Model model;
  const Outcome outcome = call({"--keys", model.paths.keys, "--values", model.paths.values,
                                "--policy", "keep(tokens=40)+streamingllm+store(dtype=bf16)"});
  EXPECT_EQ(outcome.code, 0) << outcome.error;
  EXPECT_EQ(outcome.error, "");
  for (const char* text : {"keep(tokens=40,sinks=4)+streamingllm+store(dtype=bf16)", "2 layers",
                           "2 KV heads", "keys of 16 and values of 24", "K NMSE", "V NMSE",
                           "as bf16", "40 of 200", "20.0", "160 of 800", "64000", "12800"})
    EXPECT_NE(outcome.out.find(text), std::string::npos) << text << "\n" << outcome.out;
  EXPECT_EQ(outcome.out.find("No row was judged"), std::string::npos);
}

TEST(Result, ShortInputsSayThatNothingWasJudged) {
  const Model model;
  const Outcome outcome = call({"--keys", model.paths.keys, "--values", model.paths.values,
                                "--policy", "keep(fraction=0.1)+lagkv(lag=128)"});
  EXPECT_EQ(outcome.code, 0) << outcome.error;
  EXPECT_NE(outcome.out.find("200 of 200"), std::string::npos);
  EXPECT_NE(outcome.out.find("No row was judged"), std::string::npos);
}

TEST(Result, ExactKeepsEverything) {
  const plan::Result result = Model().run("exact");
  EXPECT_EQ(total(result), 4 * tokens);
  EXPECT_EQ(result.policy, "exact");
}

TEST(Program, ListsEveryMethodAndHelps) {
  const Outcome list = call({"--policy", "list"});
  EXPECT_EQ(list.code, 0);
  for (const MethodInfo& method : list_methods())
    EXPECT_NE(list.out.find("\n" + method.name + ": "), std::string::npos) << method.name;
  EXPECT_NE(list.out.find("lag=128"), std::string::npos);
  EXPECT_NE(list.out.find("sinks=16"), std::string::npos);
  const Outcome help = call({"--help"});
  EXPECT_EQ(help.code, 0);
  EXPECT_NE(help.out.find("--attention"), std::string::npos);
}

}  // namespace result_test
