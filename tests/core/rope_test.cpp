// SPDX-License-Identifier: MIT
// RoPE against the definition in double and against keys of a real model before and after it.
#include <gtest/gtest.h>

#include <lesskv/core/rope.hpp>
#include <string>

#include "support/npy.hpp"

namespace rope_test {

using namespace lesskv;

std::string path(const std::string& file) {
  return std::string(LESSKV_TEST_DATA) + "/rope/" + file + ".npy";
}
const Rope model{.theta = 100000};

TEST(Rope, AnglesEqualTheReference) {
  const auto positions = support::load_npy<std::int32_t>(path("positions"));
  const auto cosines = support::load_npy<float>(path("cos_exact"));
  const auto sines = support::load_npy<float>(path("sin_exact"));
  const Rotation rotation(model, 64);
  std::vector<float> c(32), s(32);
  for (std::size_t p = 0; p < positions.size(); ++p) {
    rotation.angles(Position{positions.data[p]}, c.data(), s.data());
    for (std::size_t i = 0; i < 32; ++i) {
      EXPECT_NEAR(c[i], cosines.data[p * 32 + i], 1e-6) << positions.data[p];
      EXPECT_NEAR(s[i], sines.data[p * 32 + i], 1e-6);
    }
  }
}

TEST(Rope, KeysBeforeAndAfter) {
  const auto rows = support::load_npy<std::int32_t>(path("rows"));
  const auto interleave = support::load_npy<std::int32_t>(path("interleave"));
  const auto before = support::load_npy<float>(path("k_pre"));
  const auto after = support::load_npy<float>(path("k_post"));
  const auto after_interleaved = support::load_npy<float>(path("k_post_interleaved"));
  Rope gguf = model;
  gguf.layout = Rope::Layout::interleaved;
  const Rotation rotation(model, 64), interleaved(gguf, 64);
  for (std::size_t h = 0; h < 3; ++h)
    for (std::size_t r = 0; r < rows.size(); ++r) {
      const std::size_t at = (h * rows.size() + r) * 64;
      const Position position{rows.data[r]};
      std::vector<float> key(before.data.begin() + static_cast<Index>(at),
                             before.data.begin() + static_cast<Index>(at) + 64);
      std::vector<float> other(64);
      for (std::size_t j = 0; j < 64; ++j)
        other[j] = key[static_cast<std::size_t>(interleave.data[j])];
      const std::vector<float> start = key;
      rotation.apply(key.data(), position);
      interleaved.apply(other.data(), position);
      for (std::size_t j = 0; j < 64; ++j) {
        EXPECT_NEAR(key[j], after.data[at + j], 2e-4);
        EXPECT_NEAR(other[j], after_interleaved.data[at + j], 2e-4);
      }
      rotation.undo(key.data(), position);
      for (std::size_t j = 0; j < 64; ++j) EXPECT_NEAR(key[j], start[j], 1e-5);
    }
}

// Every digit of a position, partial width, scaling.
TEST(Rope, EqualsTheDefinition) {
  Rope linear{.theta = 500000, .width = 16, .scaling = Rope::Scaling::linear, .factor = 4};
  Rope given{.frequencies = {0.7, 0.01}};
  for (const std::int64_t p :
       {0ll, 1ll, 63ll, 64ll, 4095ll, 4096ll, 262143ll, 16777215ll, 4294967295ll}) {
    std::vector<float> key(20, 0.f);
    for (std::size_t c = 0; c < 20; ++c) key[c] = static_cast<float>(c) - 9;
    std::vector<float> got = key;
    Rotation(linear, 20).apply(got.data(), Position{p});
    for (int i = 0; i < 8; ++i) {
      const double angle = double(p) / 4 * std::pow(500000.0, -2.0 * i / 16);
      const double x = key[static_cast<std::size_t>(i)], y = key[static_cast<std::size_t>(i + 8)];
      EXPECT_NEAR(got[static_cast<std::size_t>(i)], x * std::cos(angle) - y * std::sin(angle), 1e-5)
          << p;
      EXPECT_NEAR(got[static_cast<std::size_t>(i + 8)], y * std::cos(angle) + x * std::sin(angle),
                  1e-5);
    }
    for (std::size_t c = 16; c < 20; ++c) EXPECT_EQ(got[c], key[c]);
    float c[2], s[2];
    Rotation(given, 4).angles(Position{p}, c, s);
    EXPECT_NEAR(c[1], std::cos(0.01 * double(p)), 1e-6);
    EXPECT_NEAR(s[0], std::sin(0.7 * double(p)), 1e-6);
  }
}

// Llama 3.1: wavelengths under 2048 stay, over 8192 grow eightfold.
TEST(Rope, Llama3Scaling) {
  const Rope plain{.theta = 500000};
  Rope scaled = plain;
  scaled.scaling = Rope::Scaling::llama3;
  scaled.factor = 8;
  const Rotation a(plain, 128), b(scaled, 128);
  std::vector<float> ca(64), sa(64), cb(64), sb(64);
  a.angles(Position{100}, ca.data(), sa.data());
  b.angles(Position{100}, cb.data(), sb.data());
  EXPECT_EQ(ca[0], cb[0]);
  EXPECT_EQ(sa[20], sb[20]);
  b.angles(Position{800}, cb.data(), sb.data());
  EXPECT_NEAR(sa[63], sb[63], 1e-6);
  EXPECT_NEAR(sa[50], sb[50], 1e-6);
}

TEST(Rope, BadInput) {
  const auto message = [](const Rope& rope, int dim) -> std::string {
    try {
      Rotation(rope, dim).undo(nullptr, Position{-1});
    } catch (const Error& error) {
      return error.what();
    }
    return "no error";
  };
  EXPECT_NE(message({}, 7).find("Rope::width"), std::string::npos);
  EXPECT_NE(message({.width = 10}, 8).find("Rope::width"), std::string::npos);
  EXPECT_NE(message({.theta = 0}, 8).find("Rope::theta"), std::string::npos);
  EXPECT_NE(message({.factor = 0}, 8).find("Rope::factor"), std::string::npos);
  EXPECT_NE(message({.frequencies = {1.0}}, 8).find("Rope::frequencies"), std::string::npos);
  EXPECT_NE(message({}, 8).find("Rotation::position is -1"), std::string::npos);
}

}  // namespace rope_test
