// SPDX-License-Identifier: MIT
// train_dictionary: learns the dictionaries of a model from text and writes the file that lesskv
// maps. examples/train_dictionary/train.sh builds it, gets model and text, and runs it.
#include <CLI/CLI.hpp>
#include <compare/document.hpp>
#include <compare/progress.hpp>
#include <cstdio>
#include <engine/tokenizer.hpp>
#include <filesystem>
#include <thread>

#include "training.hpp"

namespace {

using lesskv::Index;

struct Arguments {
  std::string model, output, resume = "auto";
  std::vector<std::string> texts;
  Index tokens = 6144;
  int descriptor = -1;
  bool after_rope = false, no_means = false;
  training::CollectOptions collect;
  training::SetOptions set;
};

// Equal numbers of tokens of every text, from its beginning.
std::vector<std::int32_t> read_tokens(const Arguments& arguments,
                                      const engine::Tokenizer& tokenizer) {
  std::vector<std::int32_t> out;
  const std::size_t count = arguments.texts.size();
  for (std::size_t i = 0; i < count; ++i) {
    const compare::Document document = compare::read_document(arguments.texts[i], tokenizer);
    const std::size_t share = static_cast<std::size_t>(arguments.tokens) * (i + 1) / count -
                              static_cast<std::size_t>(arguments.tokens) * i / count;
    const std::size_t n = std::min(share, document.tokens.size());
    if (n < share)
      std::fprintf(stderr, "%s: has %zu tokens, %zu were asked for\n", arguments.texts[i].c_str(),
                   n, share);
    out.insert(out.end(), document.tokens.begin(),
               document.tokens.begin() + static_cast<std::ptrdiff_t>(n));
  }
  return out;
}

// Everything that the result depends on.
std::string source_of(const Arguments& a, const std::vector<std::int32_t>& tokens) {
  const std::uint64_t hash = lesskv::detail::fnv1a(
      reinterpret_cast<const std::byte*>(tokens.data()), tokens.size() * sizeof(std::int32_t));
  const training::TrainerOptions& t = a.set.trainer;
  std::string out = "lesskv training 1 " + std::filesystem::path(a.model).filename().string();
  for (const double x : {double(std::filesystem::file_size(a.model)),
                         double(tokens.size()),
                         double(hash >> 32),
                         double(hash & 0xffffffffu),
                         double(t.atoms),
                         double(t.steps),
                         double(t.batch),
                         double(t.batches),
                         t.rate_first,
                         t.rate_last,
                         t.diversity,
                         double(t.cluster_rounds),
                         double(t.seed),
                         double(a.set.key_groups),
                         double(a.set.value_groups),
                         double(a.set.key_chunks),
                         double(a.set.value_chunks),
                         double(a.set.max_bytes),
                         double(a.set.means),
                         double(a.after_rope),
                         double(a.collect.window),
                         double(a.collect.skip),
                         double(a.set.stages),
                         double(a.set.levels)})
    out += ' ' + std::to_string(x);
  return out;
}

void print_groups(const char* side, const std::vector<int>& groups) {
  std::printf("%s: layers", side);
  for (std::size_t l = 0; l < groups.size(); ++l)
    if (l == 0 || groups[l] != groups[l - 1]) {
      std::size_t last = l;
      while (last + 1 < groups.size() && groups[last + 1] == groups[l]) ++last;
      std::printf(" %zu-%zu", l, last);
    }
  std::printf("\n");
}

void run(Arguments& a) {
  const engine::Model model = engine::Model::open(a.model);
  const engine::Tokenizer tokenizer(model.file());
  compare::Progress bars(a.descriptor);
  const std::vector<std::int32_t> tokens = read_tokens(a, tokenizer);
  a.collect.before_rope = a.set.keys_before_rope = !a.after_rope;
  a.collect.means = a.set.means = !a.no_means;
  a.collect.threads = a.set.threads;
  a.set.rope_frequencies = model.frequencies();
  if (a.resume != "no") a.set.state = a.output + ".state";
  a.set.source = source_of(a, tokens);

  bars.start("keys and values", static_cast<long>(tokens.size()));
  Index before = 0;
  const training::Collected vectors = training::collect(model, tokens, a.collect, [&](Index done) {
    bars.step(static_cast<long>(done - before));
    before = done;
  });
  training::Progress progress;
  progress.start = [&](const std::string& stage, long total) {
    if (total > 0) bars.start(stage, total);
  };
  progress.step = [&] { bars.step(); };
  progress.errors = [](int batches, const std::vector<double>& errors) {
    std::printf("after %4d batches, error/variance:", batches);
    for (const double e : errors) std::printf(" %.3f", e);
    std::printf("\n");
    std::fflush(stdout);
  };
  const training::TrainedSet trained = training::train_set(vectors, a.set, progress);
  if (trained.resumed) std::printf("went on from %s\n", a.set.state.c_str());
  print_groups("keys", trained.key_groups);
  print_groups("values", trained.value_groups);
  trained.set.save(a.output);
  if (!a.set.state.empty()) std::filesystem::remove(a.set.state);
  std::printf("%s: %zu dictionaries of %td atoms, %zu bytes held\n", a.output.c_str(),
              trained.set.dictionaries.size(), trained.set.dictionaries[0].size(),
              trained.set.bytes());
}

}  // namespace

int main(int argc, char** argv) {
  Arguments a;
  a.set.trainer.atoms = 0;
  a.set.threads = static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
  CLI::App app{"Learns the dictionaries of a model's keys and values (CSR's NeuralDict)."};
  app.add_option("--model", a.model, "GGUF file of a Llama-architecture model")
      ->required()
      ->check(CLI::ExistingFile);
  app.add_option("--text", a.texts, "UTF-8 text, or token ids (.i32: int32, little-endian)")
      ->required()
      ->check(CLI::ExistingFile);
  app.add_option("--output", a.output, "the dictionary file")->required();
  app.add_option("--tokens", a.tokens, "of all texts together")->check(CLI::Range(64, 1 << 24));
  app.add_option("--window", a.collect.window, "tokens that see each other")
      ->check(CLI::Range(16, 1 << 16));
  app.add_option("--atoms", a.set.trainer.atoms, "of each dictionary; 0: what --max-bytes allows")
      ->check(CLI::Range(0, 65536));
  app.add_option("--max-bytes", a.set.max_bytes, "of all dictionaries together");
  app.add_option("--key-groups", a.set.key_groups, "of layers that share a dictionary, at most");
  app.add_option("--value-groups", a.set.value_groups, "likewise");
  app.add_option("--key-chunks", a.set.key_chunks, "parts of a key, each with a dictionary");
  app.add_option("--value-chunks", a.set.value_chunks, "likewise (CSR: 2)");
  app.add_option("--steps", a.set.trainer.steps, "atoms a vector while training")
      ->check(CLI::Range(1, 64));
  app.add_option("--batches", a.set.trainer.batches, "of 2048 vectors")
      ->check(CLI::Range(0, 1000000));
  app.add_option("--seed", a.set.trainer.seed, "of the batches");
  app.add_option("--threads", a.set.threads, "default: all cores")->check(CLI::Range(1, 1024));
  app.add_option("--resume", a.resume, "auto: keep a state beside the output and go on from it; no")
      ->check(CLI::IsMember({"auto", "no"}));
  app.add_flag("--after-rope", a.after_rope, "code keys as they are multiplied (Lexico)");
  app.add_flag("--no-means", a.no_means, "of the heads are not removed");
  app.add_option("--progress-fd", a.descriptor, "descriptor for progress lines")->group("");
  CLI11_PARSE(app, argc, argv);
  try {
    run(a);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "train_dictionary: %s\n", error.what());
    return 1;
  }
}
