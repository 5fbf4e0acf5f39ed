// SPDX-License-Identifier: MIT
// CsrCodec: one side of one head as sparse codes, and what heads share. csr.hpp has the policy.
#pragma once

#include <cstring>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "../core/side_codec.hpp"
#include "sparse/codec.hpp"
#include "sparse/dictionary_set.hpp"
#include "sparse/prompt.hpp"

LESSKV_BEGIN_NAMESPACE
namespace detail {

// What all heads of a model share: dictionaries, the rotation of its keys, and, while somebody
// encodes, the tables of the coders.
class SharedDictionaries {
 public:
  explicit SharedDictionaries(DictionarySet set) : set_(std::move(set)) {
    if (!set_.keys_before_rope) return;
    if (set_.rope_frequencies.empty())
      fail(
          "CSR::dictionary: its keys are coded before RoPE, but it does not say how they rotate; "
          "DictionarySet::rope_frequencies is empty");
    Rope rope;
    rope.layout = set_.rope_layout;
    rope.width = 2 * static_cast<int>(set_.rope_frequencies.size());
    rope.frequencies = set_.rope_frequencies;
    rotation_ = Rotation(rope, set_.key_dim());
  }

  const DictionarySet& set() const { return set_; }
  bool encoding() const { return !coders_.expired(); }
  const Rotation& rotation() const { return rotation_; }
  std::size_t bytes() const { return sizeof(*this) + set_.bytes() + rotation_.bytes(); }
  // All tables together.
  std::size_t encoder_bytes() const {
    std::size_t sum = 0;
    for (const Dictionary& d : set_.dictionaries) sum += Pursuit::work_bytes(d);
    return sum;
  }

  // The coders, each made when it is first asked for; they go with the last who holds them.
  class Coders {
   public:
    explicit Coders(std::size_t count) : coders_(count) {}
    std::shared_ptr<const Pursuit> of(const DictionarySet& set, std::size_t dictionary) {
      const std::lock_guard lock(mutex_);
      std::shared_ptr<const Pursuit>& coder = coders_[dictionary];
      if (!coder) coder = std::make_shared<const Pursuit>(set.dictionaries[dictionary]);
      return coder;
    }

   private:
    std::mutex mutex_;
    std::vector<std::shared_ptr<const Pursuit>> coders_;
  };
  std::shared_ptr<Coders> coders() const {
    const std::lock_guard lock(mutex_);
    std::shared_ptr<Coders> out = coders_.lock();
    if (!out) coders_ = out = std::make_shared<Coders>(set_.dictionaries.size());
    return out;
  }

 private:
  DictionarySet set_;
  Rotation rotation_;
  mutable std::mutex mutex_;
  mutable std::weak_ptr<Coders> coders_;
};

// Atoms that every head takes from its own prompt, a side.
struct PromptAtoms {
  Index sampled = 0, guard = 0;
  Index count() const { return sampled + guard; }
};

// One side of one head.
class CsrCodec final : public SideCodec {
 public:
  CsrCodec(std::shared_ptr<const SharedDictionaries> shared, SparseFormat format, Side side,
           int layer, int head, PromptAtoms prompt = {})
      : shared_(std::move(shared)), prompt_(prompt) {
    const DictionarySet& set = shared_->set();
    const bool keys = side == Side::keys;
    const auto& table = keys ? set.key_dictionary : set.value_dictionary;
    const int chunks = keys ? set.key_chunks() : set.value_chunks();
    for (int c = 0; c < chunks; ++c)
      dictionaries_.push_back(table[static_cast<std::size_t>(layer * chunks + c)]);
    codec_ = SparseCodec(format, keys ? set.keys(layer) : set.values(layer),
                         keys ? set.mean_of_keys(layer, head) : set.mean_of_values(layer, head));
    turned_ = keys && set.keys_before_rope;
    set_code();
  }
  // The same with atoms of its own.
  CsrCodec(const CsrCodec& from, std::vector<Dictionary> extended)
      : shared_(from.shared_),
        codec_(from.codec_.format(), std::move(extended), from.codec_.mean()),
        turned_(from.turned_) {
    set_code();
  }
  CsrCodec(const CsrCodec&) = delete;

  std::size_t bytes(Index rows) const override { return codec_.block_bytes(codec_.dim(), rows); }
  void encode(const float* rows, const std::uint32_t* positions, Index n,
              void* block) const override {
    if (turned_) {
      static thread_local Floats scratch;
      float* raw = scratch.reserve(kernel_block * codec_.dim());
      std::memcpy(raw, rows, uz(n * codec_.dim()) * sizeof(float));
      turn(raw, positions, n, -1);
      rows = raw;
    }
    codec_.encode(rows, n, static_cast<std::byte*>(block), coders());
  }
  void gather(const void* block, const std::uint32_t*, std::span<const std::uint8_t> rows,
              void* out) const override {
    std::memset(out, 0, bytes(static_cast<Index>(rows.size())));
    move(block, rows, out, 0);
  }
  bool move(const void* block, std::span<const std::uint8_t> rows, void* out,
            Index at) const override {
    codec_.move(static_cast<const std::byte*>(block), rows, static_cast<std::byte*>(out), at);
    return true;
  }
  const SideCode& code() const override { return code_; }
  std::size_t own_bytes() const override {
    return sizeof(*this) + codec_.own_bytes() + dictionaries_.capacity() * sizeof(std::uint32_t);
  }
  bool adapts() const override { return prompt_.count() > 0; }
  std::size_t adapted_bytes() const override {
    std::size_t sum = 0;
    for (int c = 0; adapts() && c < codec_.chunk_count(); ++c)
      sum +=
          uz(prompt_.count() * codec_.dictionary(c).dim() * size_of(codec_.dictionary(c).dtype()));
    return sum;
  }
  // The newest rows, then those that are coded worst.
  std::shared_ptr<const SideCodec> adapted(const float* rows, const std::uint32_t* positions,
                                           Index n) const override {
    const Index dim = codec_.dim(), part = codec_.dictionary(0).dim();
    std::vector<float> raw(rows, rows + n * dim), chunk(uz(n * part));
    if (turned_) turn(raw.data(), positions, n, -1);
    std::vector<Dictionary> extended;
    for (int c = 0; c < codec_.chunk_count(); ++c) {
      for (Index i = 0; i < n; ++i)
        for (Index k = 0; k < part; ++k) {
          const Index at = c * part + k;
          chunk[uz(i * part + k)] =
              raw[uz(i * dim + at)] - (codec_.mean().empty() ? 0.f : codec_.mean()[uz(at)]);
        }
      Dictionary own = codec_.dictionary(c);
      const std::vector<float> newest = sampled_atoms(chunk.data(), n, part, prompt_.sampled);
      own = own.extended(newest.data(), static_cast<Index>(newest.size()) / part);
      if (prompt_.guard > 0) {
        PursuitOptions options;
        options.steps = codec_.format().atoms / codec_.chunk_count();
        options.method = codec_.format().method;
        options.quantised = codec_.format().code == SparseCode::packed;
        const std::vector<float> worst =
            guard_atoms(Pursuit(own), chunk.data(), n, prompt_.guard, options);
        own = own.extended(worst.data(), static_cast<Index>(worst.size()) / part);
      }
      extended.push_back(std::move(own));
    }
    return std::make_shared<const CsrCodec>(*this, std::move(extended));
  }
  std::size_t shared_bytes() const override { return shared_->bytes(); }
  const void* identity() const override { return shared_.get(); }
  std::shared_ptr<const void> encoder() const override {
    if (!dictionaries_.empty()) return shared_->coders();
    const std::lock_guard lock(mutex_);
    std::shared_ptr<const SparseCodec::Coders> out = own_coders_.lock();
    if (!out) own_coders_ = out = std::make_shared<const SparseCodec::Coders>(codec_.make_coders());
    return out;
  }
  std::size_t encoder_bytes() const override { return shared_->encoder_bytes(); }

  const SparseCodec& codec() const { return codec_; }
  // Keys are multiplied without decoding if so many coded rows are attended to at once.
  bool by_table(Index rows, Index query_rows) const {
    return !turned_ && rows > 0 && codec_.table_pays(rows, query_rows);
  }

 private:
  void set_code() {
    code_.context = this;
    code_.dim = codec_.dim();
    // A flag, the queries, and a table if there may be one.
    code_.key_workspace =
        16 + few_query_rows * (codec_.dim() + (turned_ ? 0 : codec_.table_width()));
    code_.value_workspace = 0;
    code_.acc_width = codec_.table_width();
    code_.prepare = &prepare;
    code_.scores = &scores;
    code_.values = &values;
    code_.finish = &finish;
    code_.decode = &decode_rows;
  }
  SparseCodec::Coders coders() const {
    const std::shared_ptr<const void> held = encoder();
    if (dictionaries_.empty()) return *static_cast<const SparseCodec::Coders*>(held.get());
    SparseCodec::Coders out;
    for (const std::uint32_t d : dictionaries_)
      out.push_back(shared_->coders()->of(shared_->set(), d));
    return out;
  }
  static const CsrCodec& of(const SideCode& code) {
    return *static_cast<const CsrCodec*>(code.context);
  }
  void turn(float* rows, const std::uint32_t* positions, Index n, float direction) const {
    const Rotation& r = shared_->rotation();
    pursuit_kernels().rotate_rows(r.table(), r.pairs(), r.interleaved(), positions, direction, rows,
                                  n, codec_.dim());
  }
  // Rows of a block as attention wants them.
  void read(const void* block, const std::uint32_t* positions, Index first, Index count,
            float* out) const {
    codec_.decode(static_cast<const std::byte*>(block), first + count, first, count, out);
    if (turned_) turn(out, positions + first, count, 1);
  }

  static void prepare(const SideCode& code, const float* queries, Index query_rows,
                      Index coded_rows, float* prepared) {
    const CsrCodec& self = of(code);
    const bool table = self.by_table(coded_rows, query_rows);
    prepared[0] = table ? 1.f : 0.f;
    const Index padded = round_up(query_rows, few_query_tile) * code.dim;
    if (table)
      self.codec_.make_table(queries, query_rows, prepared + 16);
    else
      std::memcpy(prepared + 16, queries, uz(padded) * sizeof(float));
  }
  static void scores(const SideCode& code, const BlockRef& block, float* prepared, Index query_rows,
                     float* out, const char*, Index) {
    const CsrCodec& self = of(code);
    if (prepared[0] != 0) {
      self.codec_.scores(static_cast<const std::byte*>(block.keys), block.rows, prepared + 16,
                         query_rows, out, kernel_block);
    } else {
      static thread_local Floats scratch;
      float* rows = scratch.reserve(kernel_block * code.dim);
      self.read(block.keys, block.positions, 0, block.rows, rows);
      pursuit_kernels().multiply_rows(rows, block.rows, code.dim, prepared + 16, query_rows, out,
                                      kernel_block);
    }
    // Rows that are not there: numbers that the softmax masks.
    for (Index i = 0; i < query_rows; ++i)
      std::fill(out + i * kernel_block + block.rows, out + (i + 1) * kernel_block, 0.f);
  }
  static void values(const SideCode& code, const BlockRef& block, const float* weights,
                     Index query_rows, float* acc, float*, const char*, Index) {
    of(code).codec_.add(static_cast<const std::byte*>(block.values), block.rows, weights,
                        kernel_block, query_rows, acc);
  }
  static void finish(const SideCode& code, float* acc, Index query_rows, float* num) {
    of(code).codec_.finish(acc, query_rows, num);
  }
  static void decode_rows(const SideCode& code, const void* block, const std::uint32_t* positions,
                          Index first, Index count, float* out) {
    of(code).read(block, positions, first, count, out);
  }

  std::shared_ptr<const SharedDictionaries> shared_;
  SparseCodec codec_;
  std::vector<std::uint32_t> dictionaries_;  // of the set, one per chunk; none: its own atoms too
  PromptAtoms prompt_;
  bool turned_ = false;  // coded before RoPE
  SideCode code_{};
  mutable std::mutex mutex_;
  mutable std::weak_ptr<const SparseCodec::Coders> own_coders_;
};

}  // namespace detail

LESSKV_END_NAMESPACE
