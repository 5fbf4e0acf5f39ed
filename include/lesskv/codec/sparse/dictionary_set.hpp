// SPDX-License-Identifier: MIT
// All dictionaries of a model, and the file they come in.
//
// Layers share dictionaries (CSR merges layers whose keys or values are distributed alike); every
// head has its own mean. The file is mapped where the system can, so that atoms are read from the
// page cache and shared between processes; nothing but the means and levels is copied.
//
// File format, version 1. All numbers little-endian.
//   0   8   magic "LESSKVD1"
//   8   8   u64 bytes of the file
//   16  8   u64 checksum: FNV-1a (64 bits) of everything behind it
//   24  10 x u32: layers, kv_heads, key_dim, value_dim, key_chunks, value_chunks, flags, number of
//           dictionaries, number of rotation frequencies, 0. flags: 1 keys are coded before RoPE;
//           2 means of keys, 4 of values; 8 rotated pairs are neighbours, not half a key apart
//   64  then u32 [layers][key_chunks] and u32 [layers][value_chunks]: which dictionary
//       then per dictionary 6 x u32: dim, atoms, type (0 f32, 1 f16), stages, levels, 0
//       then f32 [layers][kv_heads][key_dim] and [layers][kv_heads][value_dim], where flagged
//       then f64 [frequencies]: how far each pair of channels turns a position, in radians
//       then f32 [stages][levels] of each dictionary
//       then per dictionary, at the next multiple of 64: [atoms][dim]
#pragma once

#include <cstdio>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "../../core/rope.hpp"
#include "dictionary.hpp"

#if __has_include(<sys/mman.h>) && __has_include(<unistd.h>)
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#define LESSKV_HAS_MMAP 1
#else
#define LESSKV_HAS_MMAP 0
#endif

LESSKV_BEGIN_NAMESPACE

struct DictionarySet {
  int layers = 0, kv_heads = 0;
  bool keys_before_rope = true;
  std::vector<Dictionary> dictionaries;
  // Which dictionary codes chunk c of layer l: [l * chunks + c].
  std::vector<std::uint32_t> key_dictionary, value_dictionary;
  // How keys are rotated, needed if they are coded before it; no frequencies: not known.
  std::vector<double> rope_frequencies;
  Rope::Layout rope_layout = Rope::Layout::half_split;
  // [layer][kv_head][dim], or empty.
  std::vector<float> key_mean, value_mean;

  int key_chunks() const { return chunks(key_dictionary); }
  int value_chunks() const { return chunks(value_dictionary); }
  int key_dim() const { return dim_of(key_dictionary); }
  int value_dim() const { return dim_of(value_dictionary); }

  // The dictionaries of one layer and side, one per chunk, and the mean of a head.
  std::vector<Dictionary> keys(int layer) const { return of(key_dictionary, layer); }
  std::vector<Dictionary> values(int layer) const { return of(value_dictionary, layer); }
  std::span<const float> mean_of_keys(int layer, int head) const {
    return mean(key_mean, key_dim(), layer, head);
  }
  std::span<const float> mean_of_values(int layer, int head) const {
    return mean(value_mean, value_dim(), layer, head);
  }

  // Everything that is held, each dictionary once.
  std::size_t bytes() const {
    std::size_t sum = (key_mean.size() + value_mean.size()) * sizeof(float) +
                      (key_dictionary.size() + value_dictionary.size()) * sizeof(std::uint32_t) +
                      rope_frequencies.size() * sizeof(double);
    for (const Dictionary& d : dictionaries) sum += d.shared_bytes() + d.level_bytes();
    return sum;
  }

  // Errors name the file and what is wrong with it; `who` opens the message.
  static DictionarySet load(const std::string& path, const std::string& who = {});
  void save(const std::string& path) const;

  // The bytes of a file; `owner` keeps them alive. `name` is for errors. `data` must be aligned to
  // 64 bytes for the atoms to be used in place.
  static DictionarySet parse(const std::byte* data, std::size_t size,
                             std::shared_ptr<const void> owner, const std::string& name);
  std::vector<std::byte> serialise() const;

 private:
  int chunks(const std::vector<std::uint32_t>& table) const {
    return layers > 0 ? static_cast<int>(table.size()) / layers : 0;
  }
  int dim_of(const std::vector<std::uint32_t>& table) const {
    return table.empty() ? 0 : chunks(table) * dictionaries[table[0]].dim();
  }
  std::vector<Dictionary> of(const std::vector<std::uint32_t>& table, int layer) const {
    if (layer < 0 || layer >= layers)
      fail("DictionarySet::layer is ", layer, "; the dictionaries are for ", layers, " layers");
    std::vector<Dictionary> out;
    const int count = chunks(table);
    for (int c = 0; c < count; ++c)
      out.push_back(dictionaries[table[static_cast<std::size_t>(layer * count + c)]]);
    return out;
  }
  std::span<const float> mean(const std::vector<float>& all, int dim, int layer, int head) const {
    if (layer < 0 || layer >= layers || head < 0 || head >= kv_heads)
      fail("DictionarySet::mean: layer ", layer, ", head ", head, " of ", layers, ", ", kv_heads);
    if (all.empty()) return {};
    return std::span<const float>(all).subspan(
        static_cast<std::size_t>((layer * kv_heads + head) * dim), static_cast<std::size_t>(dim));
  }
  // Whether the parts fit together; `where` opens the message.
  void check(const std::string& where) const;
};

namespace detail {

inline constexpr char dictionary_magic[9] = "LESSKVD1";
inline constexpr std::size_t dictionary_header = 64;

inline std::uint64_t fnv1a(const std::byte* data, std::size_t size) {
  std::uint64_t hash = 0xcbf29ce484222325u;
  for (std::size_t i = 0; i < size; ++i)
    hash = (hash ^ std::to_integer<std::uint64_t>(data[i])) * 0x100000001b3u;
  return hash;
}

template <class T>
T read_little(const std::byte* at) {
  T out = 0;
  for (std::size_t i = sizeof(T); i-- > 0;)
    out = static_cast<T>(out << 8 | std::to_integer<T>(at[i]));
  return out;
}

class LittleWriter {
 public:
  template <class T>
  void put(T x) {
    for (std::size_t i = 0; i < sizeof(T); ++i)
      bytes.push_back(static_cast<std::byte>(x >> (8 * i) & 0xffu));
  }
  void put(float x) { put(std::bit_cast<std::uint32_t>(x)); }
  void align(std::size_t to) { bytes.resize((bytes.size() + to - 1) / to * to); }
  void set64(std::size_t at, std::uint64_t x) {
    for (std::size_t i = 0; i < 8; ++i)
      bytes[at + i] = static_cast<std::byte>(x >> (8 * i) & 0xffu);
  }
  std::vector<std::byte> bytes;
};

// Reads on, never past the end.
class LittleReader {
 public:
  LittleReader(const std::byte* data, std::size_t size, const std::string& name)
      : data_(data), size_(size), name_(name) {}
  const std::byte* take(std::size_t n, const char* what) {
    if (n > size_ - at_) fail(name_, ": the dictionary file ends inside its ", what);
    at_ += n;
    return data_ + at_ - n;
  }
  std::uint32_t u32(const char* what) { return read_little<std::uint32_t>(take(4, what)); }
  // `count` numbers; the file must hold them before memory is taken.
  std::vector<float> floats(std::size_t count, const char* what) {
    if (count > size_ / 4) fail(name_, ": the dictionary file ends inside its ", what);
    const std::byte* from = take(count * 4, what);
    std::vector<float> out(count);
    for (std::size_t i = 0; i < count; ++i)
      out[i] = std::bit_cast<float>(read_little<std::uint32_t>(from + 4 * i));
    return out;
  }
  void align(std::size_t to) { take(std::min((to - at_ % to) % to, size_ - at_), "padding"); }
  std::size_t left() const { return size_ - at_; }

 private:
  const std::byte* data_;
  std::size_t size_, at_ = 0;
  const std::string& name_;
};

}  // namespace detail

inline void DictionarySet::check(const std::string& where) const {
  if (layers < 1 || kv_heads < 1) fail(where, "there is no layer or no head");
  const auto check_table = [&](const std::vector<std::uint32_t>& table, const char* side) {
    if (table.empty() || table.size() % static_cast<std::size_t>(layers) != 0)
      fail(where, side, " have no dictionary for some layer");
    for (const std::uint32_t d : table)
      if (d >= dictionaries.size())
        fail(where, side, " name dictionary ", d, " of ", dictionaries.size());
    for (const std::uint32_t d : table)
      if (dictionaries[d].dim() != dictionaries[table[0]].dim())
        fail(where, side, " have dictionaries of different dim");
  };
  check_table(key_dictionary, "keys");
  check_table(value_dictionary, "values");
  const auto check_mean = [&](const std::vector<float>& all, int dim, const char* side) {
    if (!all.empty() && all.size() != static_cast<std::size_t>(layers * kv_heads * dim))
      fail(where, "the means of ", side, " do not fit layers, heads and dim");
    for (const float x : all)
      if (!std::isfinite(x)) fail(where, "a mean of ", side, " is not finite");
  };
  check_mean(key_mean, key_dim(), "keys");
  check_mean(value_mean, value_dim(), "values");
  if (2 * rope_frequencies.size() > static_cast<std::size_t>(key_dim()))
    fail(where, rope_frequencies.size(), " frequencies of a rotation of ", key_dim(), " channels");
  for (const double x : rope_frequencies)
    if (!std::isfinite(x)) fail(where, "a frequency of the rotation is not finite");
}

inline std::vector<std::byte> DictionarySet::serialise() const {
  check("DictionarySet: ");
  detail::LittleWriter out;
  for (int i = 0; i < 8; ++i) out.put(static_cast<std::uint8_t>(detail::dictionary_magic[i]));
  out.put(std::uint64_t{0});
  out.put(std::uint64_t{0});
  const auto put_int = [&](int x) { out.put(static_cast<std::uint32_t>(x)); };
  for (const int x : {layers, kv_heads, key_dim(), value_dim(), key_chunks(), value_chunks()})
    put_int(x);
  put_int((keys_before_rope ? 1 : 0) | (key_mean.empty() ? 0 : 2) | (value_mean.empty() ? 0 : 4) |
          (rope_layout == Rope::Layout::interleaved ? 8 : 0));
  put_int(static_cast<int>(dictionaries.size()));
  put_int(static_cast<int>(rope_frequencies.size()));
  put_int(0);
  for (const std::uint32_t d : key_dictionary) out.put(d);
  for (const std::uint32_t d : value_dictionary) out.put(d);
  for (const Dictionary& d : dictionaries) {
    if (d.size() != d.base_size()) fail("DictionarySet: atoms of a prompt are not saved");
    put_int(d.dim());
    put_int(static_cast<int>(d.size()));
    put_int(d.dtype() == DType::f16 ? 1 : 0);
    put_int(d.stages());
    put_int(d.levels());
    put_int(0);
  }
  for (const float x : key_mean) out.put(x);
  for (const float x : value_mean) out.put(x);
  for (const double x : rope_frequencies) out.put(std::bit_cast<std::uint64_t>(x));
  for (const Dictionary& d : dictionaries)
    for (int i = 0; i < d.stages() * d.levels(); ++i) out.put(d.level_table()[i]);
  for (const Dictionary& d : dictionaries) {
    out.align(64);
    const std::size_t count = detail::uz(d.size() * d.dim());
    for (std::size_t i = 0; i < count; ++i) {
      if (d.dtype() == DType::f16)
        out.put(static_cast<const f16*>(d.base())[i].bits);
      else
        out.put(static_cast<const float*>(d.base())[i]);
    }
  }
  out.set64(8, out.bytes.size());
  out.set64(16, detail::fnv1a(out.bytes.data() + 24, out.bytes.size() - 24));
  return std::move(out.bytes);
}

inline DictionarySet DictionarySet::parse(const std::byte* data, std::size_t size,
                                          std::shared_ptr<const void> owner,
                                          const std::string& name) {
  if (size < 8 || std::memcmp(data, detail::dictionary_magic, 7) != 0)
    fail(name, ": not a dictionary file of lesskv");
  if (data[7] != static_cast<std::byte>(detail::dictionary_magic[7]))
    fail(name, ": version ", static_cast<int>(std::to_integer<char>(data[7])) - '0',
         " of the dictionary file; this library reads 1");
  if (size < detail::dictionary_header) fail(name, ": the dictionary file is cut off");
  const std::uint64_t whole = detail::read_little<std::uint64_t>(data + 8);
  if (whole > size) fail(name, ": the dictionary file is cut off: ", size, " of ", whole, " bytes");
  if (whole < size) fail(name, ": ", size - whole, " bytes too many behind the dictionaries");
  if (detail::read_little<std::uint64_t>(data + 16) != detail::fnv1a(data + 24, size - 24))
    fail(name, ": damaged, the checksum of the dictionary file is wrong");

  detail::LittleReader in(data, size, name);
  in.take(24, "header");
  constexpr std::uint32_t most = 1u << 16;
  const auto size_from = [&](const char* what) {
    const std::uint32_t x = in.u32("header");
    if (x < 1 || x > most) fail(name, ": ", what, " is ", x);
    return x;
  };
  DictionarySet out;
  const std::uint32_t layer_count = size_from("layers"), head_count = size_from("kv_heads"),
                      key_width = size_from("key_dim"), value_width = size_from("value_dim"),
                      key_parts = size_from("key_chunks"), value_parts = size_from("value_chunks");
  const std::uint32_t flags = in.u32("header"), count = size_from("the number of dictionaries");
  if (flags > 15) fail(name, ": unknown flags ", flags);
  const std::uint32_t frequencies = in.u32("header");
  if (frequencies > most) fail(name, ": the number of frequencies is ", frequencies);
  if (in.u32("header") != 0) fail(name, ": reserved fields are not 0");
  if (flags & 8) out.rope_layout = Rope::Layout::interleaved;
  out.layers = static_cast<int>(layer_count);
  out.kv_heads = static_cast<int>(head_count);
  out.keys_before_rope = (flags & 1) != 0;
  const auto read_table = [&](std::uint64_t n, std::vector<std::uint32_t>& table) {
    if (n > in.left() / 4) fail(name, ": the dictionary file ends inside its layer table");
    for (std::uint64_t i = 0; i < n; ++i) table.push_back(in.u32("layer table"));
  };
  read_table(std::uint64_t{layer_count} * key_parts, out.key_dictionary);
  read_table(std::uint64_t{layer_count} * value_parts, out.value_dictionary);
  struct Entry {
    std::uint32_t dim, atoms, type, stages, levels;
  };
  std::vector<Entry> entries;
  for (std::uint32_t i = 0; i < count; ++i) {
    Entry e{};
    for (std::uint32_t* x : {&e.dim, &e.atoms, &e.type, &e.stages, &e.levels})
      *x = in.u32("list of dictionaries");
    if (in.u32("list of dictionaries") != 0) fail(name, ": reserved fields are not 0");
    if (e.dim < 1 || e.dim > 4096 || e.atoms < 1 || e.atoms > most || e.type > 1 || e.stages > 64 ||
        e.levels > 256)
      fail(name, ": dictionary ", i, " has impossible sizes");
    entries.push_back(e);
  }
  const std::uint64_t heads = std::uint64_t{layer_count} * head_count;
  if (flags & 2) out.key_mean = in.floats(heads * key_width, "means");
  if (flags & 4) out.value_mean = in.floats(heads * value_width, "means");
  for (std::uint32_t i = 0; i < frequencies; ++i)
    out.rope_frequencies.push_back(std::bit_cast<double>(
        detail::read_little<std::uint64_t>(in.take(8, "frequencies of the rotation"))));
  std::vector<std::vector<float>> levels;
  for (const Entry& e : entries)
    levels.push_back(in.floats(std::size_t{e.stages} * e.levels, "levels"));
  for (std::size_t i = 0; i < entries.size(); ++i) {
    const Entry& e = entries[i];
    in.align(64);
    const std::size_t width = e.type == 1 ? 2 : 4, n = std::size_t{e.atoms} * e.dim;
    const std::byte* from = in.take(n * width, "atoms");
    const DType type = e.type == 1 ? DType::f16 : DType::f32;
    const int dim = static_cast<int>(e.dim);
    Dictionary d;
    if constexpr (std::endian::native == std::endian::little) {
      if (owner && reinterpret_cast<std::uintptr_t>(from) % 4 == 0)
        d = Dictionary::view(dim, Index{e.atoms}, owner, from, type);
    }
    if (d.empty()) {
      std::vector<float> atoms(n);
      for (std::size_t k = 0; k < n; ++k)
        atoms[k] = e.type == 1
                       ? to_float(f16{detail::read_little<std::uint16_t>(from + 2 * k)})
                       : std::bit_cast<float>(detail::read_little<std::uint32_t>(from + 4 * k));
      d = Dictionary(dim, Index{e.atoms}, atoms.data(), type);
    }
    if (e.stages > 0)
      d = d.with_levels(static_cast<int>(e.stages), static_cast<int>(e.levels), levels[i].data());
    out.dictionaries.push_back(std::move(d));
  }
  if (in.left() > 0) fail(name, ": ", in.left(), " bytes too many behind the dictionaries");
  out.check(name + ": ");
  if (out.key_dim() != static_cast<int>(key_width) ||
      out.value_dim() != static_cast<int>(value_width))
    fail(name, ": chunks and dictionaries do not add up to key_dim and value_dim");
  return out;
}

inline DictionarySet DictionarySet::load(const std::string& path, const std::string& who) {
#if LESSKV_HAS_MMAP
  const int file = ::open(path.c_str(), O_RDONLY);
  struct stat status {};
  if (file < 0 || ::fstat(file, &status) != 0 || !S_ISREG(status.st_mode)) {
    if (file >= 0) ::close(file);
    fail(who, path, ": the dictionary file cannot be opened");
  }
  const std::size_t size = static_cast<std::size_t>(status.st_size);
  void* data = size > 0 ? ::mmap(nullptr, size, PROT_READ, MAP_PRIVATE, file, 0) : nullptr;
  ::close(file);
  if (size > 0 && data == MAP_FAILED) fail(who, path, ": the dictionary file cannot be mapped");
  std::shared_ptr<const void> owner(data, [size](const void* p) {
    if (p) ::munmap(const_cast<void*>(p), size);
  });
  return parse(static_cast<const std::byte*>(data), size, owner, who + path);
#else
  std::FILE* file = std::fopen(path.c_str(), "rb");
  if (!file) fail(who, path, ": the dictionary file cannot be opened");
  auto bytes = std::make_shared<std::vector<std::byte>>();
  std::byte part[65536];
  for (std::size_t n; (n = std::fread(part, 1, sizeof part, file)) > 0;)
    bytes->insert(bytes->end(), part, part + n);
  const bool failed = std::ferror(file) != 0;
  std::fclose(file);
  if (failed) fail(who, path, ": the dictionary file cannot be read");
  return parse(bytes->data(), bytes->size(), bytes, who + path);
#endif
}

// Complete or not there: written beside, then renamed.
inline void DictionarySet::save(const std::string& path) const {
  const std::vector<std::byte> bytes = serialise();
  const std::string part = path + ".part";
  std::FILE* file = std::fopen(part.c_str(), "wb");
  if (!file) fail(path, ": the dictionary file cannot be written");
  const bool whole = std::fwrite(bytes.data(), 1, bytes.size(), file) == bytes.size();
  if (std::fclose(file) != 0 || !whole || std::rename(part.c_str(), path.c_str()) != 0) {
    std::remove(part.c_str());
    fail(path, ": the dictionary file cannot be written");
  }
}

LESSKV_END_NAMESPACE
