// SPDX-License-Identifier: MIT
// calibrate on the default model and the reference document, against the reference entropies.
#include "calibrate/calibrate.hpp"

#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <fstream>

#include "support/npy.hpp"

namespace calibrate_test {

class CalibrateTest : public testing::Test {
 protected:
  void SetUp() override {
    if (!std::getenv("LESSKV_TEST_MODEL")) GTEST_SKIP() << "LESSKV_TEST_MODEL names no model";
  }
};

// The token ids of the test data as a file; the caller removes it.
std::string write_text() {
  const auto ids =
      support::load_npy<std::int32_t>(std::string(LESSKV_TEST_DATA) + "/inputs/token_ids.npy");
  const std::string text =
      (std::filesystem::temp_directory_path() / ("lesskv_" + std::to_string(getpid()) + ".i32"))
          .string();
  std::ofstream(text, std::ios::binary)
      .write(reinterpret_cast<const char*>(ids.data.data()),
             static_cast<std::streamsize>(4 * ids.data.size()));
  return text;
}

TEST_F(CalibrateTest, EntropiesOfAllLayersAreThoseOfTheReference) {
  const std::string data = LESSKV_TEST_DATA;
  const std::string text = write_text();
  calibrate::Options options;
  options.model = std::getenv("LESSKV_TEST_MODEL");
  options.texts = {text};
  options.context = 1024;
  const calibrate::Result result = calibrate::run(options);
  std::filesystem::remove(text);
  EXPECT_EQ(result.file.layers, 30);
  EXPECT_EQ(result.file.truncation, 16);
  // The engine multiplies in f32 and 8 bits, the reference in f32: entropies move by less than
  // they differ between heads (.1 to .2).
  for (const auto& [table, file] :
       {std::pair<const char*, const char*>{"entropy_queries", "H_16_q"},
        {"entropy_keys", "H_16_k"},
        {"entropy_values", "H_16_v"},
        {"full_entropy_queries", "H_full_q"}}) {
    const auto want = support::load_npy<float>(data + "/uncomp/" + file + ".npy");
    const lesskv::Calibration::Table* got = result.file.find(table);
    ASSERT_TRUE(got);
    ASSERT_EQ(got->values.size(), want.data.size());
    double largest = 0;
    for (std::size_t i = 0; i < want.data.size(); ++i)
      largest = std::max(largest, std::abs(got->values[i] - double{want.data[i]} * std::log(64.0)));
    EXPECT_LT(largest, 0.02) << table;
  }
  const lesskv::Calibration::Table* shares = result.file.find("shares");
  ASSERT_TRUE(shares);
  EXPECT_EQ(shares->values.size(), 90u);
  EXPECT_NE(calibrate::summary(result).find("correlation"), std::string::npos);
}

// The table of shares by replay: counts of rows, of a cut over all heads.
TEST_F(CalibrateTest, SharesOfAReplay) {
  const std::string text = write_text();
  calibrate::Options options;
  options.model = std::getenv("LESSKV_TEST_MODEL");
  options.texts = {text};
  options.context = 512;
  options.kept = 0.25;
  const calibrate::Result result = calibrate::run(options);
  std::filesystem::remove(text);
  const lesskv::Calibration::Table* shares = result.file.find("shares");
  ASSERT_TRUE(shares);
  ASSERT_EQ(shares->values.size(), 90u);
  double sum = 0, least = 512, most = 0;
  for (const double rows : shares->values) {
    sum += rows;
    least = std::min(least, rows);
    most = std::max(most, rows);
  }
  EXPECT_EQ(sum, 90 * 127);  // a quarter of the 508 behind the sinks
  EXPECT_LT(least, 60);      // heads differ
  EXPECT_GT(most, 250);
}

TEST_F(CalibrateTest, BadOptions) {
  calibrate::Options options;
  options.model = std::getenv("LESSKV_TEST_MODEL");
  options.texts = {std::string(LESSKV_TEST_DATA) + "/inputs/token_ids.npy"};  // not .i32: text
  options.context = 100;
  try {
    calibrate::run(options);
    FAIL();
  } catch (const std::exception& error) {
    EXPECT_NE(std::string(error.what()).find("--context 100"), std::string::npos);
  }
}

}  // namespace calibrate_test
