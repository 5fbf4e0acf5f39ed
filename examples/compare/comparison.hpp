// SPDX-License-Identifier: MIT
// The whole comparison: exact passes, then every policy at every compression on every text, then
// the clock.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "document.hpp"
#include "passkey.hpp"
#include "policy.hpp"
#include "progress.hpp"
#include "report.hpp"
#include "tasks.hpp"

namespace compare {

struct Options {
  std::string model, model_sha256, dictionary;
  std::vector<std::string> texts, policies;
  std::vector<double> compressions = {4, 8, 16};
  Index context = 4096, score = 256;
  int pass_key_contexts = 2, pass_key_digits = 5;
  bool times = true;  // false: for a busy machine
  int threads = 1;
  std::uint64_t seed = 1;
  double similarity = 0;  // of the output, for LMBO; 0: layers are not analysed
  int progress = -1;      // file descriptor
};

class Comparison {
 public:
  // Reads model and texts. Throws std::exception naming the file, the option or the place in a spec
  // that is wrong.
  explicit Comparison(const Options& options);
  Report run();

 private:
  struct Text {
    Document document;
    std::vector<Pass> pass;  // one, once it ran
    std::vector<DocumentTasks> tasks;
  };
  struct KeyText {
    PassKeyContext context;
    std::vector<Pass> pass;
  };

  void make_key_texts();
  void run_exact_passes();
  void analyse_layers();
  void score_documents();
  void score_keys();
  void measure();

  Options options_;
  engine::Model model_;
  engine::Tokenizer tokenizer_;
  std::vector<engine::Run> runs_;  // one a thread
  std::vector<Policy> policies_;
  std::vector<Variant> variants_;
  std::vector<Text> texts_;
  std::vector<KeyText> key_texts_;
  Progress progress_;
  Report report_;  // rows in the order of variants_ until the end
};

}  // namespace compare
