// SPDX-License-Identifier: MIT
// The command line: every wrong option ends the program with one message that names it, before
// anything takes time, and nothing is written.
#include "compare/program.hpp"

#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>

#include "support/call.hpp"
#include "support/npy.hpp"

namespace program_test {

namespace fs = std::filesystem;
using support::Outcome;

Outcome call(const std::vector<std::string>& arguments) {
  return support::call(compare::program, arguments);
}
void expect_error(const std::vector<std::string>& arguments,
                  const std::vector<std::string>& texts) {
  const Outcome outcome = call(arguments);
  EXPECT_EQ(outcome.code, 1);
  EXPECT_EQ(outcome.out, "");
  for (const std::string& text : texts)
    EXPECT_NE(outcome.error.find(text), std::string::npos) << text << "\n" << outcome.error;
}

TEST(Program, ListAndHelpNeedNothingElse) {
  for (const std::vector<std::string>& arguments : {std::vector<std::string>{"--policy", "list"},
                                                    {"--policy=list"},
                                                    {"--seed", "1", "--policy", "list"}}) {
    const Outcome list = call(arguments);
    EXPECT_EQ(list.code, 0);
    for (const char* text : {"lagkv", "lag=128", "published pins: sinks=16", "table",
                             "shared=", "delete_heads", "compositions"})
      EXPECT_NE(list.out.find(text), std::string::npos) << text;
  }
  const Outcome help = call({"--help"});
  EXPECT_EQ(help.code, 0);
  for (const char* text :
       {"--model", "--text", "--context", "--score", "--policy", "--compression", "--passkey",
        "--threads", "--seed", "--lmbo", "--json", "--sweep", "--needles", "--long-keys"})
    EXPECT_NE(help.out.find(text), std::string::npos) << text;
}

TEST(Program, FilesThatAreNotThereOrNoModels) {
  const fs::path folder =
      fs::temp_directory_path() / ("lesskv compare " + std::to_string(getpid()));
  fs::create_directories(folder);
  const std::string text = (folder / "a text.txt").string(), empty = (folder / "empty").string();
  std::ofstream(text) << "no model";
  std::ofstream(empty).close();
  expect_error({"--text", text}, {"--model"});
  expect_error({"--model", text}, {"--text"});
  expect_error({"--model", "/none.gguf", "--text", text}, {"--model", "/none.gguf"});
  expect_error({"--model", text, "--text", "/none.txt"}, {"--text", "/none.txt"});
  expect_error({"--model", text, "--text", text}, {text, "GGUF"});
  expect_error({"--model", empty, "--text", text}, {empty, "empty"});
  expect_error({"--model", text, "--text", text, "--json", "/none/rows.json"},
               {"--json", "/none/rows.json"});
  const std::string json = (folder / "rows.json").string();
  expect_error({"--model", text, "--text", text, "--json", json}, {"GGUF"});
  EXPECT_FALSE(fs::exists(json));
  fs::remove_all(folder);
}

TEST(Program, NumbersOutOfRangeAreNamed) {
  const std::string self = "/proc/self/exe";
  for (const auto& [option, values] : std::vector<std::pair<std::string, std::vector<std::string>>>{
           {"--context", {"1", "127", "-1", "many", "1e9"}},
           {"--score", {"0", "-3", "x"}},
           {"--compression", {"0", "0.5", "-2", "x"}},
           {"--passkey", {"-1", "x"}},
           {"--threads", {"0", "-1", "x"}},
           {"--seed", {"-1", "x"}},
           {"--lmbo", {"0", "1.1", "-1", "x"}},
           {"--needles", {"0", "21", "x"}},
           {"--long-keys", {"-1", "65", "x"}},
           {"--none", {"1"}}})
    for (const std::string& value : values)
      expect_error({"--model", self, "--text", self, option, value}, {option});
}

// What only the model tells: its shape, and that it can be read.
TEST(ProgramWithModel, PoliciesAreCheckedBeforeAnythingRuns) {
  const char* const model = std::getenv("LESSKV_TEST_MODEL");
  if (!model) GTEST_SKIP() << "LESSKV_TEST_MODEL names no model";
  const std::string text =
      (fs::temp_directory_path() / ("lesskv_" + std::to_string(getpid()) + "_program.i32"))
          .string();
  std::ofstream(text, std::ios::binary) << std::string(4 * 5000, '\0');
  for (const auto& [policy, part] : std::vector<std::pair<std::string, std::string>>{
           {"", "empty"},
           {"keep(fraction=2)+snapkv", "Keep::fraction"},
           {"keep(fraction=-0.5)+snapkv", "Keep::fraction"},
           {"keep(fraction=nan)+snapkv", "Keep::fraction"},
           {"keep(tokens=-1)+lagkv", "Keep::tokens"},
           {"keep(fraction=0.5,tokens=9)+keydiff", "Keep"},
           {"keep(tokens=9,bytes=9)+keydiff", "Keep"},
           {"keep(every=0)+keydiff", "Keep::every"},
           {"keep(bytes=17179869184G)+keydiff", "bytes"},
           {"lagkv(lag=0)", "LagKV::lag"},
           {"snapkv(pool=4)", "SnapKV::pool"},
           {"lagkv+table(shares=1:2)", "TableBudget::shares"},
           {"snapvk", "snapkv"},
           {"delete_heads+keep(fraction=0.5)+snapvk", "snapkv"},
           {"keep(fraction=0.5)", "which rows"}})
    expect_error({"--model", model, "--text", text, "--policy", policy},
                 {"--policy '" + policy + "'", part});
  expect_error({"--model", model, "--text", text, "--compression", "nan"}, {"--compression"});
  expect_error({"--model", model, "--text", text, "--context", "9000"},
               {text, "5000 tokens", "--context 9000"});
  fs::remove(text);
}

// A limit that is too small is no error: the row says so. (The whole of a small comparison.)
TEST(ProgramWithModel, ABudgetThatIsTooSmallIsARowThatSaysSo) {
  const char* const model = std::getenv("LESSKV_TEST_MODEL");
  if (!model) GTEST_SKIP() << "LESSKV_TEST_MODEL names no model";
  const fs::path folder = fs::temp_directory_path() / ("lesskv small " + std::to_string(getpid()));
  fs::create_directories(folder);
  const std::string text = (folder / "a text.i32").string(),
                    json = (folder / "the rows.json").string();
  const auto ids =
      support::load_npy<std::int32_t>(std::string(LESSKV_TEST_DATA) + "/model/token_ids.npy");
  std::ofstream(text, std::ios::binary)
      .write(reinterpret_cast<const char*>(ids.data.data()), 4 * 200);
  const Outcome outcome = call({"--model",   model,
                                "--text",    text,
                                "--context", "128",
                                "--score",   "4",
                                "--passkey", "0",
                                "--policy",  "keep(tokens=10)+lagkv",
                                "--policy",  "keep(tokens=10)+snapkv",
                                "--policy",  "keep(tokens=64)+keydiff",
                                "--json",    json,
                                "--threads", "1"});
  EXPECT_EQ(outcome.code, 0) << outcome.error;
  for (const char* part : {"cannot get there", "Keep::tokens", "a text", "exact"})
    EXPECT_NE(outcome.out.find(part), std::string::npos) << part << "\n" << outcome.out;
  std::ifstream file(json);
  const std::string rows{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
  EXPECT_NE(rows.find("\"policy\": \"keep(tokens=64)+keydiff\""), std::string::npos);
  fs::remove_all(folder);
}

}  // namespace program_test
