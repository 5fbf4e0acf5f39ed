// SPDX-License-Identifier: MIT
// Calibration files: what was measured once about a model, as named tables of numbers. Text, one
// row a line, with a version and a checksum:
//
//   lesskv-calibration 1
//   model SmolLM2-135M-Instruct.Q4_1.gguf
//   layers 30
//   query_heads 9
//   kv_heads 3
//   head_dim 64
//   tokens 4096
//   truncation 16
//   table entropy_queries 30 9
//   1.7731 1.6402 ...
//   crc32 1f2e3d4c
//
// crc32 is that of zlib over everything before its line. examples/calibrate writes such files.
// Errors name the file; a file that is cut off, changed or of another version is one.
#pragma once

#include <array>
#include <charconv>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "../core/error.hpp"
#include "../core/types.hpp"

LESSKV_BEGIN_NAMESPACE

namespace detail {

inline std::uint32_t crc32(std::string_view bytes) {
  std::uint32_t crc = 0xffffffffu;
  for (const char c : bytes) {
    crc ^= static_cast<unsigned char>(c);
    for (int bit = 0; bit < 8; ++bit) crc = (crc >> 1) ^ ((crc & 1u) != 0 ? 0xedb88320u : 0u);
  }
  return ~crc;
}

// A whole file, at most 256 MiB.
inline std::string read_text_file(const std::string& path) {
  std::FILE* file = std::fopen(path.c_str(), "rb");
  if (!file) fail("calibration file '", path, "': it cannot be opened");
  std::string text;
  char part[1 << 14];
  for (std::size_t n; (n = std::fread(part, 1, sizeof part, file)) > 0;) {
    text.append(part, n);
    if (text.size() > std::size_t{256} << 20) break;
  }
  const bool bad = std::ferror(file) != 0 || text.size() > std::size_t{256} << 20;
  std::fclose(file);
  if (bad) fail("calibration file '", path, "': it cannot be read, or is too large");
  return text;
}

}  // namespace detail

struct Calibration {
  struct Table {
    std::string name;  // a word
    Index rows = 0, columns = 0;
    std::vector<double> values = {};  // [rows][columns]
  };

  std::string model;  // one line
  Index layers = 0, query_heads = 0, kv_heads = 0, head_dim = 0;
  Index tokens = 0;      // of the text that was looked at
  Index truncation = 0;  // k of the entropies
  std::vector<Table> tables = {};

  // Null if there is no table of that name.
  const Table* find(std::string_view name) const {
    for (const Table& table : tables)
      if (table.name == name) return &table;
    return nullptr;
  }

  std::string to_text() const {
    std::string out = "lesskv-calibration 1\nmodel ";
    for (const char c : model) out += c == '\n' || c == '\r' ? ' ' : c;
    out += '\n';
    each_number(*this, [&](const char* name, Index value) {
      out += std::string(name) + " " + std::to_string(value) + "\n";
    });
    for (const Table& table : tables) {
      out += "table " + table.name + " " + std::to_string(table.rows) + " " +
             std::to_string(table.columns) + "\n";
      for (Index r = 0; r < table.rows; ++r)
        for (Index c = 0; c < table.columns; ++c) {
          char text[32];
          std::snprintf(text, sizeof text, "%.9g", table.values[detail::uz(r * table.columns + c)]);
          out += text;
          out += c + 1 < table.columns ? ' ' : '\n';
        }
    }
    char sum[24];
    std::snprintf(sum, sizeof sum, "crc32 %08x\n", unsigned{detail::crc32(out)});
    return out + sum;
  }

  // `source` names the text in errors.
  static Calibration parse(std::string_view text, const std::string& source) {
    const auto bad = [&](const auto&... what) {
      fail("calibration file '", source, "': ", what...);
    };
    constexpr std::string_view head = "lesskv-calibration ";
    if (text.substr(0, head.size()) != head) bad("it is not a calibration file of lesskv");
    const std::size_t last = text.rfind("crc32 ");
    if (last == std::string_view::npos || last == 0 || text[last - 1] != '\n' ||
        text.size() != last + 15 || text.back() != '\n')
      bad("it is cut off: no crc32 line at its end");
    std::uint32_t sum = 0;
    const char* const digits = text.data() + last + 6;
    const auto parsed = std::from_chars(digits, digits + 8, sum, 16);
    if (parsed.ec != std::errc() || parsed.ptr != digits + 8 ||
        sum != detail::crc32(text.substr(0, last)))
      bad("it is damaged: its checksum does not fit");
    Words words{text.substr(0, last), source};
    words.expect("lesskv-calibration");
    if (const Index version = words.integer("version", 1 << 20); version != 1)
      bad("it has version ", version, "; this library reads version 1");
    Calibration out;
    words.expect("model");
    out.model = std::string(words.line());
    each_number(out, [&](const char* name, Index& value) {
      words.expect(name);
      value = words.integer(name, Index{1} << 40);
    });
    while (!words.done()) {
      words.expect("table");
      Table table;
      table.name = std::string(words.word());
      table.rows = words.integer("rows", 1 << 24);
      table.columns = words.integer("columns", 1 << 24);
      // A number takes two bytes at least: no more is reserved than the file can hold.
      if (table.columns > 0 && table.rows > static_cast<Index>(text.size()) / table.columns)
        bad("table '", table.name, "' is larger than the file");
      table.values.reserve(detail::uz(table.rows * table.columns));
      for (Index i = 0; i < table.rows * table.columns; ++i)
        table.values.push_back(words.number(table.name));
      out.tables.push_back(std::move(table));
    }
    return out;
  }
  static Calibration load(const std::string& path) {
    return parse(detail::read_text_file(path), path);
  }
  void save(const std::string& path) const {
    const std::string text = to_text();
    std::FILE* file = std::fopen(path.c_str(), "wb");
    if (!file) fail("calibration file '", path, "': it cannot be created");
    const bool written = std::fwrite(text.data(), 1, text.size(), file) == text.size();
    if (std::fclose(file) != 0 || !written)
      fail("calibration file '", path, "': it cannot be written");
  }

 private:
  template <class Self, class Visit>
  static void each_number(Self& self, Visit&& visit) {
    visit("layers", self.layers);
    visit("query_heads", self.query_heads);
    visit("kv_heads", self.kv_heads);
    visit("head_dim", self.head_dim);
    visit("tokens", self.tokens);
    visit("truncation", self.truncation);
  }

  struct Words {
    std::string_view rest;
    const std::string& source;

    void skip() {
      const std::size_t n = rest.find_first_not_of(" \n");
      rest.remove_prefix(n == std::string_view::npos ? rest.size() : n);
    }
    bool done() {
      skip();
      return rest.empty();
    }
    std::string_view word() {
      skip();
      const std::string_view out = rest.substr(0, rest.find_first_of(" \n"));
      rest.remove_prefix(out.size());
      return out;
    }
    std::string_view line() {
      if (!rest.empty() && rest[0] == ' ') rest.remove_prefix(1);
      const std::string_view out = rest.substr(0, rest.find('\n'));
      rest.remove_prefix(out.size());
      return out;
    }
    void expect(std::string_view wanted) {
      if (const std::string_view got = word(); got != wanted)
        fail("calibration file '", source, "': '", wanted, "' is missing before '", got, "'");
    }
    Index integer(std::string_view what, Index most) {
      const std::string_view text = word();
      Index value = -1;
      const auto parsed = std::from_chars(text.data(), text.data() + text.size(), value);
      if (parsed.ec != std::errc() || parsed.ptr != text.data() + text.size() || value < 0 ||
          value > most)
        fail("calibration file '", source, "': ", what, " is '", text, "'");
      return value;
    }
    double number(const std::string& table) {
      const std::string_view text = word();
      double value = 0;
      const auto parsed = std::from_chars(text.data(), text.data() + text.size(), value);
      if (parsed.ec != std::errc() || parsed.ptr != text.data() + text.size() ||
          !std::isfinite(value))
        fail("calibration file '", source, "': table '", table, "' has '", text,
             "' where a number should be");
      return value;
    }
  };
};

// A calibration file as a parameter of a policy: its path in the text form of policies.
struct CalibrationFile {
  std::string path = {};
  Calibration data = {};

  static CalibrationFile load(const std::string& path) { return {path, Calibration::load(path)}; }
  bool empty() const { return data.tables.empty(); }
  // The table of that name, [layer][KV head or query head], or an error that begins with `who`.
  const Calibration::Table& demand(const char* who, std::string_view name, Index layers,
                                   Index kv_heads, Index query_heads) const {
    const Calibration::Table* own = data.find(name);
    if (!own) fail(who, ": calibration file '", path, "' has no table '", name, "'");
    if (own->rows != layers || (own->columns != kv_heads && own->columns != query_heads))
      fail(who, ": calibration file '", path, "' is of a model with ", own->rows, " layers and ",
           own->columns, " heads; this one has ", layers, " layers, ", query_heads,
           " query heads and ", kv_heads, " KV heads");
    return *own;
  }
};
inline void parse_value(const std::string&, const std::string& text, CalibrationFile& out) {
  out = CalibrationFile::load(text);
  if (out.empty()) fail("calibration file '", text, "': it has no tables");
}
inline std::string value_text(const CalibrationFile& file) {
  return file.path.empty() ? "none" : file.path;
}

LESSKV_END_NAMESPACE
