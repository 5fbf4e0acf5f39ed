// SPDX-License-Identifier: MIT
#include "report.hpp"

#include <algorithm>
#include <cstdio>
#include <numeric>
#include <tuple>

namespace compare {
namespace {

using Json = nlohmann::ordered_json;

// JSON has no NaN: a figure that does not exist is null.
Json number(double x) { return std::isfinite(x) ? Json(x) : Json(nullptr); }

double share(Index found, Index of) {
  return of > 0 ? static_cast<double>(found) / static_cast<double>(of) : NAN;
}

void add_scores(Json& out, const Footprint& footprint, const TokenScores& running,
                const TokenScores& copies) {
  out["compression"] = footprint.compression();
  out["bytes"] = footprint.bytes;
  out["bytes_shared"] = footprint.bytes_shared;
  out["bytes_exact"] = footprint.bytes_exact;
  out["peak_bytes"] = footprint.peak_bytes;
  out["kept_share"] = footprint.kept_share;
  out["kld"] = number(running.divergence.value());
  out["kld_se"] = number(running.divergence.standard_error());
  out["top1"] = number(running.same_argmax.value());
  out["nll_delta"] = number(running.loss_delta.value());
  out["copy_kld"] = number(copies.divergence.value());
  out["copy_kld_se"] = number(copies.divergence.standard_error());
  out["copy_top1"] = number(copies.same_argmax.value());
}

Json json_of(const Row& row) {
  Json out;
  out["policy"] = row.policy;
  out["kind"] = row.kind;
  out["target"] = row.target > 0 ? Json(row.target) : Json(nullptr);
  if (row.measured()) {
    add_scores(out, row.footprint(), row.running(), row.copies());
  } else {
    for (const char* key :
         {"compression", "bytes", "bytes_shared", "bytes_exact", "peak_bytes", "kept_share", "kld",
          "kld_se", "top1", "nll_delta", "copy_kld", "copy_kld_se", "copy_top1"})
      out[key] = nullptr;
  }
  out["passkey_agnostic"] = number(share(row.keys_agnostic, row.keys));
  out["passkey_aware"] = number(share(row.keys_aware, row.keys));
  out["passkey_n"] = row.keys;
  out["compress_ms"] = row.compress_ms ? Json(*row.compress_ms) : Json(nullptr);
  out["decode_tokens_per_s"] =
      row.decode_tokens_per_s ? Json(*row.decode_tokens_per_s) : Json(nullptr);
  out["note"] = row.note;
  out["per_document"] = Json::array();
  for (const DocumentResult& document : row.documents) {
    Json one;
    one["document"] = document.document;
    one["fraction"] = document.fraction > 0 ? Json(document.fraction) : Json(nullptr);
    add_scores(one, document.footprint, document.running, document.copies);
    out["per_document"].push_back(one);
  }
  return out;
}

template <class... Ts>
std::string format(const char* pattern, Ts... values) {
  char text[256];
  std::snprintf(text, sizeof text, pattern, values...);
  return text;
}

std::string percent(double x) { return std::isfinite(x) ? format("%.1f", 100 * x) : "-"; }

std::string keys_found(Index found, Index of) {
  if (of == 0) return "-";
  const double x = share(found, of);
  return format("%.0f±%.0f", 100 * x, 100 * binomial_standard_error(x, of));
}

// Characters, not bytes: ± is two bytes.
std::size_t width_of(const std::string& text) {
  return static_cast<std::size_t>(
      std::count_if(text.begin(), text.end(), [](char c) { return (c & 0xc0) != 0x80; }));
}

struct Column {
  const char* title;
  bool left = false;
};
constexpr Column columns[] = {{"policy", true}, {"x"},          {"MB"},      {"kept %"},
                              {"KLD"},          {"±"},          {"top-1 %"}, {"dNLL"},
                              {"copy KLD"},     {"copy top-1"}, {"keys %"},  {"aware %"},
                              {"compress ms"},  {"tokens/s"},   {"", true}};

std::vector<std::string> cells_of(const Row& row) {
  std::vector<std::string> out{row.policy};
  if (row.measured()) {
    const Footprint footprint = row.footprint();
    const TokenScores running = row.running(), copies = row.copies();
    out.push_back(format("%.2f%c", footprint.compression(), row.mark()));
    out.push_back(format("%.1f", static_cast<double>(footprint.bytes) / 1e6));
    out.push_back(percent(footprint.kept_share));
    out.push_back(format("%.4f", running.divergence.value()));
    out.push_back(format("%.4f", running.divergence.standard_error()));
    out.push_back(percent(running.same_argmax.value()));
    out.push_back(format("%+.3f", running.loss_delta.value()));
    out.push_back(format("%.4f", copies.divergence.value()));
    out.push_back(percent(copies.same_argmax.value()));
  } else {
    out.insert(out.end(), 9, "-");
  }
  out.push_back(keys_found(row.keys_agnostic, row.keys));
  out.push_back(keys_found(row.keys_aware, row.keys));
  out.push_back(row.compress_ms ? format("%.0f", *row.compress_ms) : "-");
  out.push_back(row.decode_tokens_per_s ? format("%.1f", *row.decode_tokens_per_s) : "-");
  out.push_back(row.note);
  return out;
}

}  // namespace

Footprint Row::footprint() const {
  Footprint mean;
  const std::size_t n = std::max<std::size_t>(1, documents.size());
  const auto average = [&](std::size_t Footprint::*field) {
    for (const DocumentResult& document : documents) mean.*field += document.footprint.*field;
    mean.*field = (mean.*field + n / 2) / n;
  };
  average(&Footprint::bytes);
  average(&Footprint::bytes_shared);
  average(&Footprint::bytes_exact);
  average(&Footprint::peak_bytes);
  for (const DocumentResult& document : documents)
    mean.kept_share += document.footprint.kept_share / static_cast<double>(n);
  return mean;
}

TokenScores Row::running() const {
  TokenScores out;
  for (const DocumentResult& document : documents) out.add(document.running);
  return out;
}

TokenScores Row::copies() const {
  TokenScores out;
  for (const DocumentResult& document : documents) out.add(document.copies);
  return out;
}

char Row::mark() const {
  if (target <= 0 || !measured() || kind == "exact") return ' ';
  const double used = target / footprint().compression();
  return used > 1 ? '+' : used < 0.95 ? '-' : ' ';
}

void Report::sort() {
  const auto order = [](const Row& row) {
    return std::tuple(row.kind != "exact", row.target, !row.measured(),
                      row.measured() ? row.copies().divergence.value() : 0.0, row.policy);
  };
  std::stable_sort(rows.begin(), rows.end(),
                   [&](const Row& a, const Row& b) { return order(a) < order(b); });
}

double Layers::uncertainty(std::size_t layer) const {
  return lmba[layer] / std::accumulate(lmba.begin(), lmba.end(), 0.0);
}

std::string Layers::table() const {
  if (lmba.empty()) return {};
  std::string out = "\nlayer     LMBA       U    L U     LMBO\n";
  const double layers = static_cast<double>(lmba.size());
  for (std::size_t l = 0; l < lmba.size(); ++l)
    out += format("%5zu  %7.1f  %.4f  %5.2f  %7.1f\n", l, lmba[l], uncertainty(l),
                  layers * uncertainty(l), lmbo[l]);
  out += format(
      "LMBA: keys for 0.9 of the attention; U: share of the sum; LMBO: keys for a cosine of %g "
      "with "
      "the whole output; ",
      similarity);
  return out + format(
                   "newest 32 queries, mean of the documents. Rank correlation of LMBA and "
                   "LMBO over the layers: %.2f\n",
                   rank_correlation(lmba, lmbo));
}

Json Report::json() const {
  Json out;
  out["version"] = version;
  out["cpu"] = cpu;
  out["model"] = model;
  out["model_sha256"] = model_sha256;
  out["documents"] = documents;
  out["context"] = context;
  out["score"] = score;
  out["seed"] = seed;
  out["prefill_ms"] = prefill_ms;
  out["rows"] = Json::array();
  for (const Row& row : rows) out["rows"].push_back(json_of(row));
  out["layers"] = Json::array();
  for (std::size_t l = 0; l < layers.lmba.size(); ++l)
    out["layers"].push_back({{"layer", l},
                             {"lmba", layers.lmba[l]},
                             {"uncertainty", layers.uncertainty(l)},
                             {"lmbo", layers.lmbo[l]}});
  if (!layers.lmba.empty()) {
    out["lmbo_similarity"] = layers.similarity;
    out["lmba_lmbo_rank_correlation"] = number(rank_correlation(layers.lmba, layers.lmbo));
  }
  return out;
}

std::string Report::table() const {
  std::vector<std::vector<std::string>> lines;
  lines.emplace_back();
  for (const Column& column : columns) lines.back().push_back(column.title);
  double target = -1;
  for (const Row& row : rows) {
    if (row.kind != "exact" && row.target != target) {
      target = row.target;
      lines.push_back({target > 0 ? format("-- %.3gx", target) : "-- as given"});
    }
    lines.push_back(cells_of(row));
  }
  // A long name has a line of its own, with its figures below.
  constexpr std::size_t longest_name = 44;
  std::vector<std::size_t> widths(std::size(columns), 0);
  for (const auto& line : lines)
    for (std::size_t c = 0; c < line.size(); ++c)
      if (c > 0 || width_of(line[c]) <= longest_name)
        widths[c] = std::max(widths[c], width_of(line[c]));

  std::string out;
  for (auto& line : lines) {
    if (width_of(line[0]) > longest_name) {
      out += line[0] + '\n';
      line[0].clear();
    }
    std::string text;
    for (std::size_t c = 0; c < line.size(); ++c) {
      const std::string blanks(widths[c] - width_of(line[c]), ' ');
      if (c > 0) text += "  ";
      text += columns[c].left ? line[c] + blanks : blanks + line[c];
    }
    text.erase(text.find_last_not_of(' ') + 1);
    out += text + '\n';
  }

  Index scored = 0, copied = 0, keys = 0;
  for (const Row& row : rows) {
    scored = std::max(scored, row.running().divergence.count());
    copied = std::max(copied, row.copies().divergence.count());
    keys = std::max(keys, row.keys);
  }
  std::string names;
  for (const std::string& document : documents) names += (names.empty() ? "" : ", ") + document;
  out += format("\nlesskv %s; ", version.c_str()) + model + "; " + cpu + "; " + names;
  out += format(
      "; context %td; %td tokens scored, %td copied, %td %s; seed %llu; exact prefill %.1f "
      "s\n",
      context, scored, copied, keys, keys_are_digits ? "digits of pass keys" : "pass keys",
      static_cast<unsigned long long>(seed), prefill_ms / 1000);
  out +=
      "x: bytes of the exact f16 cache / bytes (+ more than the target, - less than 0.95 of it); "
      "±: one standard error; "
      "times on one thread.\n";
  return out + layers.table();
}

}  // namespace compare
