// SPDX-License-Identifier: MIT
// The dictionary file: comes back equal, and anything that is wrong with it is a clear error.
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <lesskv/codec/sparse/dictionary_set.hpp>

#include "sparse_support.hpp"

namespace sparse_file_test {

using namespace sparse;

DictionarySet example() {
  DictionarySet set;
  set.layers = 3;
  set.kv_heads = 2;
  const std::vector<float> levels = {-.5f, -.1f, .1f, .5f, -.3f, -.05f, .05f, .3f};
  set.dictionaries = {
      Dictionary(8, 20, random_atoms(20, 8, 1).data()).with_levels(2, 4, levels.data()),
      Dictionary(4, 9, random_atoms(9, 4, 2).data()),
      Dictionary(4, 10, random_atoms(10, 4, 3).data(), DType::f32)};
  set.key_dictionary = {0, 0, 0};
  set.value_dictionary = {1, 2, 1, 1, 2, 2};
  set.key_mean = random_rows(6, 8, 4);
  set.value_mean = random_rows(6, 8, 5);
  set.rope_frequencies = {1, 0.1, 0.01};
  set.rope_layout = Rope::Layout::interleaved;
  return set;
}

DictionarySet parse(const std::vector<std::byte>& bytes, bool in_place = false) {
  // A copy of exactly this size, so that a sanitizer sees the first byte behind it.
  std::shared_ptr<std::byte[]> copy(
      new (std::align_val_t{64}) std::byte[bytes.size() + 1],
      [](std::byte* p) { ::operator delete[](p, std::align_val_t{64}); });
  std::copy(bytes.begin(), bytes.end(), copy.get());
  return DictionarySet::parse(copy.get(), bytes.size(), in_place ? copy : nullptr, "file");
}

void expect_equal(const DictionarySet& a, const DictionarySet& b) {
  EXPECT_EQ(a.layers, b.layers);
  EXPECT_EQ(a.kv_heads, b.kv_heads);
  EXPECT_EQ(a.keys_before_rope, b.keys_before_rope);
  EXPECT_EQ(a.key_dictionary, b.key_dictionary);
  EXPECT_EQ(a.value_dictionary, b.value_dictionary);
  EXPECT_EQ(a.key_mean, b.key_mean);
  EXPECT_EQ(a.value_mean, b.value_mean);
  EXPECT_EQ(a.rope_frequencies, b.rope_frequencies);
  EXPECT_EQ(a.rope_layout, b.rope_layout);
  ASSERT_EQ(a.dictionaries.size(), b.dictionaries.size());
  for (std::size_t i = 0; i < a.dictionaries.size(); ++i) {
    const Dictionary &x = a.dictionaries[i], &y = b.dictionaries[i];
    ASSERT_EQ(x.dim(), y.dim());
    ASSERT_EQ(x.size(), y.size());
    ASSERT_EQ(x.dtype(), y.dtype());
    ASSERT_EQ(x.stages(), y.stages());
    ASSERT_EQ(x.levels(), y.levels());
    for (int k = 0; k < x.stages() * x.levels(); ++k)
      EXPECT_EQ(x.level_table()[k], y.level_table()[k]);
    std::vector<float> p(static_cast<std::size_t>(x.dim())), q(p.size());
    for (Index atom = 0; atom < x.size(); ++atom) {
      x.atom(atom, p.data());
      y.atom(atom, q.data());
      EXPECT_EQ(p, q);
    }
  }
}

struct TemporaryFile {
  std::string path;
  TemporaryFile() {
    std::string name = (std::filesystem::temp_directory_path() / "lesskv_XXXXXX").string();
    const int file = ::mkstemp(name.data());
    if (file >= 0) ::close(file);
    path = name;
  }
  ~TemporaryFile() { std::filesystem::remove(path); }
};

TEST(DictionaryFile, ComesBack) {
  const DictionarySet set = example();
  const TemporaryFile file;
  set.save(file.path);
  const DictionarySet back = DictionarySet::load(file.path);
  expect_equal(set, back);
  for (const bool in_place : {false, true}) expect_equal(set, parse(set.serialise(), in_place));
  EXPECT_EQ(back.serialise(), set.serialise());
  EXPECT_EQ(back.key_dim(), 8);
  EXPECT_EQ(back.value_dim(), 8);
  EXPECT_EQ(back.key_chunks(), 1);
  EXPECT_EQ(back.value_chunks(), 2);
  EXPECT_EQ(back.values(0)[1].size(), 10);
  EXPECT_EQ(back.mean_of_keys(2, 1)[0], set.key_mean[40]);
  // What is held: atoms, levels, means, tables, frequencies.
  EXPECT_EQ(back.bytes(),
            20u * 8 * 2 + 9 * 4 * 2 + 10 * 4 * 4 + 8 * 4 + 2 * 48 * 4 + 9 * 4 + 3 * 8);
  // Without means, after RoPE.
  DictionarySet plain = set;
  plain.key_mean.clear();
  plain.value_mean.clear();
  plain.keys_before_rope = false;
  expect_equal(plain, parse(plain.serialise()));
  EXPECT_TRUE(plain.mean_of_keys(0, 0).empty());
}

TEST(DictionaryFile, OutlivesItsCopies) {
  Dictionary kept;
  {
    const TemporaryFile file;
    example().save(file.path);
    kept = DictionarySet::load(file.path).keys(1)[0];
  }
  std::vector<float> got(8), want(8);
  kept.atom(19, got.data());
  example().dictionaries[0].atom(19, want.data());
  EXPECT_EQ(got, want);
}

TEST(DictionaryFile, EveryCutIsAnError) {
  const std::vector<std::byte> bytes = example().serialise();
  for (std::size_t n = 0; n < bytes.size(); ++n) {
    const std::string got = message_of([&] {
      parse({bytes.begin(), bytes.begin() + static_cast<Index>(n)});
    });
    ASSERT_EQ(got.rfind("lesskv: file: ", 0), 0u) << n << got;
  }
  std::vector<std::byte> longer = bytes;
  longer.push_back(std::byte{0});
  EXPECT_NE(message_of([&] { parse(longer); }).find("bytes too many"), std::string::npos);
}

TEST(DictionaryFile, EveryFlippedByteIsAnError) {
  const std::vector<std::byte> bytes = example().serialise();
  for (std::size_t i = 0; i < bytes.size(); ++i)
    for (const int mask : {1, 0x80, 0xff}) {
      std::vector<std::byte> wrong = bytes;
      wrong[i] ^= static_cast<std::byte>(mask);
      ASSERT_NE(message_of([&] { parse(wrong); }), "no error") << i;
    }
}

// Somebody who knows the checksum: any answer but a crash or a read behind the end.
TEST(DictionaryFile, HostileButWellSigned) {
  const std::vector<std::byte> bytes = example().serialise();
  std::mt19937 random(1);
  Index accepted = 0, rejected = 0;
  for (int round = 0; round < 20000; ++round) {
    std::vector<std::byte> wrong = bytes;
    const std::size_t changes = 1 + random() % 4;
    for (std::size_t c = 0; c < changes; ++c) {
      const std::size_t at = 24 + random() % (random() % 2 ? 200 : wrong.size() - 24);
      static constexpr unsigned values[] = {0, 1, 2, 0x7f, 0x80, 0xff};
      wrong[at] = static_cast<std::byte>(random() % 2 ? values[random() % 6] : random());
    }
    if (random() % 4 == 0) wrong.resize(24 + random() % (wrong.size() - 24));
    detail::LittleWriter writer;
    writer.bytes = std::move(wrong);
    writer.set64(8, writer.bytes.size());
    writer.set64(16, detail::fnv1a(writer.bytes.data() + 24, writer.bytes.size() - 24));
    const std::string got = message_of([&] {
      const DictionarySet set = parse(writer.bytes, true);
      for (int l = 0; l < set.layers; ++l) {
        set.keys(l);
        set.mean_of_values(l, set.kv_heads - 1);
      }
    });
    ++(got == "no error" ? accepted : rejected);
  }
  EXPECT_GT(rejected, 10000);
  EXPECT_GT(accepted, 100);  // means, levels: any finite number will do
}

TEST(DictionaryFile, SaysWhatIsWrong) {
  const auto expect = [](const std::string& got, const std::string& want) {
    EXPECT_NE(got.find(want), std::string::npos) << got;
  };
  const TemporaryFile file;
  expect(message_of([&] { DictionarySet::load(file.path + ".none"); }), "cannot be opened");
  expect(message_of([&] { DictionarySet::load("/tmp"); }), "cannot be opened");
  expect(message_of([&] { DictionarySet::load(file.path); }),
         file.path + ": not a dictionary file");
  std::vector<std::byte> bytes = example().serialise();
  bytes[7] = std::byte{'2'};
  expect(message_of([&] { parse(bytes); }), "file: version 2");
  bytes = example().serialise();
  bytes[100] ^= std::byte{1};
  expect(message_of([&] { parse(bytes); }), "checksum");
  expect(message_of([&] { example().save("/nowhere/at/all"); }), "/nowhere/at/all: ");
  DictionarySet set = example();
  set.value_dictionary[3] = 3;
  expect(message_of([&] { set.serialise(); }), "values name dictionary 3 of 3");
  set = example();
  set.value_dictionary[3] = 0;
  expect(message_of([&] { set.serialise(); }), "different dim");
  set = example();
  set.key_mean.pop_back();
  expect(message_of([&] { set.serialise(); }), "means of keys");
  set = example();
  set.rope_frequencies.resize(5);
  expect(message_of([&] { set.serialise(); }), "5 frequencies of a rotation of 8 channels");
  set = example();
  set.dictionaries[0] = set.dictionaries[0].extended(random_atoms(1, 8, 9).data(), 1);
  expect(message_of([&] { set.serialise(); }), "prompt");
  expect(message_of([&] { example().keys(3); }), "DictionarySet::layer is 3");
}

}  // namespace sparse_file_test
