// SPDX-License-Identifier: MIT
// The file reader: what it reads, what it refuses, and that no damage to a file makes it read where
// it must not (this test also runs under AddressSanitizer).
#include <engine/dequantize.hpp>
#include <engine/run.hpp>
#include <lesskv/lesskv.hpp>

#include "gguf_file.hpp"
#include "support.hpp"

namespace gguf_test {

using namespace engine_test;
using engine::Gguf;

constexpr std::pair<TensorType, const char*> types[] = {
    {TensorType::f32, "f32"},   {TensorType::f16, "f16"},   {TensorType::bf16, "bf16"},
    {TensorType::q8_0, "q8_0"}, {TensorType::q4_0, "q4_0"}, {TensorType::q4_1, "q4_1"}};

// What() of the error that a call throws; "" if it throws none.
template <class Call>
std::string error_of(const Call& call) {
  try {
    call();
  } catch (const engine::Error& error) {
    return error.what();
  }
  return "";
}
std::string parse_error(const GgufFile& file) {
  const Bytes bytes = file.bytes();
  return error_of([&] { Gguf::parse(bytes); });
}
void expect_parts(const std::string& text, const std::vector<std::string>& parts) {
  for (const std::string& part : parts) EXPECT_NE(text.find(part), std::string::npos) << text;
}

TEST(Dequantize, EqualsGgufPyOnRandomBlocks) {
  for (const auto& [type, name] : types) {
    SCOPED_TRACE(name);
    const std::string path = std::string(LESSKV_TEST_DATA) + "/gguf/" + name;
    const auto blocks = support::load_npy<std::uint8_t>(path + "_blocks.npy");
    const auto values = support::load_npy<float>(path + "_values.npy");
    ASSERT_EQ(values.size(), 64u * 32u);
    // Neither end is aligned in a file.
    Bytes shifted(blocks.size() + 1);
    std::memcpy(shifted.data() + 1, blocks.data.data(), blocks.size());
    std::vector<float> got(values.size());
    engine::dequantize(type, shifted.data() + 1, got.data(), static_cast<Index>(got.size()));
    for (std::size_t i = 0; i < got.size(); ++i) ASSERT_EQ(got[i], values.data[i]) << i;
  }
}

TEST(Read, MetadataAndTensorsComeBack) {
  GgufFile file;
  file.number("a.number", 7);
  file.real("a.real", 0.5f);
  file.string("a.string", "words");
  file.strings("a.list", {"x", "", "long one"});
  file.integers("a.integers", {-1, 2});
  const Bytes eight(8, std::byte{1}), block(34, std::byte{2});
  file.tensor("two", 0, {2, 1}, eight);
  file.tensor("block", 8, {32}, block);
  for (const std::uint32_t version : {2u, 3u}) {
    Bytes bytes = file.bytes();
    std::memcpy(&bytes[4], &version, 4);
    const Gguf read = Gguf::parse(bytes);
    EXPECT_EQ(read.unsigned_number("a.number"), 7u);
    EXPECT_EQ(read.unsigned_number("none", 3), 3u);
    EXPECT_EQ(read.real("a.real"), 0.5);
    EXPECT_EQ(read.string("a.string"), "words");
    EXPECT_EQ(read.strings("a.list"), (std::vector<std::string_view>{"x", "", "long one"}));
    EXPECT_EQ(read.integers("a.integers"), (std::vector<std::int64_t>{-1, 2}));
    EXPECT_EQ(read.tensor("two").columns, 2);
    EXPECT_EQ(std::memcmp(read.tensor("two").data, eight.data(), 8), 0);
    EXPECT_EQ(read.tensor("block").row_bytes, 34);
    EXPECT_EQ(std::memcmp(read.tensor("block").data, block.data(), 34), 0);
    expect_parts(error_of([&] { read.string("a.number"); }), {"a.number", "not a string"});
    expect_parts(error_of([&] { read.unsigned_number("a.string"); }), {"a.string", "integer"});
    expect_parts(error_of([&] { read.strings("none"); }), {"none", "missing"});
    expect_parts(error_of([&] { read.tensor("none"); }), {"none", "missing"});
  }
}

TEST(Read, OtherTypesAreErrorsThatNameTensorAndType) {
  for (const auto& [number, name] : {std::pair<std::uint32_t, const char*>{6, "Q5_0"},
                                     {12, "Q4_K"},
                                     {14, "Q6_K"},
                                     {23, "IQ4_XS"},
                                     {4, "number 4"},
                                     {12345, "number 12345"}}) {
    GgufFile file;
    file.tensor("blk.7.attn_q.weight", number, {256}, Bytes(1024));
    expect_parts(parse_error(file), {"'blk.7.attn_q.weight'", name, "Q4_1"});
  }
}

TEST(Read, ImpossibleTensorsAreNamed) {
  const auto error = [](std::uint32_t type, const std::vector<std::uint64_t>& axes) {
    GgufFile file;
    file.tensor("w", type, axes, Bytes(64));
    return parse_error(file);
  };
  EXPECT_EQ(error(0, {4, 4}), "");
  expect_parts(error(0, {4, 5}), {"'w'", "past the end"});
  expect_parts(error(2, {33}), {"'w'", "33", "32"});
  expect_parts(error(0, {}), {"'w'", "0 axes"});
  expect_parts(error(0, {1, 1, 1, 1, 1}), {"'w'", "5 axes"});
  expect_parts(error(0, {4, 0}), {"'w'", "length 0"});
  const std::uint64_t huge = std::uint64_t{1} << 62;
  expect_parts(error(0, {huge, huge}), {"'w'", "too large"});
  expect_parts(error(0, {huge}), {"'w'", "too large"});
  expect_parts(error(0, {4, huge / 8}), {"'w'"});
  GgufFile twice;
  twice.tensor("w", 0, {1}, Bytes(4));
  twice.tensor("w", 0, {1}, Bytes(4));
  expect_parts(parse_error(twice), {"'w'", "twice"});
}

TEST(Read, WhatIsNoGgufFileIsRefused) {
  const auto error = [](const std::string& text) {
    return error_of([&] { Gguf::parse(std::as_bytes(std::span(text))); });
  };
  EXPECT_NE(error(""), "");
  expect_parts(error("GGM"), {"magic"});
  expect_parts(error("This is a text file, long enough to be one."), {"GGUF"});
  expect_parts(parse_error(GgufFile(1)), {"version 1"});
  expect_parts(parse_error(GgufFile(0x03000000)), {"version"});  // big-endian
  expect_parts(error_of([] { Gguf::open("/nowhere/model.gguf"); }), {"/nowhere/model.gguf"});
  expect_parts(error_of([] { Gguf::open("/"); }), {"/: is not a regular file"});
}

// ---- the tiny model

using Cache = lesskv::KVCache<>;

std::vector<float> logits_of(const engine::Model& model, const std::vector<std::int32_t>& tokens) {
  Cache cache(engine::cache_shape(model, lesskv::DType::f32));
  engine::Run run(model);
  const auto logits = run.forward(cache, tokens, 0, {.logits = engine::every_token});
  return {logits.begin(), logits.end()};
}

// The same numbers in f32: what a type stores is what the products use, for one token (row by row)
// and for many (panels).
TEST(TinyModel, EveryTypeGivesTheLogitsOfItsNumbersInF32) {
  for (const auto& [type, name] : types) {
    SCOPED_TRACE(name);
    const Bytes stored = tiny_model(type).bytes();
    const engine::Model model(Gguf::parse(stored));
    GgufFile widened = tiny_model(TensorType::f32);
    Bytes plain = widened.bytes();
    const Gguf target = Gguf::parse(plain);
    for (const engine::Tensor& tensor : target.tensors()) {
      const engine::Tensor& from = model.file().tensor(tensor.name);
      ASSERT_EQ(from.rows, tensor.rows);
      std::vector<float> numbers(static_cast<std::size_t>(tensor.rows * tensor.columns));
      engine::dequantize(from.type, from.data, numbers.data(), tensor.rows * tensor.columns);
      std::memcpy(plain.data() + (tensor.data - plain.data()), numbers.data(), 4 * numbers.size());
    }
    const engine::Model wide(Gguf::parse(plain));
    for (const std::size_t count : {1, 3, 37}) {
      std::vector<std::int32_t> tokens;
      for (std::size_t i = 0; i < count; ++i)
        tokens.push_back(static_cast<std::int32_t>(7 * i % 250));
      const std::vector<float> got = logits_of(model, tokens), want = logits_of(wide, tokens);
      ASSERT_EQ(got.size(), want.size());
      float largest = 0;
      for (const float x : want) largest = std::max(largest, std::abs(x));
      EXPECT_GT(largest, 0.1f);
      for (std::size_t i = 0; i < got.size(); ++i)
        ASSERT_NEAR(got[i], want[i], 2e-5 * double{largest}) << i << " of " << count << " tokens";
    }
  }
}

TEST(TinyModel, WhatDoesNotFitTogetherIsNamed) {
  const auto error = [](const auto& change) {
    GgufFile file = tiny_model(TensorType::f32);
    change(file);
    const Bytes bytes = file.bytes();
    return error_of([&] {
      const engine::Model model(Gguf::parse(bytes));
      const engine::Tokenizer tokenizer(model.file());
    });
  };
  EXPECT_EQ(error([](GgufFile&) {}), "");
  expect_parts(error([](GgufFile& f) { f.number("llama.expert_count", 8); }), {"expert_count"});
  expect_parts(error([](GgufFile& f) { f.number("llama.attention.key_length", 1u << 28); }),
               {"'blk.0.attn_q.weight'"});
  expect_parts(error([](GgufFile& f) { f.number("llama.rope.dimension_count", 8); }),
               {"llama.rope.dimension_count"});
  expect_parts(error([](GgufFile& f) { f.string("llama.rope.scaling.type", "yarn"); }), {"yarn"});
  expect_parts(error([](GgufFile& f) {
                 f.tensor("blk.1.attn_q.bias", 0, {Tiny::width}, Bytes(4 * Tiny::width));
               }),
               {"'blk.1.attn_q.bias'"});
  expect_parts(error([](GgufFile& f) {
                 f.tensor("output.weight", 0, {32, 3}, Bytes(384));
               }),
               {"'output.weight'"});
  expect_parts(error([](GgufFile& f) { f.number("tokenizer.ggml.bos_token_id", 9999); }),
               {"bos_token_id"});
  GgufFile other;
  other.string("general.architecture", "mamba");
  const Bytes bytes = other.bytes();
  expect_parts(error_of([&] { engine::Model(Gguf::parse(bytes)); }), {"'mamba'"});
}

// Loads a file image that ends where its memory ends, and uses what was loaded.
void use(const Bytes& bytes) {
  try {
    const engine::Model model(Gguf::parse(bytes));
    const engine::Tokenizer tokenizer(model.file());
    tokenizer.decode(tokenizer.encode("the end 12 <|end|>\xff").ids);
    logits_of(model, {1, 2, 3});
  } catch (const engine::Error&) {
  } catch (const lesskv::Error&) {  // weights that make keys infinite
  }
}

TEST(TinyModel, EveryTruncatedFileIsRefused) {
  const GgufFile file = tiny_model(TensorType::q4_0);
  const Bytes bytes = file.bytes();
  const std::size_t header = file.header().size();
  for (std::size_t size = 0; size < bytes.size(); size += size < header ? 1 : 997) {
    const Bytes cut(bytes.begin(), bytes.begin() + static_cast<std::ptrdiff_t>(size));
    EXPECT_NE(error_of([&] { Gguf::parse(cut); }), "") << size;
  }
  const Bytes cut(bytes.begin(), bytes.end() - 1);
  expect_parts(error_of([&] { Gguf::parse(cut); }), {"past the end"});
}

TEST(TinyModel, AlteredFilesAreErrorsOrModelsButNeverWildReads) {
  const GgufFile file = tiny_model(TensorType::q4_1);
  const Bytes bytes = file.bytes();
  const std::size_t header = file.header().size();
  std::mt19937 random(1);
  // Every byte of the header in turn, and then several at once.
  for (std::size_t at = 0; at < header; ++at) {
    Bytes altered = bytes;
    altered[at] ^= static_cast<std::byte>(1u << random() % 8);
    use(altered);
  }
  for (int round = 0; round < 500; ++round) {
    Bytes altered = bytes;
    for (unsigned i = 0; i < 1 + random() % 8; ++i)
      altered[random() % (round % 2 == 0 ? header : bytes.size())] =
          static_cast<std::byte>(random() & 255);
    use(altered);
  }
}

}  // namespace gguf_test
