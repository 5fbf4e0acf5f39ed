// SPDX-License-Identifier: MIT
// prefill: how much faster a long prompt is read when tokens are dropped between groups of layers
// (UNComp's hidden states), and what that costs behind it. One row a share of the prompt that
// reaches the last group:
//   prefill --model MODEL.gguf --text FILE [--text FILE]... [--last-share 0.375,0.2]
#include <CLI/CLI.hpp>
#include <compare/document.hpp>
#include <cstdio>

#include "measure.hpp"

namespace {

using prefill::Index;
using prefill::Way;

struct Arguments {
  std::string model;
  std::vector<std::string> texts;
  std::vector<double> last_shares = {0.375, 0.2};
  engine::DropHidden drop;
  Index context = 7500, score = 256;
  int rounds = 1, progress = -1;
};

std::string format(double x) {
  char text[32];
  std::snprintf(text, sizeof text, "%.4g", x);
  return text;
}

void print(const std::vector<Way>& ways, const Arguments& arguments, int layers,
           std::size_t documents) {
  std::printf("%-10s %7s %7s %7s %10s %6s %6s %9s %8s %7s %8s %7s %9s %11s\n", "last share",
              "work %", "attn %", "MB", "prefill s", "x", "cpu x", "choose ms", "KLD", "±",
              "top-1 %", "dNLL", "copy KLD", "copy top-1");
  for (const Way& way : ways) {
    std::vector<double> seconds, ratios, processor_ratios, choosing;
    for (std::size_t i = 0; i < way.times.size(); ++i) {
      const auto &own = way.times[i], &exact = ways[0].times[i];
      seconds.push_back(own.seconds);
      ratios.push_back(exact.seconds / own.seconds);
      processor_ratios.push_back(exact.processor_seconds / own.processor_seconds);
      choosing.push_back(1e3 * own.choosing_seconds);
    }
    using prefill::median;
    std::printf(
        "%-10s %7.1f %7.1f %7.1f %10.2f %6.2f %6.2f %9.0f %8.4f %6.4f %8.1f %+7.3f %9.4f %11.1f\n",
        way.name.c_str(),
        100 * way.work(arguments.context, layers) / ways[0].work(arguments.context, layers),
        100 * way.attention_work(arguments.context, layers) /
            ways[0].attention_work(arguments.context, layers),
        way.bytes / static_cast<double>(documents) / 1e6, median(seconds), median(ratios),
        median(processor_ratios), median(choosing), way.running.divergence.value(),
        way.running.divergence.standard_error(), 100 * way.running.same_argmax.value(),
        way.running.loss_delta.value(), way.copies.divergence.value(),
        100 * way.copies.same_argmax.value());
  }
}

void run(const Arguments& arguments) {
  const engine::Model model = engine::Model::open(arguments.model);
  const engine::Tokenizer tokenizer(model.file());
  const int layers = static_cast<int>(model.config().layers);
  std::vector<Way> ways = {{"exact"}};
  for (const double share : arguments.last_shares) {
    engine::DropHidden drop = arguments.drop;
    drop.last_share = share;
    // Before a minute was spent on the exact pass.
    lesskv::check_stages(drop.groups, drop.budgets_for(arguments.context), layers,
                         arguments.context, drop.pins);
    ways.push_back({format(share), drop});
  }
  std::vector<compare::Document> documents;
  for (const std::string& file : arguments.texts) {
    documents.push_back(compare::read_document(file, tokenizer));
    try {
      compare::running_text(documents.back().tokens, arguments.context, arguments.score);
      compare::copy_spans(documents.back().tokens, arguments.context);
    } catch (const std::exception& error) {
      throw std::runtime_error(file + ": " + error.what());
    }
  }
  engine::Run run(model);
  compare::Progress progress(arguments.progress);
  for (const compare::Document& document : documents)
    prefill::measure(run, document.name, document.tokens, arguments.context, arguments.score,
                     arguments.rounds, ways, progress);
  print(ways, arguments, layers, documents.size());
  std::string names, groups;
  for (const compare::Document& document : documents)
    names += (names.empty() ? "" : ", ") + document.name;
  for (const int size : arguments.drop.groups)
    groups += (groups.empty() ? "" : ",") + std::to_string(size);
  std::printf(
      "\n%s; %s; %td tokens, layer groups %s, window %td, sinks %td; %td tokens scored, %td "
      "copied; kernels %s, one thread\n"
      "last share: of the prompt, in the last layer group; work: tokens x layers; attn: pairs of a "
      "query and a row that it sees; x: times the exact prefill's speed, median of %zu rounds run "
      "in turn (cpu x: processor time).\n",
      std::filesystem::path(arguments.model).filename().c_str(), names.c_str(), arguments.context,
      groups.c_str(), arguments.drop.pins.window, arguments.drop.pins.sinks,
      ways[0].running.divergence.count(), ways[0].copies.divergence.count(), lesskv::kernels().name,
      ways[0].times.size());
}

}  // namespace

int main(int argc, char** argv) {
  Arguments arguments;
  CLI::App app{"Prefill with hidden states dropped between groups of layers: speed and loss."};
  app.add_option("--model", arguments.model, "GGUF file of a Llama-architecture model")
      ->required()
      ->check(CLI::ExistingFile);
  app.add_option("--text", arguments.texts, "UTF-8 text, or token ids (.i32: int32, little-endian)")
      ->required()
      ->check(CLI::ExistingFile);
  app.add_option("--last-share", arguments.last_shares,
                 "share of the prompt that reaches the last layer group; one row each")
      ->delimiter(',')
      ->capture_default_str();
  app.add_option("--layer-groups", arguments.drop.groups,
                 "layers of each group; default: those of SmolLM2-135M")
      ->delimiter(',')
      ->capture_default_str();
  app.add_option("--window", arguments.drop.pins.window,
                 "last tokens, whose attention decides and who stay")
      ->capture_default_str();
  app.add_option("--sinks", arguments.drop.pins.sinks, "first tokens that stay")
      ->capture_default_str();
  app.add_option("--context", arguments.context, "tokens of the prompt")
      ->check(CLI::Range(128, 1 << 20))
      ->capture_default_str();
  app.add_option("--score", arguments.score, "tokens behind it that are compared with exact")
      ->check(CLI::Range(1, 1 << 16))
      ->capture_default_str();
  app.add_option("--rounds", arguments.rounds, "times that every document is read each way")
      ->check(CLI::Range(1, 1000))
      ->capture_default_str();
  app.add_option("--progress-fd", arguments.progress, "descriptor for progress lines")->group("");
  CLI11_PARSE(app, argc, argv);
  try {
    run(arguments);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "prefill: %s\n", error.what());
    return 1;
  }
}
