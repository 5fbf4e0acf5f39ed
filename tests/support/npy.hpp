// SPDX-License-Identifier: MIT
// Reads the .npy files in tests/data: version 1.0 (or 2.0) of the format, C order, little-endian,
// as written by numpy.save (numpy/lib/format.py describes it). Anything else is an error that names
// the file.
#pragma once

#include <cstdint>
#include <cstring>
#include <fstream>
#include <iterator>
#include <limits>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

namespace support {

template <class T>
struct Npy {
  std::vector<std::size_t> shape;
  std::vector<T> data;  // C order: the last axis varies fastest

  std::size_t size() const { return data.size(); }
};

// The `descr` that a file must have to be read as T. uint16_t stands for '<f2' as well: half
// precision as bits.
template <class T>
bool npy_type_matches(const std::string& descr) {
  if constexpr (std::is_same_v<T, float>) return descr == "<f4";
  if constexpr (std::is_same_v<T, double>) return descr == "<f8";
  if constexpr (std::is_same_v<T, std::int32_t>) return descr == "<i4";
  if constexpr (std::is_same_v<T, std::int64_t>) return descr == "<i8";
  if constexpr (std::is_same_v<T, std::uint8_t>) return descr == "|u1";
  if constexpr (std::is_same_v<T, std::int8_t>) return descr == "|i1";
  if constexpr (std::is_same_v<T, std::uint16_t>) return descr == "<u2" || descr == "<f2";
  return false;
}

namespace npy_detail {
// IEEE binary16 to float; exact.
inline float half_to_float(std::uint16_t half) {
  const std::uint32_t magnitude = std::uint32_t{half & 0x7fffu} << 13;
  float value;
  std::memcpy(&value, &magnitude, 4);
  value *= 0x1p112f;
  std::uint32_t bits;
  std::memcpy(&bits, &value, 4);
  if ((half & 0x7c00u) == 0x7c00u) bits |= 0x7f800000u;
  bits |= std::uint32_t{half & 0x8000u} << 16;
  std::memcpy(&value, &bits, 4);
  return value;
}

// The text after `key` in the header's dictionary.
inline std::size_t npy_field(const std::string& header, const std::string& key,
                             const std::string& path) {
  const std::size_t at = header.find("'" + key + "':");
  if (at == std::string::npos)
    throw std::runtime_error(path + ": no '" + key + "' in the .npy header");
  return header.find_first_not_of(' ', at + key.size() + 3);
}
}  // namespace npy_detail

// Reads a whole file. A '<f2' file is widened when T is float. Throws std::runtime_error naming the
// file.
template <class T>
Npy<T> load_npy(const std::string& path) {
  const auto bad = [&](const std::string& what) -> std::runtime_error {
    return std::runtime_error(path + ": " + what);
  };
  std::ifstream file(path, std::ios::binary);
  if (!file) throw bad("cannot be opened");
  const std::string bytes{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
  if (bytes.size() < 12 || bytes.compare(0, 6, "\x93NUMPY") != 0) throw bad("is not a .npy file");
  const auto byte = [&](std::size_t i) {
    return static_cast<std::size_t>(static_cast<unsigned char>(bytes[i]));
  };
  const bool first_version = byte(6) == 1;
  const std::size_t start = first_version ? 10 : 12;
  const std::size_t length = first_version
                                 ? byte(8) + (byte(9) << 8)
                                 : byte(8) + (byte(9) << 8) + (byte(10) << 16) + (byte(11) << 24);
  if (length > bytes.size() - start) throw bad("the .npy header is cut off");
  const std::string header = bytes.substr(start, length);

  const std::size_t descr_at = npy_detail::npy_field(header, "descr", path);
  const std::size_t descr_end = header.find('\'', descr_at + 1);
  if (header[descr_at] != '\'' || descr_end == std::string::npos)
    throw bad("structured types are not read");
  const std::string descr = header.substr(descr_at + 1, descr_end - descr_at - 1);
  if (header.compare(npy_detail::npy_field(header, "fortran_order", path), 5, "False") != 0)
    throw bad("Fortran order is not read");

  Npy<T> out;
  std::size_t count = 1;
  std::size_t at = npy_detail::npy_field(header, "shape", path) + 1;
  for (const std::size_t end = header.find(')', at); at < end && at != std::string::npos;) {
    const std::size_t digits = header.find_first_of("0123456789", at);
    if (digits == std::string::npos || digits >= end) break;
    out.shape.push_back(std::stoull(header.substr(digits)));
    if (out.shape.back() != 0 &&
        count > std::numeric_limits<std::size_t>::max() / 8 / out.shape.back())
      throw bad("the shape is too large");
    count *= out.shape.back();
    at = header.find_first_not_of("0123456789", digits);
  }

  const bool widen = std::is_same_v<T, float> && descr == "<f2";
  if (!widen && !npy_type_matches<T>(descr))
    throw bad("has type " + descr + ", another was asked for");
  const std::size_t item = widen ? 2 : sizeof(T);
  if (bytes.size() - start - length != count * item)
    throw bad("holds " + std::to_string(bytes.size() - start - length) +
              " bytes, its shape needs " + std::to_string(count * item));
  const char* from = bytes.data() + start + length;
  out.data.resize(count);
  if constexpr (std::is_same_v<T, float>) {
    if (widen) {
      for (std::size_t i = 0; i < count; ++i) {
        std::uint16_t half;
        std::memcpy(&half, from + 2 * i, 2);
        out.data[i] = npy_detail::half_to_float(half);
      }
      return out;
    }
  }
  if (count > 0) std::memcpy(out.data.data(), from, count * item);
  return out;
}

}  // namespace support
