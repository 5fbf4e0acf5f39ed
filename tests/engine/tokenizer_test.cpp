// SPDX-License-Identifier: MIT
// Token ids against Hugging Face tokenizers on the model's own vocabulary.
#include <chrono>
#include <set>

#include "support.hpp"

namespace tokenizer_test {

using engine::Encoding;
using engine::Tokenizer;
using engine_test::model;
using engine_test::reference;

class TokenizerTest : public engine_test::ModelTest {
 protected:
  static const Tokenizer& tokenizer() {
    static const Tokenizer loaded(model().file());
    return loaded;
  }
  static std::string text(const std::string& name) {
    const auto bytes = reference<std::uint8_t>(name).data;
    return {bytes.begin(), bytes.end()};
  }
};

TEST_F(TokenizerTest, EveryReferenceStringHasItsIds) {
  const std::string strings = text("strings");
  const auto offsets = reference<std::int32_t>("string_offsets").data,
             ids = reference<std::int32_t>("ids").data;
  const auto id_offsets = reference<std::int32_t>("id_offsets").data,
             back = reference<std::int32_t>("roundtrip").data;
  for (std::size_t i = 0; i + 1 < offsets.size(); ++i) {
    const std::string string(strings, static_cast<std::size_t>(offsets[i]),
                             static_cast<std::size_t>(offsets[i + 1] - offsets[i]));
    const std::vector<std::int32_t> wanted(ids.begin() + id_offsets[i],
                                           ids.begin() + id_offsets[i + 1]);
    const Encoding got = tokenizer().encode(string);
    EXPECT_EQ(got.ids, wanted) << "string " << i << ": " << string;
    EXPECT_EQ(tokenizer().decode(got.ids) == string, back[i] == 1) << "string " << i;
    EXPECT_EQ(got.dropped_bytes == 0, back[i] == 1) << "string " << i;
  }
}

TEST_F(TokenizerTest, EveryPromptHasItsIds) {
  for (const std::string prompt : {"p0", "p1", "p2"})
    EXPECT_EQ(tokenizer().encode(text(prompt + "_text")).ids,
              reference<std::int32_t>(prompt + "_ids").data);
}

TEST_F(TokenizerTest, DecodingAndEncodingTheDocumentGivesItsIds) {
  const auto ids = reference<std::int32_t>("token_ids").data;
  EXPECT_EQ(tokenizer().encode(tokenizer().decode(ids)).ids, ids);
}

TEST_F(TokenizerTest, OnlyBytesWithoutATokenAreDroppedAndTheyAreCounted) {
  const std::set<int> without_token = {4,   6,   19,  20,  22,  29,  192, 193, 241, 242, 245,
                                       246, 247, 248, 249, 250, 251, 252, 253, 254, 255};
  for (int byte = 0; byte < 256; ++byte) {
    const std::string string(3, static_cast<char>(byte));
    const Encoding got = tokenizer().encode(string);
    const bool lossy = without_token.contains(byte);
    EXPECT_EQ(got.dropped_bytes, lossy ? 3u : 0u) << byte;
    EXPECT_EQ(tokenizer().decode(got.ids), lossy ? "" : string) << byte;
  }
}

TEST_F(TokenizerTest, BytesThatAreNotUtf8ComeBack) {
  const std::string strings[] = {"a\xc3", "\xe2\x82", "\xed\xa0\x80 surrogate",
                                 "ok \xc3\xa9 \xa9 \xc3\xa9",
                                 "\x80 1\xbf"
                                 "2"};
  for (const std::string& string : strings) {
    const Encoding got = tokenizer().encode(string);
    EXPECT_EQ(got.dropped_bytes, 0u);
    EXPECT_EQ(tokenizer().decode(got.ids), string);
  }
}

TEST_F(TokenizerTest, SpecialTokensAreParsedUnlessToldNot) {
  const std::string string = "<|im_start|>user\nHi<|im_end|>";
  const Encoding parsed = tokenizer().encode(string), plain = tokenizer().encode(string, false);
  EXPECT_EQ(parsed.ids.front(), 1);
  EXPECT_EQ(parsed.ids.back(), 2);
  EXPECT_TRUE(tokenizer().is_special(parsed.ids.front()));
  EXPECT_GT(plain.ids.size(), parsed.ids.size());
  for (const std::int32_t id : plain.ids) EXPECT_FALSE(tokenizer().is_special(id));
  EXPECT_EQ(tokenizer().decode(plain.ids), string);
  EXPECT_EQ(tokenizer().begin_id(), 1);
  EXPECT_EQ(tokenizer().end_id(), 2);
  EXPECT_FALSE(tokenizer().adds_begin());
}

TEST_F(TokenizerTest, LongTextsTakeLinearTime) {
  const std::string document = tokenizer().decode(reference<std::int32_t>("token_ids").data);
  std::string prose;
  while (prose.size() < 2'000'000) prose += document;
  for (const std::string& text : {prose, std::string(1'000'000, 'a'), std::string(1'000'000, ' '),
                                  std::string(300'000, '7')}) {
    const auto start = std::chrono::steady_clock::now();
    const Encoding got = tokenizer().encode(text);
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
    EXPECT_EQ(tokenizer().decode(got.ids), text);
    EXPECT_LT(seconds.count(), 20) << text.size() << " bytes of '" << text[0] << "'";
  }
}

TEST_F(TokenizerTest, IdsOutsideTheVocabularyAreErrors) {
  EXPECT_THROW(tokenizer().decode(-1), engine::Error);
  EXPECT_THROW(tokenizer().decode(49152), engine::Error);
}

}  // namespace tokenizer_test
