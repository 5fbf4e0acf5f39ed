// SPDX-License-Identifier: MIT
// Records on file: what was written is found again, by another program as well; a line that was cut
// off is dropped; any other damage is an error that names the line.
#include "compare/records.hpp"

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <sstream>

#include "compare/sha256.hpp"

namespace records_test {

using namespace compare;
using Json = Records::Json;

std::string hash_of(const std::string& text) { return sha256(std::as_bytes(std::span(text))); }

// FIPS 180-4, and NIST's example of a million letters.
TEST(Sha256, PublishedExamples) {
  EXPECT_EQ(hash_of(""), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  EXPECT_EQ(hash_of("abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  EXPECT_EQ(hash_of("abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq"),
            "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
  std::istringstream million(std::string(1000000, 'a'));
  EXPECT_EQ(sha256(million), "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
}

class RecordsTest : public testing::Test {
 protected:
  void SetUp() override {
    path_ = (std::filesystem::temp_directory_path() /
             ("lesskv records " + std::to_string(getpid()) + ".jsonl"))
                .string();
    std::filesystem::remove(path_);
  }
  void TearDown() override { std::filesystem::remove(path_); }
  std::string content() const {
    std::ifstream file(path_);
    return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
  }

  std::string path_;
  const Records::Key key_{"document", "m", "t", "snapkv", 8, {{"context", 4096}}};
};

TEST_F(RecordsTest, AreFoundAgainByEveryFieldOfTheirKey) {
  {
    Records records(path_);
    EXPECT_FALSE(records.has(key_));
    records.add(key_, {{"kld", 0.1}});
    records.add(key_, {{"kld", 0.25}});  // the newest counts
  }
  Records records(path_);
  ASSERT_TRUE(records.has(key_));
  EXPECT_EQ(records.find(key_)->at("kld"), 0.25);
  EXPECT_EQ(records.find(key_)->at("unit"), "document");
  for (const auto change :
       {+[](Records::Key& k) { k.unit = "keys"; }, +[](Records::Key& k) { k.model = "n"; },
        +[](Records::Key& k) { k.text = "u"; }, +[](Records::Key& k) { k.policy = "tova"; },
        +[](Records::Key& k) { k.target = 16; },
        +[](Records::Key& k) { k.settings["context"] = 1024; }}) {
    Records::Key other = key_;
    change(other);
    EXPECT_FALSE(records.has(other)) << other.json().dump();
  }
}

TEST_F(RecordsTest, ACutOffLineIsDropped) {
  Records(path_).add(key_, {{"kld", 0.1}});
  const std::string whole = content();
  std::ofstream(path_, std::ios::app) << whole.substr(0, whole.size() / 2);
  Records::Key other = key_;
  other.target = 4;
  {
    Records records(path_);
    EXPECT_TRUE(records.has(key_));
    EXPECT_EQ(content(), whole);
    records.add(other, {{"kld", 0.2}});
  }
  EXPECT_TRUE(Records(path_).has(other));
}

TEST_F(RecordsTest, AreWrittenByOneProgramAtATime) {
  {
    Records first(path_);
    EXPECT_THROW(Records second(path_), std::runtime_error);
    first.add(key_, {{"kld", 0.1}});
  }
  EXPECT_TRUE(Records(path_).has(key_));
}

TEST_F(RecordsTest, OtherDamageIsNamed) {
  const std::string good =
      R"({"unit":"u","model":"","text":"","policy":"","target":0,"settings":{}})"
      "\n";
  for (const std::string bad : {"no json", "{}", "[1]", "{\"unit\":\"u\"}", ""}) {
    std::ofstream(path_) << good << bad << "\n";
    try {
      Records records(path_);
      ADD_FAILURE() << bad;
    } catch (const std::exception& error) {
      EXPECT_NE(std::string(error.what()).find("line 2"), std::string::npos) << error.what();
    }
    EXPECT_EQ(content(), good + bad + "\n");  // nothing is thrown away
  }
  EXPECT_THROW(Records("/none/records.jsonl"), std::runtime_error);
}

}  // namespace records_test
