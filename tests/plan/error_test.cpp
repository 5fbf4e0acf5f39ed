// SPDX-License-Identifier: MIT
// Everything that can be wrong with a call: the message names the option or the file, the exit code
// is 1, nothing is printed, and nothing is written.
#include <cmath>
#include <limits>

#include "support.hpp"

namespace error_test {

using namespace support;

// Two heads of 40 tokens and 8 channels, four query heads; files of every kind beside them.
class Errors : public testing::Test {
 protected:
  static constexpr Index tokens = 40;

  Errors() {
    write_f32(file("k"), {2, tokens, 8}, normal(2 * tokens * 8, 1));
    write_f32(file("v"), {2, tokens, 8}, normal(2 * tokens * 8, 2));
    write_f32(file("q"), {4, tokens, 8}, normal(4 * tokens * 8, 3));
  }
  std::string file(const std::string& name) const { return folder / (name + ".npy"); }
  std::string tensor(const std::string& name, const std::vector<Index>& shape) const {
    Index n = 1;
    for (const Index axis : shape) n *= axis;
    write_f32(file(name), shape, normal(n, 4));
    return file(name);
  }
  // The arguments of a call that works, with some replaced; an empty value leaves an option out.
  using Options = std::vector<std::pair<std::string, std::string>>;
  std::vector<std::string> arguments(const Options& changes) const {
    Options all{{"--keys", file("k")},
                {"--values", file("v")},
                {"--policy", "keep(tokens=20)+keydiff"},
                {"--out", folder / "out"}};
    for (const auto& change : changes) {
      const auto same = [&](const auto& one) { return one.first == change.first; };
      all.erase(std::remove_if(all.begin(), all.end(), same), all.end());
      if (!change.second.empty()) all.push_back(change);
    }
    std::vector<std::string> out;
    for (const auto& [option, value] : all) out.push_back(option + "=" + value);
    return out;
  }
  void expect_error(const Options& changes, const std::vector<std::string>& texts) const {
    const Outcome outcome = call(arguments(changes));
    EXPECT_EQ(outcome.code, 1);
    EXPECT_EQ(outcome.out, "");
    for (const std::string& text : texts)
      EXPECT_NE(outcome.error.find(text), std::string::npos) << text << "\n" << outcome.error;
    EXPECT_FALSE(fs::exists(folder / "out")) << outcome.error;
  }
  void expect_bad_file(const std::string& bytes, const std::string& text) const {
    write_bytes(file("bad"), bytes);
    for (const char* option : {"--keys", "--values", "--queries", "--attention"})
      expect_error({{option, file("bad")}}, {file("bad"), text});
  }

  Folder folder;
};

TEST_F(Errors, TheCallThatTheOthersChangeWorks) {
  const Outcome outcome = call(arguments({}));
  EXPECT_EQ(outcome.code, 0) << outcome.error;
  EXPECT_TRUE(fs::exists(folder / "out/kept_l00_h1.npy"));
}

TEST_F(Errors, OptionsThatAreMissingOrUnknown) {
  expect_error({{"--policy", ""}}, {"--policy"});
  expect_error({{"--keys", ""}}, {"--keys", "missing"});
  expect_error({{"--values", ""}}, {"--values", "missing"});
  expect_error({{"--valeus", "x"}}, {"--valeus"});
  expect_error({{"--queries", file("q")}, {"--attention", file("q")}},
               {"--attention", "--queries"});
  for (const char* scale : {"-1", "nan", "inf", "large"})
    expect_error({{"--scale", scale}}, {"--scale"});
}

TEST_F(Errors, Policies) {
  expect_error({{"--policy", "keep(tokens=20)+snapvk"}}, {"--policy", "snapvk", "snapkv"});
  expect_error({{"--policy", "keydiff"}}, {"--policy", "keep(fraction="});
  expect_error({{"--policy", "keep(fraction=0.5)"}}, {"--policy", "which rows"});
  expect_error({{"--policy", "keep(fraction=0.5)+keydiff+centroids"}}, {"--policy", "new rows"});
  expect_error({{"--policy", "keep(fraction=2)+keydiff"}}, {"--policy", "Keep::fraction"});
  expect_error({{"--policy", "keep(tokens=10)+lagkv(lag=8)"}}, {"--policy", "Keep::"});
  expect_error({{"--policy", "keep(tokens=1,recent=2)+keydiff"}}, {"--policy", "Keep::tokens"});
  expect_error({{"--policy", "keep(fraction=0.5)+lagkv(lag=0)"}}, {"--policy", "LagKV::lag"});
  expect_error({{"--policy", "keep(fraction=0.5)+keydiff+table(shares=1:2:3)"}},
               {"--policy", "TableBudget::shares"});
}

TEST_F(Errors, PoliciesThatLookAtQueriesThatAreNotThere) {
  expect_error({{"--policy", "keep(tokens=20)+snapkv(window=8)"}}, {"--queries", "snapkv", "8"});
  const std::string few = tensor("few", {4, 6, 8});
  expect_error({{"--policy", "keep(tokens=20)+snapkv(window=8)"}, {"--queries", few}},
               {few, "6 queries", "newest 8"});
  expect_error({{"--policy", "keep(tokens=20)+h2o"}, {"--queries", few}},
               {few, "6 queries", "newest 40"});
  // A sequence shorter than the window asks for what there is.
  EXPECT_EQ(
      call(arguments({{"--policy", "keep(tokens=70)+snapkv(window=64)"}, {"--queries", file("q")}}))
          .code,
      0);
}

TEST_F(Errors, FilesThatAreNotThere) {
  for (const char* option : {"--keys", "--values", "--queries", "--attention"})
    expect_error({{option, file("none")}}, {file("none"), "no such file"});
}

TEST_F(Errors, FilesThatAreBroken) {
  const std::string data(2 * 40 * 8 * 4, '\0'), good = npy_bytes("<f4", {2, 40, 8}, data);
  expect_bad_file("", "too short");
  expect_bad_file("this is text, not a tensor", "not a .npy file");
  expect_bad_file(good.substr(0, 40), "header is cut off");
  expect_bad_file(good.substr(0, good.size() - 1), "bytes of data");
  expect_bad_file(good + "x", "bytes of data");
  std::string version = good;
  version[6] = 9;
  expect_bad_file(version, "version 9");
  expect_bad_file(npy_bytes("<f8", {2, 20, 8}, data), "'<f8'");
  expect_bad_file(npy_bytes(">f4", {2, 40, 8}, data), "'>f4'");
  expect_bad_file(npy_bytes("<f4", {2, 40, 8}, data, true), "Fortran");
  expect_bad_file(npy_bytes("<f4", {80, 8}, data), "[80, 8]");
  expect_bad_file(npy_bytes("<f4", {2, 0, 8}, ""), "empty");
  expect_bad_file(npy_bytes("<f4", {1 << 20, 1 << 20, 1 << 20}, data), "too large");
  expect_bad_file(npy_bytes("<f4", {-2, -40, 8}, data), "shape");
  std::string no_shape = good;
  no_shape.replace(no_shape.find("shape"), 5, "shop!");
  expect_bad_file(no_shape, "no 'shape'");
}

TEST_F(Errors, NumbersThatAreNone) {
  for (const float bad : {NAN, INFINITY, -INFINITY}) {
    std::vector<float> x = normal(2 * tokens * 8, 5);
    x[std::size_t(1 * tokens + 3) * 8 + 2] = bad;
    write_f32(file("bad"), {2, tokens, 8}, x);
    for (const char* option : {"--keys", "--values", "--queries"})
      expect_error({{option, file("bad")}}, {file("bad"), "[1, 3, 2]", "NaN or infinite"});
  }
}

TEST_F(Errors, NumbersTooLargeForTheStorage) {
  std::vector<float> x = normal(2 * tokens * 8, 5);
  x[8] = 70000;
  write_f32(file("large"), {2, tokens, 8}, x);
  expect_error({{"--keys", file("large")}},
               {file("large"), "[0, 1, 0]", "f16", "store(dtype=f32)"});
  expect_error({{"--values", file("large")}}, {file("large"), "too large for f16"});
  EXPECT_EQ(call(arguments({{"--keys", file("large")},
                            {"--policy", "keep(tokens=20)+keydiff+store(dtype=f32)"}}))
                .code,
            0);
}

TEST_F(Errors, ShapesThatDoNotBelongTogether) {
  expect_error({{"--values", tensor("a", {1, tokens, 8})}}, {file("a"), file("k"), "1 heads"});
  expect_error({{"--values", tensor("b", {2, tokens - 1, 8})}},
               {file("b"), file("k"), "39 tokens"});
  expect_error({{"--queries", tensor("c", {3, tokens, 8})}}, {file("c"), "3 query heads"});
  expect_error({{"--queries", tensor("d", {1, tokens, 8})}}, {file("d"), "1 query heads"});
  expect_error({{"--queries", tensor("e", {258, 1, 8})}}, {file("e"), "1 to 128"});
  expect_error({{"--queries", tensor("f", {4, tokens + 1, 8})}}, {file("f"), "41 queries"});
  expect_error({{"--queries", tensor("g", {4, tokens, 9})}}, {file("g"), "9 channels"});
  expect_error({{"--attention", tensor("h", {4, 2, tokens - 1})}}, {file("h"), "39"});
}

TEST_F(Errors, AttentionThatIsNoSoftmax) {
  std::vector<float> even(4 * 8 * tokens, 1.f / tokens);
  const auto expect = [&](const std::string& text) {
    write_f32(file("a"), {4, 8, tokens}, even);
    expect_error({{"--attention", file("a")}, {"--policy", "keep(tokens=20)+tova"}},
                 {file("a"), text});
  };
  even[std::size_t(2 * 8 + 5) * tokens] += 0.2f;
  expect("query head 2, query 5");
  even[std::size_t(2 * 8 + 5) * tokens] -= 0.2f;
  even[std::size_t(1 * 8 + 7) * tokens] -= 0.1f;
  even[std::size_t(1 * 8 + 7) * tokens + 1] += 0.1f;
  expect("query head 1, query 7");
}

TEST_F(Errors, Folders) {
  const auto put = [&](const std::string& name, Index rows) {
    write_f32(folder / name, {2, rows, 8}, normal(2 * rows * 8, 6));
  };
  put("two/l00.npy", tokens);
  put("two/l01.npy", tokens);
  put("gap/l00.npy", tokens);
  put("gap/l02.npy", tokens);
  put("uneven/l00.npy", tokens);
  put("uneven/l01.npy", tokens - 1);
  put("other/k_l00.npy", tokens);
  fs::create_directories(folder / "empty");
  expect_error({{"--keys", folder / "empty"}}, {"--keys", folder / "empty", "no .npy"});
  expect_error({{"--values", folder / "gap"}}, {"--values", folder / "gap", "l01.npy"});
  expect_error({{"--keys", folder / "other"}}, {"--keys", "l00.npy"});
  expect_error({{"--keys", folder / "two"}}, {"--values", "1 layers", "2"});
  expect_error({{"--values", folder / "two"}}, {"--values", "2 layers", "1"});
  expect_error({{"--keys", folder / "uneven"}, {"--values", folder / "two"}},
               {(folder / "uneven") + "/l01.npy", "39"});
}

TEST_F(Errors, OutThatCannotBeWritten) {
  write_bytes(folder / "text", "a file");
  for (const std::string& out : {folder / "text", folder / "text/inside"}) {
    const Outcome outcome = call(arguments({{"--out", out}}));
    EXPECT_EQ(outcome.code, 1);
    EXPECT_EQ(outcome.out, "");
    EXPECT_NE(outcome.error.find("--out " + out), std::string::npos) << outcome.error;
  }
  EXPECT_EQ(read_bytes(folder / "text"), "a file");
}

// A folder lies where the last file has to go: what an earlier plan wrote is still there, whole.
TEST_F(Errors, AFailedWriteLeavesOldFilesAsTheyWere) {
  const std::string out = folder / "kept";
  write_bytes(out + "/kept_l00_h0.npy", "from an earlier plan");
  fs::create_directories(out + "/kept_l00_h1.npy");
  const Outcome outcome = call(arguments({{"--out", out}}));
  EXPECT_EQ(outcome.code, 1);
  EXPECT_NE(outcome.error.find(out + "/kept_l00_h1.npy"), std::string::npos) << outcome.error;
  EXPECT_EQ(read_bytes(out + "/kept_l00_h0.npy"), "from an earlier plan");
  EXPECT_EQ(std::distance(fs::directory_iterator(out), fs::directory_iterator()), 2);
}

}  // namespace error_test
