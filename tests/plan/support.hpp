// SPDX-License-Identifier: MIT
// What the tests of the plan program share: folders that vanish, .npy files of any kind, and the
// program as a call.
#pragma once

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <plan/plan.hpp>
#include <plan/program.hpp>
#include <random>
#include <string>
#include <vector>

#include "score/reference.hpp"
#include "support/call.hpp"

namespace support {

namespace fs = std::filesystem;
using namespace lesskv;

class Folder {
 public:
  Folder() {
    std::string name = (fs::temp_directory_path() / "lesskv plan XXXXXX").string();
    path_ = ::mkdtemp(name.data());
  }
  Folder(const Folder&) = delete;
  Folder& operator=(const Folder&) = delete;
  ~Folder() {
    std::error_code error;
    fs::remove_all(path_, error);
  }
  std::string operator/(const std::string& name) const { return (path_ / name).string(); }

 private:
  fs::path path_;
};

inline void write_bytes(const std::string& file, const std::string& bytes) {
  fs::create_directories(fs::path(file).parent_path());
  std::ofstream stream(file, std::ios::binary);
  stream << bytes;
  ASSERT_TRUE(stream.flush()) << file;
}
inline std::string read_bytes(const std::string& file) {
  std::ifstream stream(file, std::ios::binary);
  return {std::istreambuf_iterator<char>(stream), std::istreambuf_iterator<char>()};
}

// A .npy file, version 1.0, as numpy writes it.
inline std::string npy_bytes(const std::string& descr, const std::vector<Index>& shape,
                             const std::string& data, bool fortran = false) {
  std::string axes;
  for (const Index axis : shape) axes += std::to_string(axis) + ", ";
  if (shape.size() > 1) axes.resize(axes.size() - 2);
  std::string header = "{'descr': '" + descr +
                       "', 'fortran_order': " + (fortran ? "True" : "False") + ", 'shape': (" +
                       axes + "), }";
  while ((header.size() + 11) % 64 != 0) header += ' ';
  header += '\n';
  std::string out = "\x93NUMPY";
  out += '\1';
  out += '\0';
  out += static_cast<char>(header.size() & 255);
  out += static_cast<char>(header.size() >> 8);
  return out + header + data;
}
inline std::string f32_bytes(const std::vector<float>& x) {
  return {reinterpret_cast<const char*>(x.data()), x.size() * 4};
}
inline std::string f16_bytes(const std::vector<float>& x) {
  std::string out;
  for (const float v : x) {
    const f16 half = to_f16(v);
    out += static_cast<char>(half.bits & 255);
    out += static_cast<char>(half.bits >> 8);
  }
  return out;
}
inline void write_f32(const std::string& file, const std::vector<Index>& shape,
                      const std::vector<float>& x) {
  write_bytes(file, npy_bytes("<f4", shape, f32_bytes(x)));
}
inline std::vector<float> normal(Index n, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> distribution;
  std::vector<float> out(static_cast<std::size_t>(n));
  for (float& x : out) x = distribution(random);
  return out;
}
inline std::vector<float> floats_of(const std::string& npy_file) {
  return load_npy<float>(npy_file).data;
}

inline Outcome call(const std::vector<std::string>& arguments) {
  return call(plan::program, arguments);
}

// The reference tensors of a layer.
inline std::string input(const std::string& name) {
  return reference::path("inputs/" + name + ".npy");
}
inline plan::Paths reference_paths(int layer, bool queries) {
  const std::string name = reference::layer_name(layer);
  return {input("k_" + name), input("v_" + name),
          !queries      ? ""
          : layer == 15 ? input("q_l15")
                        : input("qwin64_" + name),
          ""};
}

inline void expect_rows(const plan::Result& result, int first_head, const Npy<std::int32_t>& want) {
  for (int h = 0; h < 3; ++h)
    EXPECT_EQ(result.heads[static_cast<std::size_t>(first_head + h)].kept, reference::row(want, h))
        << "head " << h;
}

}  // namespace support
