// SPDX-License-Identifier: MIT
// Calibration files: written and read back, and every way in which one can be damaged.
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <lesskv/any.hpp>

namespace calibration_test {

using namespace lesskv;

template <class F>
std::string error_of(F&& f) {
  try {
    f();
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}
void expect_error(const std::string& text, const std::string& part) {
  EXPECT_NE(text.find(part), std::string::npos) << "'" << text << "' has no '" << part << "'";
}

const Shape shape{.layers = 2, .query_heads = 4, .kv_heads = 2, .head_dim = 16};

Calibration sample() {
  Calibration out{.model = "a model.gguf",
                  .layers = 2,
                  .query_heads = 4,
                  .kv_heads = 2,
                  .head_dim = 16,
                  .tokens = 4096,
                  .truncation = 4};
  out.tables.push_back({"entropy_queries", 2, 4, {1, 1.25, 2, 2.5, 0.1, 1e-9, 1.0 / 3, 0}});
  out.tables.push_back({"shares", 2, 2, {1, 2, 3, 4}});
  return out;
}

class TemporaryFile {
 public:
  explicit TemporaryFile(const std::string& text) {
    static int count = 0;
    path_ = (std::filesystem::temp_directory_path() /
             ("lesskv_calibration_" + std::to_string(getpid()) + "_" + std::to_string(count++)))
                .string();
    std::ofstream(path_, std::ios::binary) << text;
  }
  ~TemporaryFile() { std::filesystem::remove(path_); }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

TEST(Calibration, IsReadBackAsItWasWritten) {
  const Calibration want = sample();
  const TemporaryFile file("");
  want.save(file.path());
  const Calibration got = Calibration::load(file.path());
  EXPECT_EQ(got.model, want.model);
  EXPECT_EQ(got.layers, 2);
  EXPECT_EQ(got.query_heads, 4);
  EXPECT_EQ(got.kv_heads, 2);
  EXPECT_EQ(got.head_dim, 16);
  EXPECT_EQ(got.tokens, 4096);
  EXPECT_EQ(got.truncation, 4);
  ASSERT_EQ(got.tables.size(), 2u);
  for (std::size_t t = 0; t < 2; ++t) {
    EXPECT_EQ(got.tables[t].name, want.tables[t].name);
    EXPECT_EQ(got.tables[t].rows, want.tables[t].rows);
    EXPECT_EQ(got.tables[t].columns, want.tables[t].columns);
    ASSERT_EQ(got.tables[t].values.size(), want.tables[t].values.size());
    for (std::size_t i = 0; i < want.tables[t].values.size(); ++i)
      EXPECT_NEAR(got.tables[t].values[i], want.tables[t].values[i],
                  1e-8 * want.tables[t].values[i]);
  }
  EXPECT_EQ(got.to_text(), want.to_text());
  // The checksum of zlib.
  EXPECT_EQ(detail::crc32("123456789"), 0xcbf43926u);
}

TEST(Calibration, EveryDamagedByteAndEveryCutIsAnError) {
  const std::string text = sample().to_text();
  for (std::size_t i = 0; i < text.size(); ++i) {
    std::string damaged = text;
    damaged[i] = static_cast<char>(damaged[i] ^ 4);
    expect_error(error_of([&] { Calibration::parse(damaged, "a.calibration"); }),
                 "calibration file 'a.calibration'");
    expect_error(error_of([&] { Calibration::parse(text.substr(0, i), "a.calibration"); }),
                 "calibration file 'a.calibration'");
  }
  EXPECT_EQ(error_of([&] { Calibration::parse(text, "a.calibration"); }), "");
}

// A file that somebody wrote with a checksum that fits.
std::string sealed(const std::string& body) {
  char sum[24];
  std::snprintf(sum, sizeof sum, "crc32 %08x\n", unsigned{detail::crc32(body)});
  return body + sum;
}
TEST(Calibration, HostileFilesAreErrors) {
  const std::string head =
      "lesskv-calibration 1\nmodel m\nlayers 2\nquery_heads 4\nkv_heads 2\nhead_dim 16\ntokens "
      "9\ntruncation 4\n";
  const auto error = [&](const std::string& body) {
    return error_of([&] { Calibration::parse(sealed(body), "f"); });
  };
  EXPECT_EQ(error(head), "");
  expect_error(error("lesskv-calibration 2\nmodel m\n"), "it has version 2");
  expect_error(error("something else\n"), "it is not a calibration file");
  expect_error(error("lesskv-calibration 1\nmodel m\nheads 2\n"), "'layers' is missing");
  expect_error(error("lesskv-calibration 1\nmodel m\nlayers -2\n"), "layers is '-2'");
  expect_error(error("lesskv-calibration 1\nmodel m\nlayers 2x\n"), "layers is '2x'");
  expect_error(error(head + "table t 16777216 16777216\n1\n"), "table 't' is larger than the file");
  expect_error(error(head + "table t 2 2\n1 2 3\n"), "table 't' has ''");
  expect_error(error(head + "table t 2 2\n1 2 3 nan\n"), "table 't' has 'nan'");
  expect_error(error(head + "table t 2 2\n1 2 3 1e999\n"), "table 't' has '1e999'");
  expect_error(error(head + "table t 1 1\n1 2\n"), "'table' is missing before '2'");
  expect_error(error_of([] { Calibration::load("/nowhere/x"); }),
               "calibration file '/nowhere/x': it cannot be opened");
  expect_error(error_of([] { sample().save("/nowhere/x"); }), "it cannot be created");
}

TEST(Calibration, BudgetsReadItInTheTextForm) {
  const TemporaryFile file(sample().to_text());
  const std::string at = "=" + file.path() + ")";
  for (const std::string& method : {"table(file" + at, "uncomp(table" + at, "entropy(table" + at}) {
    AnyCache cache = make_cache("keep(fraction=0.5)+keynorm+" + method, shape);
    EXPECT_FALSE(AnyCache(cache).shape().layers != 2);
    const Matrix rows = Matrix::Random(200, 32);
    for (int l = 0; l < 2; ++l)
      cache.append(l, View::packed(rows.data(), 200, 2, 16), View::packed(rows.data(), 200, 2, 16));
    cache.compress();  // nothing was observed, and nothing has to be
    EXPECT_EQ(cache.stats().held, 400) << method;
    // Entropies of the KV heads: 1.125, 2.25, .05, .167; shares 1 to 4.
    if (method[0] == 't') {
      EXPECT_EQ(cache.size(1, 1), 160);
    } else {
      EXPECT_LT(cache.size(0, 0), cache.size(0, 1)) << method;
      EXPECT_LT(cache.size(1, 0), cache.size(1, 1)) << method;
    }
  }
  expect_error(error_of([&] { make_cache("keep(fraction=0.5)+keynorm+table(file=/none)", shape); }),
               "'/none'");
  const TemporaryFile damaged(sample().to_text().substr(3));
  expect_error(error_of([&] {
                 make_cache("keep(fraction=0.5)+keynorm+uncomp(table=" + damaged.path() + ")",
                            shape);
               }),
               damaged.path());
  // Of another model.
  Shape other = shape;
  other.layers = 3;
  expect_error(
      error_of([&] { make_cache("keep(fraction=0.5)+keynorm+entropy(table" + at, other); }),
      "EntropyWeight::table: calibration file '" + file.path() +
          "' is of a model with 2 layers and 4 heads");
  expect_error(error_of([&] { make_cache("keep(fraction=0.5)+keynorm+table(file" + at, other); }),
               "TableBudget::file");
  expect_error(error_of([&] {
                 make_cache("keep(fraction=0.5)+keynorm+uncomp(truncation=5,table" + at, shape);
               }),
               "was made with 4");
  expect_error(
      error_of([&] { make_cache("keep(fraction=0.5)+keynorm+uncomp(of=keys,table" + at, shape); }),
      "no table 'entropy_keys'");
  expect_error(error_of([&] { make_cache("keep(fraction=0.5)+keynorm+uncomp(of=rows)", shape); }),
               "none of queries, keys, values");
}

}  // namespace calibration_test
