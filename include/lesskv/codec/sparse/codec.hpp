// SPDX-License-Identifier: MIT
// SparseCodec: rows of one head and side as sparse codes, in blocks of up to 64 rows.
//
// Papers: CSR (arXiv 2412.11741) and Lexico (arXiv 2412.08890). A row, less the mean of its head,
// becomes a few (atom, coefficient) pairs. With s atoms of a row of d channels, bits a number:
//   pairs    16-bit index, f16 coefficient                     32 s / d          CSR as published
//   lexico   16-bit index, FP8 E4M3 coefficient                24 s / d          Lexico's pairs
//   packed   index and coefficient level in one 16-bit word,   16 (s + 1) / d
//            one f16 norm a row
// d = 128: packed has exactly 1 bit at s = 7 and 2 bits at s = 15. d = 64: 1 bit at s = 3, 2 bits
// at s = 7, where CSR's own form takes 1.5 and 3.5. With a tolerance the number of atoms varies and
// each row has an 8-bit count more (Lexico's table counts 16).
//
// Needs: a dictionary per chunk (dictionary.hpp), levels in it for packed codes (levels.hpp).
// Cost: coding see pursuit.hpp; decoding s * d multiply-adds a row. Attention needs no decoding:
// see scores() and add().
// Defaults: packed, and the head's mean removed (a SparseCodec is given it): 66 to 79 % of the
// energy of un-rotated keys is their mean in the model the reference data come from.
// Differs: packed codes are quantised in closed loop (an atom's coefficient error is coded by the
// atoms after it), then the norm is set to the one that fits best. CSR's text lets a repeated atom
// overwrite its coefficient; here both count, which is what the pursuit computed. f16 and E4M3
// saturate, they never become infinite.
#pragma once

#include <span>
#include <vector>

#include "formats.hpp"
#include "fp8.hpp"
#include "pursuit.hpp"

LESSKV_BEGIN_NAMESPACE

struct SparseFormat {
  SparseCode code = SparseCode::packed;
  int atoms = 3;  // of a whole row; every chunk gets its share (with a tolerance: at most)
  PursuitMethod method = PursuitMethod::matching;  // packed: matching
  float tolerance = 0;  // pairs and lexico: stop at this share of the norm, count atoms per row
};

class SparseCodec {
 public:
  static constexpr Index block_rows = 64;
  static constexpr Index tile = 16;  // rows whose codes lie side by side

  // The work tables of the coders, one per chunk. Heads that share a dictionary share them.
  using Coders = std::vector<std::shared_ptr<const Pursuit>>;

  SparseCodec() = default;

  // One dictionary per chunk: a row is cut into equal contiguous chunks, each with its own. `mean`
  // (empty: none) has the length of a row.
  SparseCodec(SparseFormat format, std::vector<Dictionary> chunks, std::span<const float> mean = {})
      : format_(format), chunks_(std::move(chunks)), mean_(mean.begin(), mean.end()) {
    check();
    chunk_dim_ = chunks_[0].dim();
    for (const Dictionary& chunk : chunks_) {
      first_atom_.push_back(table_rows_);
      table_rows_ += chunk.size();
    }
    while (Index{1} << index_bits_ < most_atoms()) ++index_bits_;
    if (format_.code == SparseCode::packed) check_levels();
  }

  const SparseFormat& format() const { return format_; }
  int dim() const { return chunk_dim_ * chunk_count(); }
  int chunk_count() const { return static_cast<int>(chunks_.size()); }
  const Dictionary& dictionary(int chunk) const { return chunks_[static_cast<std::size_t>(chunk)]; }
  std::span<const float> mean() const { return mean_; }
  // Memory beside the object and what its dictionaries share.
  std::size_t own_bytes() const {
    std::size_t sum = chunks_.capacity() * sizeof(Dictionary) + mean_.capacity() * sizeof(float) +
                      first_atom_.capacity() * sizeof(Index);
    for (const Dictionary& chunk : chunks_) sum += chunk.own_bytes();
    return sum;
  }
  // Of a packed code: what names an atom, and its level.
  static int word_bits(const Dictionary& dictionary, Index more_atoms = 0) {
    int index = 0, level = 0;
    while (Index{1} << index < dictionary.size() + more_atoms) ++index;
    while (1 << level < dictionary.levels()) ++level;
    return index + level;
  }

  // ---- coding ------------------------------------------------------------------------------------

  Coders make_coders() const {
    Coders out;
    for (const Dictionary& chunk : chunks_) out.push_back(std::make_shared<const Pursuit>(chunk));
    return out;
  }

  // Bytes of a block: whole tiles of 16 rows. With a tolerance it has no tiles; this is the most it
  // can have, and used_bytes() what it has.
  std::size_t block_bytes(int dim, Index rows) const {
    if (dim != this->dim()) fail("SparseCodec::dim is ", dim, "; the dictionary has ", this->dim());
    if (varies())
      return detail::uz(rows) *
             (chunks_.size() + static_cast<std::size_t>(format_.atoms) * entry_bytes());
    return detail::uz((rows + tile - 1) / tile * tile_bytes());
  }
  std::size_t used_bytes(const std::byte* block, Index n) const {
    if (!varies()) return block_bytes(dim(), n);
    std::size_t entries = 0;
    for (std::size_t i = 0; i < detail::uz(n) * chunks_.size(); ++i)
      entries += std::to_integer<std::size_t>(block[i]);
    return detail::uz(n) * chunks_.size() + entries * entry_bytes();
  }

  // n rows [n][dim] into a block.
  void encode(const float* rows, Index n, std::byte* out, const Coders& coders) const {
    check_rows(n);
    if (coders.size() != chunks_.size())
      fail("SparseCodec::coders: ", coders.size(), " for ", chunks_.size(), " chunks");
    Work& work = scratch();
    const int steps = format_.atoms / chunk_count();
    const PursuitOptions options{steps, format_.method, format_.tolerance,
                                 format_.code == SparseCode::packed};
    float* x = work.rows.reserve(n * chunk_dim_);
    std::size_t written = detail::uz(n) * chunks_.size();  // of a block with counts
    if (!varies()) std::memset(out, 0, block_bytes(dim(), n));
    for (int chunk = 0; chunk < chunk_count(); ++chunk) {
      for (Index i = 0; i < n; ++i)
        for (int c = 0; c < chunk_dim_; ++c) {
          const std::size_t at = static_cast<std::size_t>(chunk * chunk_dim_ + c);
          x[i * chunk_dim_ + c] =
              rows[i * dim() + static_cast<Index>(at)] - (mean_.empty() ? 0.f : mean_[at]);
        }
      work.resize(n, steps);
      coders[static_cast<std::size_t>(chunk)]->encode(x, n, chunk_dim_, options, work.codes());
      if (format_.code == SparseCode::packed)
        write_packed(work, x, chunk, n, out);
      else if (varies())
        written = write_counted(work, chunk, n, out, written);
      else
        write_fixed(work, chunk, n, out);
    }
  }
  // The same with tables made for this call: convenient, and slow for a single block.
  void encode(const float* rows, Index n, std::byte* out) const {
    encode(rows, n, out, make_coders());
  }

  // Rows [first, first + count) of a block of n rows, to out[count][dim].
  void decode(const std::byte* block, Index n, Index first, Index count, float* out) const {
    const PursuitKernels& kernels = pursuit_kernels();
    Work& work = scratch();
    const std::size_t width = static_cast<std::size_t>(dim()) * sizeof(float);
    for (Index i = 0; i < count; ++i) {
      if (mean_.empty())
        std::memset(out + i * dim(), 0, width);
      else
        std::memcpy(out + i * dim(), mean_.data(), width);
    }
    // Rows of tiles can be read alone.
    const Index from = varies() ? 0 : first, have = varies() ? n : count;
    for (int chunk = 0; chunk < chunk_count(); ++chunk) {
      const Index slots = read(block, from, have, chunk, work);
      kernels.combine_rows(source_of(chunk), work.slot_index.data() + first - from,
                           work.slot_value.data() + first - from, slots, have, count,
                           out + chunk * chunk_dim_, dim());
    }
  }

  // Rows of a block behind the first `first` rows of another, codes as they are. Not with a
  // tolerance.
  void move(const std::byte* block, std::span<const std::uint8_t> rows, std::byte* out,
            Index first) const {
    if (varies()) fail("SparseCodec::tolerance: rows of varying length do not move");
    const bool packed = format_.code == SparseCode::packed;
    const Index wide = format_.atoms + (packed ? chunk_count() : 0);  // columns of 16 bits
    const Index width = packed ? 0 : static_cast<Index>(entry_bytes()) - 2;
    for (std::size_t i = 0; i < rows.size(); ++i) {
      const std::byte* from = tile_of(block, Index{rows[i]});
      const Index target = first + static_cast<Index>(i);
      std::byte* to = tile_of(out, target);
      const Index a = rows[i] % tile, b = target % tile;
      for (Index s = 0; s < wide; ++s)
        put16(to + 2 * (s * tile + b), get16(from + 2 * (s * tile + a)));
      from += 2 * tile * wide;
      to += 2 * tile * wide;
      for (Index s = 0; s < format_.atoms && width > 0; ++s)
        std::memcpy(to + width * (s * tile + b), from + width * (s * tile + a), detail::uz(width));
    }
  }

  // ---- attention without decoding ----------------------------------------------------------------
  //
  // A logit is q.k = q.mean + sum_s c_s (D q)[i_s]: D q once for all rows, then s look-ups a row.
  // An output is sum_t w_t v_t = (sum_t w_t) mean + D^T (sum_t w_t c_t): s additions a row, then one
  // product. Keys must be coded as they are multiplied (rotated): before RoPE the table would
  // depend on the row's position, and the block has to be decoded.

  // Floats of the table, or of the sums, of one query: one per atom of every chunk, then one for the
  // mean, then unused ones.
  Index table_width() const { return detail::round_up(table_rows_ + 1, 16); }
  Index table_rows() const { return table_rows_; }

  // queries [R][dim] -> table [R][table_width].
  void make_table(const float* queries, Index R, float* table) const {
    const PursuitKernels& kernels = pursuit_kernels();
    Work& work = scratch();
    const Index width = table_width();
    for (Index r = 0; r < R; ++r) {
      float sum = 0;
      for (std::size_t c = 0; c < mean_.size(); ++c)
        sum += mean_[c] * queries[r * dim() + static_cast<Index>(c)];
      table[r * width + table_rows_] = sum;
    }
    float* part = work.rows.reserve(R * chunk_dim_);
    for (int chunk = 0; chunk < chunk_count(); ++chunk) {
      for (Index r = 0; r < R; ++r)
        std::memcpy(part + r * chunk_dim_, queries + r * dim() + chunk * chunk_dim_,
                    static_cast<std::size_t>(chunk_dim_) * sizeof(float));
      const Dictionary& d = dictionary(chunk);
      float* at = table + first_atom(chunk);
      kernels.multiply_atoms(d.dtype(), d.base(), d.base_size(), d.dim(), part, R, at, width);
      kernels.multiply_atoms(d.dtype(), d.own(), d.size() - d.base_size(), d.dim(), part, R,
                             at + d.base_size(), width);
    }
  }

  // out[r * out_stride + row] = query r . row, for the n rows of a block.
  void scores(const std::byte* block, Index n, const float* table, Index R, float* out,
              Index out_stride) const {
    const PursuitKernels& kernels = pursuit_kernels();
    Work& work = scratch();
    const Index width = table_width();
    for (Index r = 0; r < R; ++r)
      std::fill_n(out + r * out_stride, n, table[r * width + table_rows_]);
    for (int chunk = 0; chunk < chunk_count(); ++chunk) {
      const Index slots = read(block, 0, n, chunk, work);
      kernels.gather_codes(table + first_atom(chunk), width, R, work.slot_index.data(),
                           work.slot_value.data(), slots, n, out, out_stride);
    }
  }

  // sums[R][table_width] += weights[r * weight_stride + row] * codes. The caller starts with zeros.
  void add(const std::byte* block, Index n, const float* weights, Index weight_stride, Index R,
           float* sums) const {
    const PursuitKernels& kernels = pursuit_kernels();
    Work& work = scratch();
    const Index width = table_width();
    for (Index r = 0; r < R; ++r)
      for (Index i = 0; i < n; ++i) sums[r * width + table_rows_] += weights[r * weight_stride + i];
    for (int chunk = 0; chunk < chunk_count(); ++chunk) {
      const Index slots = read(block, 0, n, chunk, work);
      kernels.scatter_codes(weights, weight_stride, R, work.slot_index.data(),
                            work.slot_value.data(), slots, n, sums + first_atom(chunk), width);
    }
  }

  // out[R][dim] += what add() gathered.
  void finish(const float* sums, Index R, float* out) const {
    const PursuitKernels& kernels = pursuit_kernels();
    const Index width = table_width();
    for (Index r = 0; r < R; ++r)
      for (std::size_t c = 0; c < mean_.size(); ++c)
        out[r * dim() + static_cast<Index>(c)] += sums[r * width + table_rows_] * mean_[c];
    for (int chunk = 0; chunk < chunk_count(); ++chunk) {
      const Dictionary& d = dictionary(chunk);
      const float* from = sums + first_atom(chunk);
      float* to = out + chunk * chunk_dim_;
      kernels.sum_codes(d.dtype(), d.base(), d.base_size(), d.dim(), from, width, R, to, dim());
      kernels.sum_codes(d.dtype(), d.own(), d.size() - d.base_size(), d.dim(), from + d.base_size(),
                        width, R, to, dim());
    }
  }

  // Whether tables beat decoding for R query rows over `rows` coded rows of a head. Multiply-adds,
  // a look-up counted as `lookup` of them (bench/pursuit_bench, attend_codes):
  //   tables    N d' R + rows * s * (R + lookup)      N atoms of d' channels
  //   decoding  rows * (s d' + d R)
  // so it is rows against atoms: about rows > N R / (s + R) where s, R << d.
  bool table_pays(Index rows, Index R) const {
    constexpr Index lookup = 8;
    const Index d = dim(), s = format_.atoms;
    return table_rows_ * chunk_dim_ * R + rows * s * (R + lookup) < rows * (s * chunk_dim_ + d * R);
  }

 private:
  struct Work {
    detail::Floats rows, sum;
    std::vector<std::int32_t> index, count, level;
    std::vector<float> coefficient;
    std::vector<std::uint16_t> slot_index;
    std::vector<float> slot_value;
    void resize(Index n, int steps) {
      const std::size_t slots = detail::uz(n * steps);
      index.resize(std::max(index.size(), slots));
      level.resize(index.size());
      coefficient.resize(index.size());
      count.resize(std::max(count.size(), detail::uz(n)));
    }
    PursuitCodes codes() {
      return {index.data(), coefficient.data(), count.data(), level.data(), nullptr};
    }
  };
  static Work& scratch() {
    static thread_local Work work;
    return work;
  }

  bool varies() const { return format_.tolerance > 0; }
  std::size_t entry_bytes() const { return format_.code == SparseCode::lexico ? 3 : 4; }
  Index first_atom(int chunk) const { return first_atom_[static_cast<std::size_t>(chunk)]; }
  Index most_atoms() const {
    Index most = 0;
    for (const Dictionary& chunk : chunks_) most = std::max(most, chunk.size());
    return most;
  }

  void check() const {
    if (chunks_.empty()) fail("SparseCodec::chunks: there is no dictionary");
    const int count = chunk_count();
    for (const Dictionary& chunk : chunks_)
      if (chunk.empty() || chunk.dim() != chunks_[0].dim())
        fail("SparseCodec::chunks: the dictionaries are empty or differ in dim");
    if (format_.atoms < 1 || format_.atoms / count > Pursuit::most_steps)
      fail("SparseCodec::atoms is ", format_.atoms, "; 1 to ", Pursuit::most_steps,
           " per chunk are possible");
    if (format_.atoms % count != 0)
      fail("SparseCodec::atoms is ", format_.atoms, ", not a multiple of the ", count, " chunks");
    if (!(format_.tolerance >= 0 && format_.tolerance < 1))
      fail("SparseCodec::tolerance must lie between 0 and 1");
    if (!mean_.empty() && mean_.size() != static_cast<std::size_t>(count * chunks_[0].dim()))
      fail("SparseCodec::mean has ", mean_.size(), " channels, a row has ",
           count * chunks_[0].dim());
    for (const float x : mean_)
      if (!std::isfinite(x)) fail("SparseCodec::mean is not finite");
    if (format_.code == SparseCode::packed && format_.method != PursuitMethod::matching)
      fail("SparseCodec::method: packed codes are quantised in the loop of plain pursuit");
    if (format_.code == SparseCode::packed && format_.tolerance > 0)
      fail("SparseCodec::tolerance: packed codes have a fixed length");
  }
  void check_levels() const {
    for (const Dictionary& chunk : chunks_) {
      if (chunk.stages() < format_.atoms / chunk_count())
        fail("SparseCodec::atoms is ", format_.atoms / chunk_count(),
             " per chunk; the dictionary has coefficient levels for ", chunk.stages());
      int bits = 0;
      while (1 << bits < chunk.levels()) ++bits;
      if (index_bits_ + bits > 16)
        fail("SparseCodec::chunks: an index of ", index_bits_, " bits and a level of ", bits,
             " do not fit into 16");
    }
  }
  static void check_rows(Index n) {
    if (n < 0 || n > block_rows)
      fail("SparseCodec::rows: a block has up to ", block_rows, " rows, not ", n);
  }

  AtomSource source_of(int chunk) const {
    const Dictionary& d = dictionary(chunk);
    return {d.dtype(), d.dim(), d.base(), d.base_size(), d.own()};
  }

  static void put16(std::byte* at, std::uint16_t x) { std::memcpy(at, &x, 2); }
  static std::uint16_t get16(const std::byte* at) {
    std::uint16_t x;
    std::memcpy(&x, at, 2);
    return x;
  }
  static std::uint16_t half(float x) {
    constexpr float most = 65504.f;
    return to_f16(x > most ? most : x < -most ? -most : x).bits;
  }
  void put_entry(std::byte* index, std::byte* value, std::int32_t i, float c) const {
    put16(index, static_cast<std::uint16_t>(i));
    if (format_.code == SparseCode::lexico)
      *value = static_cast<std::byte>(to_e4m3(c).bits);
    else
      put16(value, half(c));
  }
  float get_value(const std::byte* at) const {
    if (format_.code == SparseCode::lexico)
      return to_float(e4m3{std::to_integer<std::uint8_t>(*at)});
    return to_float(f16{get16(at)});
  }

  Index tile_bytes() const {
    return format_.code == SparseCode::packed
               ? 2 * tile * (format_.atoms + chunk_count())
               : tile * format_.atoms * static_cast<Index>(entry_bytes());
  }
  // Where the tile of a row begins.
  template <class Byte>
  Byte* tile_of(Byte* block, Index row) const {
    return block + row / tile * tile_bytes();
  }

  // Fixed length. A tile: [slot][row] indices, then [slot][row] coefficients.
  void write_fixed(const Work& work, int chunk, Index n, std::byte* out) const {
    const Index steps = format_.atoms / chunk_count(),
                width = static_cast<Index>(entry_bytes()) - 2;
    for (Index i = 0; i < n; ++i) {
      std::byte* at = tile_of(out, i);
      std::byte* values = at + 2 * tile * format_.atoms;
      for (Index s = 0; s < work.count[detail::uz(i)]; ++s) {
        const Index slot = (chunk * steps + s) * tile + i % tile;
        const std::size_t from = detail::uz(i * steps + s);
        put_entry(at + 2 * slot, values + width * slot, work.index[from], work.coefficient[from]);
      }
    }
  }

  // [chunk][row] counts, then the entries of row 0, 1, ... of chunk 0, then chunk 1. Returns the
  // end.
  std::size_t write_counted(const Work& work, int chunk, Index n, std::byte* out,
                            std::size_t at) const {
    const Index steps = format_.atoms / chunk_count();
    for (Index i = 0; i < n; ++i) {
      out[chunk * n + i] = static_cast<std::byte>(work.count[detail::uz(i)]);
      for (Index s = 0; s < work.count[detail::uz(i)]; ++s, at += entry_bytes()) {
        const std::size_t from = detail::uz(i * steps + s);
        put_entry(out + at, out + at + 2, work.index[from], work.coefficient[from]);
      }
    }
    return at;
  }

  // A tile: [slot][row] words, then [chunk][row] norms.
  void write_packed(Work& work, const float* x, int chunk, Index n, std::byte* out) const {
    const Index steps = format_.atoms / chunk_count();
    const Dictionary& d = dictionary(chunk);
    const AtomSource source = source_of(chunk);
    float* y = work.sum.reserve(chunk_dim_);
    std::uint16_t index[Pursuit::most_steps];
    float value[Pursuit::most_steps];
    for (Index i = 0; i < n; ++i) {
      const bool there = work.count[detail::uz(i)] == steps;
      for (Index s = 0; s < steps; ++s) {
        const std::size_t from = detail::uz(i * steps + s);
        const int level = there ? work.level[from] : 0;
        index[s] = static_cast<std::uint16_t>(there ? work.index[from] : 0);
        value[s] = d.level_table()[s * d.levels() + level];
        put16(tile_of(out, i) + 2 * ((chunk * steps + s) * tile + i % tile),
              static_cast<std::uint16_t>(index[s] | level << index_bits_));
      }
      // The norm that makes the error smallest, given the directions.
      float norm = 0;
      if (there) {
        std::fill(y, y + chunk_dim_, 0.f);
        pursuit_kernels().combine(source, index, value, static_cast<int>(steps), y);
        double xy = 0, yy = 0;
        for (int c = 0; c < chunk_dim_; ++c) {
          xy += static_cast<double>(x[i * chunk_dim_ + c]) * static_cast<double>(y[c]);
          yy += static_cast<double>(y[c]) * static_cast<double>(y[c]);
        }
        norm = yy > 0 ? static_cast<float>(xy / yy) : 0.f;
      }
      put16(tile_of(out, i) + 2 * ((format_.atoms + chunk) * tile + i % tile), half(norm));
    }
  }

  // Codes of rows [first, first + n) of a chunk as [slot][row] indices and f32 coefficients; returns
  // the slots. Rows that have fewer are filled up with zeros. With a tolerance: of all rows.
  Index read(const std::byte* block, Index first, Index n, int chunk, Work& work) const {
    const Index steps = format_.atoms / chunk_count();
    const std::size_t slots = detail::uz(steps * n);
    if (work.slot_index.size() < slots) {
      work.slot_index.resize(slots);
      work.slot_value.resize(slots);
    }
    std::uint16_t* index = work.slot_index.data();
    float* value = work.slot_value.data();
    if (varies()) return read_counted(block, n, chunk, index, value);
    for (Index done = 0; done < n;) {
      const Index row = (first + done) % tile, count = std::min(tile - row, n - done);
      const std::byte* at = tile_of(block, first + done);
      if (format_.code == SparseCode::packed)
        read_packed(at, row, count, chunk, n, index + done, value + done);
      else
        read_entries(at, row, count, chunk, n, index + done, value + done);
      done += count;
    }
    return steps;
  }
  // Rows [row, row + count) of a tile, to [slot][n].
  void read_packed(const std::byte* at, Index row, Index count, int chunk, Index n,
                   std::uint16_t* index, float* value) const {
    const Dictionary& d = dictionary(chunk);
    const Index steps = format_.atoms / chunk_count(), level_count = d.levels();
    const float* levels = d.level_table();
    const unsigned mask = (1u << index_bits_) - 1, bits = static_cast<unsigned>(index_bits_);
    float norm[tile];
    kernels().to_f32(DType::f16, at + 2 * ((format_.atoms + chunk) * tile + row), norm, count);
    const std::byte* words = at + 2 * (chunk * steps * tile + row);
    for (Index s = 0; s < steps; ++s, words += 2 * tile, levels += level_count)
      for (Index i = 0; i < count; ++i) {
        const unsigned word = get16(words + 2 * i);
        index[s * n + i] = static_cast<std::uint16_t>(word & mask);
        value[s * n + i] = levels[word >> bits] * norm[i];
      }
  }
  void read_entries(const std::byte* at, Index row, Index count, int chunk, Index n,
                    std::uint16_t* index, float* value) const {
    const Index steps = format_.atoms / chunk_count();
    const std::byte* values = at + 2 * tile * format_.atoms;
    for (Index s = 0; s < steps; ++s) {
      const Index slot = (chunk * steps + s) * tile + row;
      for (Index i = 0; i < count; ++i) index[s * n + i] = get16(at + 2 * (slot + i));
      if (format_.code == SparseCode::pairs)
        kernels().to_f32(DType::f16, values + 2 * slot, value + s * n, count);
      else
        for (Index i = 0; i < count; ++i) value[s * n + i] = get_value(values + slot + i);
    }
  }
  Index read_counted(const std::byte* block, Index n, int chunk, std::uint16_t* index,
                     float* value) const {
    const std::size_t before = detail::uz(n * chunk);
    std::size_t at = detail::uz(n) * chunks_.size();
    for (std::size_t i = 0; i < before; ++i)
      at += std::to_integer<std::size_t>(block[i]) * entry_bytes();
    Index most = 0;
    for (Index i = 0; i < n; ++i)
      most = std::max(most, std::to_integer<Index>(block[before + detail::uz(i)]));
    std::fill(index, index + most * n, std::uint16_t{0});
    std::fill(value, value + most * n, 0.f);
    for (Index i = 0; i < n; ++i)
      for (Index s = 0; s < std::to_integer<Index>(block[before + detail::uz(i)]); ++s) {
        index[s * n + i] = get16(block + at);
        value[s * n + i] = get_value(block + at + 2);
        at += entry_bytes();
      }
    return most;
  }

  SparseFormat format_;
  std::vector<Dictionary> chunks_;
  std::vector<float> mean_;
  std::vector<Index> first_atom_;
  Index table_rows_ = 0;
  int chunk_dim_ = 0, index_bits_ = 0;
};

LESSKV_END_NAMESPACE
