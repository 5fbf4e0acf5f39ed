// SPDX-License-Identifier: MIT
#include "program.hpp"

#include <CLI/CLI.hpp>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <thread>

#include "comparison.hpp"
#include "sweep.hpp"

namespace compare {
namespace {

void write_file(const std::string& path, const std::string& text) {
  std::ofstream file(path);
  file << text;
  file.close();
  if (!file) throw std::runtime_error(path + ": cannot be written");
}

// Found out before minutes of work, not after them.
void check_writable(const std::string& path) {
  std::error_code error;
  const bool there = std::filesystem::exists(path, error);
  if (!std::ofstream(path, std::ios::app))
    throw std::runtime_error("--json " + path + ": cannot be written");
  if (!there) std::filesystem::remove(path, error);
}

// What a sweep shares with the comparison; its own defaults where nothing was said.
SweepOptions sweep_options(const CLI::App& app, const Options& given, SweepOptions out) {
  const auto said = [&](const char* option) { return app.count(option) > 0; };
  out.model = given.model;
  out.model_sha256 = given.model_sha256;
  out.dictionary = given.dictionary;
  out.texts = given.texts;
  out.context = given.context;
  out.score = given.score;
  out.times = given.times;
  out.threads = given.threads;
  out.seed = given.seed;
  out.progress = given.progress;
  out.pass_key_digits = given.pass_key_digits;
  if (said("--policy")) out.policies = given.policies;
  if (said("--compression")) out.compressions = given.compressions;
  if (said("--passkey")) out.pass_key_contexts = given.pass_key_contexts;
  std::erase(out.long_keys, 0);
  if (said("--lmbo")) out.similarity = given.similarity;
  return out;
}

}  // namespace

int program(int argc, const char* const* argv) {
  Options options;
  options.threads = static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
  SweepOptions sweep;
  std::string json;
  CLI::App app{"Compares policies on a real model: bytes, divergence, copying, pass keys, speed."};
  app.add_option("--model", options.model, "GGUF file of a Llama-architecture model")
      ->required()
      ->check(CLI::ExistingFile);
  app.add_option("--model-sha256", options.model_sha256, "checksum to be written into the report");
  app.add_option("--text", options.texts, "UTF-8 text, or token ids (.i32: int32, little-endian)")
      ->required()
      ->check(CLI::ExistingFile);
  app.add_option("--policy", options.policies,
                 "a policy as make_cache takes it; 'list' prints all names and parameters");
  app.add_option("--dictionary", options.dictionary,
                 "file of train_dictionary that 'dictionary=default' in a policy stands for")
      ->check(CLI::ExistingFile);
  app.add_option("--compression", options.compressions,
                 "bytes of the exact cache / bytes, for policies without an amount")
      ->check(CLI::Range(1.0, 1000.0));
  app.add_option("--context", options.context, "tokens that are compressed")
      ->check(CLI::Range(128, 1 << 20));
  app.add_option("--score", options.score, "tokens behind the context that are compared")
      ->check(CLI::Range(1, 1 << 16));
  app.add_option("--passkey", options.pass_key_contexts, "texts with five pass keys each")
      ->check(CLI::Range(0, 1000));
  app.add_option("--needles", sweep.pass_keys, "keys in each text of a sweep")
      ->check(CLI::Range(1, static_cast<int>(pass_key_names.size())));
  app.add_option("--long-keys", sweep.long_keys,
                 "digits of long pass keys; of these a sweep asks for the longest that the exact "
                 "cache repeats; 0: none")
      ->check(CLI::Range(0, 64));
  app.add_option("--passkey-digits", options.pass_key_digits,
                 "digits of a pass key; from 16 on every digit at its place counts")
      ->check(CLI::Range(1, 64));
  app.add_option("--threads", options.threads, "policies that run at the same time")
      ->check(CLI::Range(1, 1024));
  app.add_option("--seed", options.seed, "of the pass keys and of the random baseline")
      ->check(CLI::NonNegativeNumber);
  app.add_option(
         "--lmbo", options.similarity,
         "also prints what every layer needs: keys for 0.9 of its attention (LMBA) and keys "
         "for this cosine with its whole output (LMBO)")
      ->check(CLI::Range(0.01, 1.0));
  app.add_flag("--no-times{false}", options.times, "no times, for a machine that is busy");
  app.add_option("--json", json, "writes the rows here too");
  app.add_option("--sweep", sweep.records,
                 "many policies at many compressions; results are appended to this file, what is "
                 "there is not run again; 'sweep' and 'more' as --policy stand for lists");
  app.add_option("--progress-fd", options.progress, "descriptor for progress lines")->group("");
  // Answered before anything is required.
  for (int i = 1; i < argc; ++i)
    if (const std::string now = argv[i];
        now == "--policy=list" ||
        (now == "--policy" && i + 1 < argc && std::string(argv[i + 1]) == "list")) {
      std::fputs(list_policies().c_str(), stdout);
      return 0;
    }
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : 1;
  }
  try {
    if (!sweep.records.empty()) {
      const long units = Sweep(sweep_options(app, options, sweep)).run();
      std::printf("%s: %ld results added\n", sweep.records.c_str(), units);
      return 0;
    }
    if (!json.empty()) check_writable(json);
    Comparison comparison(options);
    const Report report = comparison.run();
    if (!json.empty()) write_file(json, report.json().dump(2) + "\n");
    std::fputs(report.table().c_str(), stdout);
    return 0;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "compare: %s\n", error.what());
    return 1;
  }
}

}  // namespace compare
