// SPDX-License-Identifier: MIT
// CSR: keys and values as a few (atom, coefficient) pairs over a learnt dictionary.
//
// Papers:   CSR (arXiv 2412.11741, AAAI 2025); for OMP and E4M3 coefficients Lexico (arXiv
//           2412.08890, ICML 2025). No code of CSR's authors is published.
// Formula:  x ~ mean + sum_k c_k D[i_k]; matching pursuit, `atoms` times: i = argmax |<r, D_i>|,
//           c = <r, D_i>, r <- r - c D_i. Keys are coded before RoPE and rotated when they are read.
// Needs:    keys, values, and a dictionary file of the model (examples/train_dictionary), which says
//           how its keys are rotated; the cache knows the positions.
// Cost:     16 (atoms + 1) / d bits a number (packed), 32 atoms / d (pairs), 24 atoms / d (lexico), d
//           the channels of a row. Dictionaries, means and the rotation table once for all heads and
//           caches (bytes_shared). Encoding see sparse/pursuit.hpp: its tables, N^2 + 4 N d bytes for
//           each dictionary of N atoms, exist while a compression runs (encoder_bytes).
// Attention: without decoding where that pays (sparse/codec.hpp has the two products).
//           Keys before RoPE: each block is decoded and rotated, then multiplied. q.R(p)D depends on
//           the position p: a table for it would have d numbers an atom, and d additions a code and
//           query, more than decoding takes. Keys coded after RoPE: a table of D q if
//           table_pays(coded rows, query rows), else as above. Values: up to 8 query rows always
//           gather sums per atom. More query rows than 8 (prefill) decode every block once.
// Defaults: packed codes, 7 atoms: 2 bits a number at 64 channels, 1 bit at 128. Plain pursuit as in
//           the paper. 4 exact sinks in the text form, as the scalar codecs have: the dictionaries
//           are trained without sinks.
// Differs:  the paper stores f16 coefficients (format=pairs), cuts values in two chunks (the file
//           says how many), removes no mean, and keeps neither sinks nor recent rows
//           (keep(sinks=0)). Each costs error or bits: examples/methods/csr.md has the figures.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "../core/shape.hpp"
#include "../core/side_codec.hpp"
#include "sparse/formats.hpp"

LESSKV_BEGIN_NAMESPACE

class Dictionary;
struct DictionarySet;  // sparse/dictionary_set.hpp
namespace detail {
class SharedDictionaries;
}

// The dictionaries of a model, as a parameter: from a file, which is mapped, or from memory. Copies
// share them.
class Dictionaries {
 public:
  Dictionaries() = default;
  Dictionaries(const char* path) : Dictionaries(std::string(path)) {}
  Dictionaries(const std::string& path);
  Dictionaries(DictionarySet set);

  bool empty() const { return !shared_; }
  const std::string& path() const { return path_; }
  const DictionarySet& set() const;
  const std::shared_ptr<const detail::SharedDictionaries>& shared() const { return shared_; }

 private:
  std::string path_;
  std::shared_ptr<const detail::SharedDictionaries> shared_;
};
inline void parse_value(const std::string&, const std::string& text, Dictionaries& out) {
  out = Dictionaries(text);
}
inline std::string value_text(const Dictionaries& dictionaries) {
  return dictionaries.empty() ? "none" : dictionaries.path();
}

struct CSR {
  int atoms = 7;        // of a key
  int value_atoms = 0;  // of a value, if others than of a key
  SparseCode format = SparseCode::packed;
  PursuitMethod pursuit = PursuitMethod::matching;
  Dictionaries dictionary = {};
  Index sampled = 0;  // atoms that every head and side takes from its prompt: its newest rows
  Index guard = 0;    // and those that are coded worst

  static constexpr std::string_view name = "csr";
  static constexpr std::string_view summary =
      "a few atoms of a learnt dictionary per row (arXiv 2412.11741)";
  static constexpr Keep published{.sinks = 4};
  template <class Self, class Visitor>
  static void parameters(Self& self, Visitor&& visit) {
    visit("dictionary", self.dictionary, "file of examples/train_dictionary/train.sh");
    visit("atoms", self.atoms, "atoms of a key, and of a value");
    visit("value_atoms", self.value_atoms, "atoms of a value, if others than of a key");
    visit("format", self.format, "packed: 16 bits an atom and a norm; pairs: 32 (CSR); lexico: 24");
    visit("pursuit", self.pursuit, "matching (CSR), refit, or orthogonal (Lexico's)");
    visit("sampled", self.sampled,
          "newest rows of the prompt that each head and side adds as atoms");
    visit("guard", self.guard, "worst-coded rows that it adds after them");
  }

  void check(const Shape& shape) const;
  std::shared_ptr<const SideCodec> codec(Side side, int dim, int layer, int head) const;

 private:
  static constexpr Index most_prompt_atoms = 16384;

  void check_atoms(const char* who, int count, int chunks,
                   const std::vector<Dictionary>& dictionaries) const;
};

LESSKV_END_NAMESPACE

#if !LESSKV_DECLARE_ONLY
#include "csr.inc"
#endif
