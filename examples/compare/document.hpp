// SPDX-License-Identifier: MIT
// Documents: text or token ids from a file.
#pragma once

#include <cstdint>
#include <engine/tokenizer.hpp>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <stdexcept>
#include <string>
#include <vector>

#include "metrics.hpp"

namespace compare {

struct Document {
  std::string name;  // the file's, without folder and ending
  std::vector<std::int32_t> tokens;
  std::size_t dropped_bytes = 0;  // of the text, which the vocabulary cannot express
};

inline std::string read_file(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw std::runtime_error(path.string() + ": cannot be opened");
  std::string bytes{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
  if (file.bad()) throw std::runtime_error(path.string() + ": cannot be read");
  return bytes;
}

// Token ids: int32, little-endian, nothing else.
inline std::vector<std::int32_t> read_token_ids(const std::filesystem::path& path,
                                                Index vocabulary) {
  const std::string bytes = read_file(path);
  if (bytes.size() % 4 != 0)
    throw std::runtime_error(path.string() + ": its size is not a multiple of 4 bytes");
  std::vector<std::int32_t> ids(bytes.size() / 4);
  for (std::size_t i = 0; i < ids.size(); ++i) {
    std::uint32_t value = 0;
    for (std::size_t b = 4; b-- > 0;)
      value = value << 8 | static_cast<unsigned char>(bytes[4 * i + b]);
    ids[i] = static_cast<std::int32_t>(value);
    if (ids[i] < 0 || ids[i] >= vocabulary)
      throw std::runtime_error(path.string() + ": token " + std::to_string(i) + " is " +
                               std::to_string(ids[i]) + ", the vocabulary has " +
                               std::to_string(vocabulary) + " entries");
  }
  return ids;
}

// A file ending in .i32 is token ids, any other is UTF-8 text.
inline Document read_document(const std::string& file, const engine::Tokenizer& tokenizer) {
  const std::filesystem::path path(file);
  Document out;
  out.name = path.stem().string();
  if (path.extension() == ".i32") {
    out.tokens = read_token_ids(path, static_cast<Index>(tokenizer.size()));
  } else {
    engine::Encoding encoding = tokenizer.encode(read_file(path), false);
    out.tokens = std::move(encoding.ids);
    out.dropped_bytes = encoding.dropped_bytes;
  }
  return out;
}

}  // namespace compare
