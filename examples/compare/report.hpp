// SPDX-License-Identifier: MIT
// What the comparison found, as a table for people and as JSON for programs. Both show the same
// rows.
#pragma once

#include <cstddef>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "metrics.hpp"

namespace compare {

// A cache right after compress().
struct Footprint {
  std::size_t bytes = 0, bytes_shared = 0, bytes_exact = 0, peak_bytes = 0;
  double kept_share = 0;

  double compression() const {
    return static_cast<double>(bytes_exact) / static_cast<double>(bytes);
  }
};

struct DocumentResult {
  std::string document;
  double fraction = 0;  // that the amount was solved for; 0 if it was given
  Footprint footprint;
  TokenScores running, copies;
};

struct Row {
  std::string policy;
  std::string kind;   // exact, single, composition
  double target = 0;  // nominal compression; 0: the amount that was given has none
  std::string note;   // why there are no figures, or what is odd about them
  std::vector<DocumentResult> documents;
  Index keys_agnostic = 0, keys_aware = 0,
        keys = 0;  // pass keys found, of those that the exact cache finds
  std::optional<double> compress_ms, decode_tokens_per_s;

  bool measured() const { return !documents.empty(); }
  // Averages over the documents; standard errors over all their tokens.
  Footprint footprint() const;
  TokenScores running() const;
  TokenScores copies() const;
  // '+' holds more than its target, '-' less than 0.95 of it, ' ' neither.
  char mark() const;
};

// What every layer needs (layers.hpp), mean of the documents. Empty if it was not asked for.
struct Layers {
  double similarity = 0;
  std::vector<double> lmba, lmbo;

  // U of ZigZagKV: the share of a layer in the sum of all LMBA.
  double uncertainty(std::size_t layer) const;
  std::string table() const;
};

struct Report {
  std::string version, cpu, model, model_sha256;
  std::vector<std::string> documents;
  Index context = 0, score = 0;
  std::uint64_t seed = 0;
  double prefill_ms = 0;
  int pass_key_contexts = 0;
  bool keys_are_digits = false;  // long pass keys: every digit counts
  std::vector<Row> rows;
  Layers layers;

  // Exact first, then by target, then by the error on the copy task; rows without figures last in
  // their group.
  void sort();
  nlohmann::ordered_json json() const;
  std::string table() const;
};

}  // namespace compare
