// SPDX-License-Identifier: MIT
// Reads and writes .npy files (numpy/lib/format.py, versions 1.0 to 3.0): f32 and f16 tensors in C
// order in, int32 lists out. The file may come from anywhere: every length is checked before it is
// used, and an error names the file.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <lesskv/core/types.hpp>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

namespace npy {

static_assert(std::endian::native == std::endian::little,
              "the tensors are read as they lie in the file");

struct Tensor {
  lesskv::DType dtype = lesskv::DType::f32;
  std::vector<std::ptrdiff_t> shape;
  std::vector<std::byte> data;

  std::ptrdiff_t size() const {
    std::ptrdiff_t n = 1;
    for (const std::ptrdiff_t axis : shape) n *= axis;
    return n;
  }
};

namespace detail {

[[noreturn]] inline void fail(const std::string& file, const std::string& what) {
  throw std::runtime_error(file + ": " + what);
}

// The header is a Python dictionary literal that numpy writes in one fixed way; only that way is
// read.
class Header {
 public:
  Header(const std::string& file, std::string_view text) : file_(file), text_(text) {}

  std::string_view text_of(const char* key) const {
    const std::size_t at = value_of(key);
    if (at >= text_.size() || text_[at] != '\'')
      fail(file_, std::string("header: '") + key + "' is not a string");
    const std::size_t end = text_.find('\'', at + 1);
    if (end == std::string_view::npos) fail(file_, "header: a string does not end");
    return text_.substr(at + 1, end - at - 1);
  }
  bool flag_of(const char* key) const {
    const std::string_view rest = text_.substr(value_of(key));
    if (rest.starts_with("True")) return true;
    if (rest.starts_with("False")) return false;
    fail(file_, std::string("header: '") + key + "' is neither True nor False");
  }
  std::vector<std::ptrdiff_t> shape_of(const char* key) const {
    std::size_t at = value_of(key);
    const std::size_t end = text_.find(')', at);
    if (at >= text_.size() || text_[at] != '(' || end == std::string_view::npos)
      fail(file_, std::string("header: '") + key + "' is not a tuple");
    std::vector<std::ptrdiff_t> out;
    std::ptrdiff_t product = 1;
    for (++at; at < end;) {
      if (text_[at] == ' ' || text_[at] == ',') {
        ++at;
        continue;
      }
      std::ptrdiff_t axis = 0;
      const std::size_t first = at;
      for (; at < end && text_[at] >= '0' && text_[at] <= '9' && at - first < 13; ++at)
        axis = axis * 10 + (text_[at] - '0');
      if (at == first || (at < end && text_[at] != ','))
        fail(file_, "header: the shape holds something else than sizes");
      // No file is that large; the product of all axes cannot overflow.
      if (axis > 0 && product > (std::ptrdiff_t{1} << 48) / axis)
        fail(file_, "header: the shape is too large");
      product *= axis;
      out.push_back(axis);
      if (out.size() > 8) fail(file_, "header: more than 8 axes");
    }
    return out;
  }

 private:
  std::size_t value_of(const char* key) const {
    const std::string quoted = std::string("'") + key + "':";
    std::size_t at = text_.find(quoted);
    if (at == std::string_view::npos) fail(file_, std::string("header: no '") + key + "'");
    at += quoted.size();
    while (at < text_.size() && text_[at] == ' ') ++at;
    return at;
  }

  const std::string& file_;
  std::string_view text_;
};

inline void read_bytes(std::ifstream& stream, const std::string& file, void* out, std::size_t n) {
  stream.read(static_cast<char*>(out), static_cast<std::streamsize>(n));
  if (stream.gcount() != static_cast<std::streamsize>(n)) fail(file, "is cut off");
}

}  // namespace detail

// Throws std::runtime_error naming the file.
inline Tensor read(const std::string& file) {
  std::error_code error;
  if (!std::filesystem::is_regular_file(file, error)) detail::fail(file, "there is no such file");
  const std::size_t size = std::filesystem::file_size(file, error);
  std::ifstream stream(file, std::ios::binary);
  if (error || !stream) detail::fail(file, "cannot be opened");

  unsigned char lead[12];
  if (size < sizeof lead) detail::fail(file, "is not a .npy file: it is too short");
  detail::read_bytes(stream, file, lead, 10);
  if (std::string_view(reinterpret_cast<const char*>(lead), 6) != "\x93NUMPY")
    detail::fail(file, "is not a .npy file");
  const unsigned version = lead[6];
  if (version < 1 || version > 3)
    detail::fail(file, ".npy version " + std::to_string(version) + " is not known");
  std::size_t length = lead[8] | std::size_t{lead[9]} << 8, start = 10;
  if (version > 1) {
    detail::read_bytes(stream, file, lead + 10, 2);
    length |= std::size_t{lead[10]} << 16 | std::size_t{lead[11]} << 24;
    start = 12;
  }
  if (length > size - start) detail::fail(file, "the header is cut off");
  std::string text(length, '\0');
  detail::read_bytes(stream, file, text.data(), length);

  const detail::Header header(file, text);
  Tensor out;
  const std::string_view type = header.text_of("descr");
  if (type == "<f4")
    out.dtype = lesskv::DType::f32;
  else if (type == "<f2")
    out.dtype = lesskv::DType::f16;
  else
    detail::fail(file, "has type '" + std::string(type) + "'; it must be '<f4' or '<f2'");
  if (header.flag_of("fortran_order"))
    detail::fail(file, "is in Fortran order; save it with numpy.ascontiguousarray");
  out.shape = header.shape_of("shape");
  const auto wanted = static_cast<std::size_t>(out.size() * lesskv::size_of(out.dtype));
  const std::size_t there = size - start - length;
  if (there != wanted)
    detail::fail(file, "holds " + std::to_string(there) + " bytes of data, its shape needs " +
                           std::to_string(wanted));
  out.data.resize(wanted);
  detail::read_bytes(stream, file, out.data.data(), wanted);
  return out;
}

// One axis of int32, version 1.0.
inline void write(const std::string& file, std::span<const std::int32_t> numbers) {
  std::string header = "{'descr': '<i4', 'fortran_order': False, 'shape': (" +
                       std::to_string(numbers.size()) + ",), }";
  header.append(63 - (10 + header.size()) % 64, ' ');  // the data start at a multiple of 64
  header += '\n';
  std::ofstream stream(file, std::ios::binary);
  stream.write("\x93NUMPY\x01\x00", 8);
  const char length[2] = {static_cast<char>(header.size() & 255),
                          static_cast<char>(header.size() >> 8)};
  stream.write(length, 2);
  stream << header;
  stream.write(reinterpret_cast<const char*>(numbers.data()),
               static_cast<std::streamsize>(numbers.size() * 4));
  stream.close();
  if (!stream) detail::fail(file, "cannot be written");
}

}  // namespace npy
