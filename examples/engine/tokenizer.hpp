// SPDX-License-Identifier: MIT
// Byte-level BPE (Radford et al. 2019, GPT-2) from GGUF metadata: tokenizer.ggml.model = gpt2,
// tokenizer.ggml.pre one of smollm, gpt-2, llama-bpe. Text is cut into words by the Unicode regular
// expression of the pre-tokenizer, bytes become the vocabulary's printable stand-ins, and the
// best-ranked merge is applied until none is left.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "gguf.hpp"

namespace engine {

struct Encoding {
  std::vector<std::int32_t> ids;
  // Bytes of the text that have no token and are therefore lost (some vocabularies lack a few
  // control bytes). 0: decode() gives back exactly the text.
  std::size_t dropped_bytes = 0;
};

class Tokenizer {
 public:
  // Throws Error naming the metadata that is missing, inconsistent or not supported.
  explicit Tokenizer(const Gguf& file);
  Tokenizer(Tokenizer&&) noexcept;
  ~Tokenizer();

  // No token is added at the front or the end. Special tokens written in the text (<|im_start|>)
  // become their ids unless parse_special is false. Bytes that are not UTF-8 are encoded byte by
  // byte.
  Encoding encode(std::string_view text, bool parse_special = true) const;

  // The bytes of the tokens, special ones as they are written. Throws Error for an id outside the
  // vocabulary.
  std::string decode(std::span<const std::int32_t> ids) const;
  std::string decode(std::int32_t id) const { return decode(std::span(&id, 1)); }

  std::size_t size() const { return bytes_of_.size(); }
  bool is_special(std::int32_t id) const;
  // -1 if the file names none.
  std::int32_t begin_id() const { return begin_id_; }
  std::int32_t end_id() const { return end_id_; }
  bool adds_begin() const {
    return adds_begin_;
  }  // whether the model expects begin_id in front; encode() never adds it

 private:
  struct Merge {
    std::int32_t rank, result;
  };
  struct Expression;

  void read_vocabulary(const Gguf& file);
  void read_merges(const Gguf& file);
  void encode_plain(std::string_view text, Encoding& out) const;
  void encode_words(std::string_view utf8, Encoding& out) const;
  void encode_word(std::string_view word, Encoding& out) const;

  std::vector<std::string> bytes_of_;  // what each token decodes to
  std::vector<bool> special_;
  std::unordered_map<std::string_view, std::int32_t>
      id_of_;  // ordinary tokens, by their bytes; views into bytes_of_
  std::array<std::int32_t, 256> byte_id_{};                           // -1: no token
  std::unordered_map<std::uint64_t, Merge> merges_;                   // left id << 32 | right id
  std::array<std::vector<std::int32_t>, 256> special_by_first_byte_;  // longest first
  std::unique_ptr<const Expression> words_;
  bool digits_alone_ = false;       // every \p{N} character is cut off before the words are found
  bool whole_words_first_ = false;  // a word that is a token is not merged together
  bool adds_begin_ = false;
  std::int32_t begin_id_ = -1, end_id_ = -1;
};

}  // namespace engine
