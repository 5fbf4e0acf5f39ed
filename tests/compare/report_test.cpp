// SPDX-License-Identifier: MIT
#include "compare/report.hpp"

#include <gtest/gtest.h>

#include <sstream>

namespace report_test {

using namespace compare;

DocumentResult document(std::size_t bytes, double divergence) {
  DocumentResult out;
  out.document = "text";
  out.fraction = 0.25;
  out.footprint = {bytes, 0, 1000, bytes, 0.25};
  for (const double x : {divergence, 3 * divergence}) {
    out.running.divergence.add(x);
    out.running.same_argmax.add(1);
    out.running.loss_delta.add(x);
    out.copies.divergence.add(2 * x);
    out.copies.same_argmax.add(0);
  }
  return out;
}

Row row(const std::string& policy, double target, std::size_t bytes, double divergence) {
  Row out;
  out.policy = policy;
  out.kind = policy == "exact" ? "exact" : "single";
  out.target = target;
  out.documents = {document(bytes, divergence), document(bytes, 2 * divergence)};
  out.keys = 10;
  out.keys_agnostic = 4;
  out.keys_aware = 6;
  out.compress_ms = 1.5;
  out.decode_tokens_per_s = 100;
  return out;
}

Report report() {
  Report out;
  out.version = "0.0.0";
  out.cpu = "a processor";
  out.model = "a.gguf";
  out.model_sha256 = "00";
  out.documents = {"text"};
  out.context = 100;
  out.score = 2;
  out.seed = 7;
  out.prefill_ms = 5;
  Row impossible;
  impossible.policy = "lagkv";
  impossible.kind = "single";
  impossible.target = 4;
  impossible.note = "cannot get there: 2.00x at most";
  out.rows = {row("worse", 4, 250, 0.2), impossible, row("two", 2, 500, 0.1),
              row("better", 4, 250, 0.1), row("exact", 1, 1000, 0)};
  return out;
}

TEST(Report, ExactFirstThenByTargetThenByCopyError) {
  Report r = report();
  r.sort();
  std::vector<std::string> order;
  for (const Row& one : r.rows) order.push_back(one.policy);
  EXPECT_EQ(order, (std::vector<std::string>{"exact", "two", "better", "worse", "lagkv"}));
}

TEST(Report, JsonHasEveryFieldOfEveryRow) {
  const auto json = report().json();
  for (const char* key : {"version", "cpu", "model", "model_sha256", "documents", "context",
                          "score", "seed", "prefill_ms", "rows", "layers"})
    EXPECT_TRUE(json.contains(key)) << key;
  for (const auto& one : json["rows"]) {
    for (const char* key : {"policy",
                            "kind",
                            "target",
                            "compression",
                            "bytes",
                            "bytes_shared",
                            "bytes_exact",
                            "peak_bytes",
                            "kept_share",
                            "kld",
                            "kld_se",
                            "top1",
                            "nll_delta",
                            "copy_kld",
                            "copy_kld_se",
                            "copy_top1",
                            "passkey_agnostic",
                            "passkey_aware",
                            "passkey_n",
                            "compress_ms",
                            "decode_tokens_per_s",
                            "note",
                            "per_document"})
      EXPECT_TRUE(one.contains(key)) << key;
  }
  const auto& worse = json["rows"][0];
  EXPECT_EQ(worse["bytes"], 250);
  EXPECT_EQ(worse["compression"], 4);
  EXPECT_NEAR(worse["kld"].get<double>(), 0.6, 1e-12);  // mean of .2 .6 .4 1.2
  EXPECT_NEAR(worse["kld_se"].get<double>(), std::sqrt((.16 + 0 + .04 + .36) / 3 / 4), 1e-12);
  EXPECT_NEAR(worse["copy_kld"].get<double>(), 1.2, 1e-12);
  EXPECT_NEAR(worse["copy_kld_se"].get<double>(), 2 * worse["kld_se"].get<double>(), 1e-12);
  EXPECT_NEAR(worse["passkey_agnostic"].get<double>(), 0.4, 1e-12);
  EXPECT_EQ(worse["passkey_n"], 10);
  EXPECT_EQ(worse["per_document"].size(), 2U);
  EXPECT_NEAR(worse["per_document"][0]["kld"].get<double>(), 0.4, 1e-12);
  // A row without figures says why, and has no zeros that could be taken for results.
  const auto& impossible = json["rows"][1];
  EXPECT_TRUE(impossible["kld"].is_null());
  EXPECT_TRUE(impossible["bytes"].is_null());
  EXPECT_EQ(impossible["note"], "cannot get there: 2.00x at most");
  EXPECT_EQ(nlohmann::json::parse(json.dump()), nlohmann::json(json));
}

TEST(Report, RowsThatMissTheirTargetAreMarked) {
  EXPECT_EQ(row("a", 4, 250, 0).mark(), ' ');
  EXPECT_EQ(row("a", 4, 251, 0).mark(), '+');
  EXPECT_EQ(row("a", 4, 238, 0).mark(), ' ');
  EXPECT_EQ(row("a", 4, 237, 0).mark(), '-');
  EXPECT_EQ(row("exact", 1, 1001, 0).mark(), ' ');
  EXPECT_EQ(row("a", 0, 237, 0).mark(), ' ');
}

TEST(Report, TableShowsEveryRowUnderItsCompression) {
  Report r = report();
  r.sort();
  const std::string table = r.table();
  std::size_t at = 0;
  for (const char* part : {"policy", "exact", "-- 2x", "two", "-- 4x", "better", "worse", "lagkv",
                           "cannot get there", "seed 7"}) {
    const std::size_t found = table.find(part, at);
    ASSERT_NE(found, std::string::npos) << part << " in\n" << table;
    at = found;
  }
}

TEST(Report, LayersArePrintedWhenTheyWereAnalysed) {
  Report r = report();
  EXPECT_EQ(r.table().find("LMBO"), std::string::npos);
  EXPECT_TRUE(r.json()["layers"].empty());
  r.layers = {0.95, {30, 10, 20}, {300, 120, 110}};
  const auto json = r.json();
  ASSERT_EQ(json["layers"].size(), 3U);
  EXPECT_EQ(json["layers"][1]["layer"], 1);
  EXPECT_EQ(json["layers"][1]["lmba"], 10);
  EXPECT_EQ(json["layers"][1]["lmbo"], 120);
  EXPECT_NEAR(json["layers"][1]["uncertainty"].get<double>(), 1.0 / 6, 1e-12);
  EXPECT_EQ(json["lmbo_similarity"], 0.95);
  EXPECT_NEAR(json["lmba_lmbo_rank_correlation"].get<double>(), 0.5, 1e-12);
  const std::string table = r.table();
  for (const char* part : {"LMBA", "LMBO", "    1     10.0  0.1667   0.50    120.0",
                           "cosine of 0.95", "over the layers: 0.50"})
    EXPECT_NE(table.find(part), std::string::npos) << part << " in\n" << table;
}

TEST(Report, ALongNameHasALineOfItsOwn) {
  Report r;
  r.rows = {row("exact", 0, 1000, 0), row(std::string(60, 'x'), 2, 500, 0.25)};
  std::istringstream table(r.table());
  std::string line, before;
  bool found = false;
  while (std::getline(table, line)) {
    if (before == std::string(60, 'x')) {
      found = true;
      EXPECT_EQ(line.find_first_not_of(' '), line.find("2.00"));
    }
    before = line;
  }
  EXPECT_TRUE(found);
}

}  // namespace report_test
