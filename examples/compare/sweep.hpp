// SPDX-License-Identifier: MIT
// The sweep: many policies at many compressions on many texts, in units of work whose results are
// appended to a file as they come. One text is in memory a thread, so there may be any number; what
// is on file is not run again.
#pragma once

#include <atomic>
#include <deque>
#include <string>
#include <vector>

#include "document.hpp"
#include "passkey.hpp"
#include "policy.hpp"
#include "progress.hpp"
#include "records.hpp"
#include "sha256.hpp"
#include "sweep_policies.hpp"
#include "tasks.hpp"

namespace compare {

struct SweepOptions {
  std::string records;  // file
  std::string model, model_sha256, dictionary;
  std::vector<std::string> texts, policies = {"sweep"};
  std::vector<double> compressions = {2, 4, 8, 16, 32};
  Index context = 4096, score = 256;
  int pass_key_contexts = 8, pass_keys = 14, pass_key_digits = 5;
  // Of a long pass key: the longest of these that the exact cache repeats. None: not asked.
  std::vector<int> long_keys = {64, 48, 32, 24, 16};
  bool times = true;  // false: for a busy machine
  int threads = 1;
  std::uint64_t seed = 1;
  double similarity = 0.95;  // of a layer's output, for LMBO
  int progress = -1;         // file descriptor
};

class Sweep {
 public:
  // Reads model, texts and what is on file. Throws std::exception naming the file, the option or the
  // place in a spec that is wrong.
  explicit Sweep(const SweepOptions& options);
  // Returns the number of units that ran.
  long run();

 private:
  struct Variant {
    const SweepPolicy* line;
    compare::Variant what;
    bool oracle = false;
    double bits = 0;  // of the rate-distortion bound; 0: something else

    bool bound() const { return oracle || bits > 0; }
  };
  // A document that is continued and copied from, or a text with pass keys.
  struct Text {
    std::string name, sha256;
    std::vector<std::int32_t> tokens;
    PassKeyContext keys;
    std::string unit;        // document, keys, long_keys
    std::vector<Pass> pass;  // one, while its units run
    std::vector<DocumentTasks> tasks;

    bool has_keys() const { return unit != "document"; }
  };
  struct Job {
    Text* text;
    const Variant* variant;
    Records::Key key;
  };

  void read_policies();
  void read_policy(SweepPolicy& line);
  void read_texts();
  void add_document(const std::string& file);
  void add_key_text(const Text& document, const std::string& unit, int digits, int count, int i,
                    int of);
  void add_long_keys();

  Records::Key key_of(const std::string& unit, const Text& text, const Variant* variant) const;
  bool missing(const Records::Key& key) const { return !records_.has(key); }
  std::vector<Job> missing_jobs(Text& text);
  bool needs_probes(Text& text);
  std::vector<const Variant*> missing_times() const;
  long cost_of(Text& text);

  void prepare(Text& text, engine::Run& run);
  void run_job(const Job& job, engine::Run& run);
  Records::Json document_result(const Job& job, engine::Run& run) const;
  void record_times();
  void add(const Records::Key& key, const Records::Json& result);

  SweepOptions options_;
  engine::Model model_;
  engine::Tokenizer tokenizer_;
  std::vector<engine::Run> runs_;  // one a thread
  std::deque<SweepPolicy> lines_;
  std::deque<Policy> policies_;
  std::vector<Variant> variants_;
  std::deque<Text> texts_;
  std::string model_name_;
  Records records_;
  Progress progress_;
  std::atomic<long> units_{0};
};

}  // namespace compare
