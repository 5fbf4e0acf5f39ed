// SPDX-License-Identifier: MIT
// calibrate: the entropies of a model's heads over texts, as a file that uncomp(table=FILE),
// entropy(table=FILE) and table(file=FILE) read:
//   calibrate --model "$(examples/get_model.sh)" --text book.txt --output model.calibration
// --kept 0.35 makes the table of shares by a replay of the texts (KVzip), at the share of rows at which
// it will be used. With examples/progress.py --fd --progress-fd in front it draws a bar.
#include <CLI/CLI.hpp>
#include <cstdio>

#include "calibrate.hpp"

int main(int argc, char** argv) {
  calibrate::Options options;
  std::string output;
  CLI::App app{"Measures the entropy of every head of a model over texts, for budgets."};
  app.add_option("--model", options.model, "GGUF file of a Llama-architecture model")
      ->required()
      ->check(CLI::ExistingFile);
  app.add_option("--text", options.texts, "UTF-8 text, or token ids (.i32: int32, little-endian)")
      ->required()
      ->check(CLI::ExistingFile);
  app.add_option("--output", output, "the calibration file to write")->required();
  app.add_option("--context", options.context, "tokens of a window")
      ->check(CLI::Range(64, 1 << 20));
  app.add_option("--windows", options.windows, "windows of every text, one after the other")
      ->check(CLI::Range(1, 100000));
  app.add_option("--truncation", options.truncation,
                 "largest eigenvalues that count; 0: a quarter of the channels")
      ->check(CLI::Range(0, 1 << 16));
  app.add_option("--kept", options.kept,
                 "makes the table of shares by replay: rows of each head that a cut over the whole "
                 "model keeps, of this share of all rows")
      ->check(CLI::Range(0.001, 0.999));
  app.add_option("--progress-fd", options.progress, "descriptor for progress lines")->group("");
  CLI11_PARSE(app, argc, argv);
  try {
    const calibrate::Result result = calibrate::run(options);
    result.file.save(output);
    std::fputs(calibrate::summary(result).c_str(), stdout);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "calibrate: %s\n", error.what());
    return 1;
  }
}
