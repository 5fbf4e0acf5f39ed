// SPDX-License-Identifier: MIT
#include "calibrate.hpp"

#include <cmath>
#include <compare/document.hpp>
#include <compare/pass.hpp>
#include <filesystem>
#include <lesskv/budget/entropy_weight.hpp>
#include <lesskv/budget/layer_groups.hpp>
#include <lesskv/lesskv.hpp>

namespace calibrate {

namespace {

using lesskv::View;
using std::size_t;

// One kind of tensor: sums over windows of H_k and H, [layer][head].
struct Sums {
  int heads;
  std::vector<double> truncated, full;

  Sums(Index layers, int of)
      : heads(of),
        truncated(static_cast<size_t>(layers * of), 0.0),
        full(static_cast<size_t>(layers * of), 0.0) {}
  void add(int layer, const View& tensor, int width, Index truncation) {
    std::vector<float> block(static_cast<size_t>(lesskv::detail::gram_rows * width));
    for (int h = 0; h < heads; ++h) {
      const auto rows = [&](Index first, Index count) {
        for (Index t = 0; t < count; ++t)
          lesskv::detail::read_row(tensor, first + t, h, width, block.data() + t * width);
        return block.data();
      };
      const std::vector<double> values = lesskv::spectrum(tensor.tokens, width, width, rows);
      const size_t at = static_cast<size_t>(layer * heads + h);
      truncated[at] += lesskv::truncated_entropy(values, truncation);
      full[at] += lesskv::truncated_entropy(values);
    }
  }
  lesskv::Calibration::Table table(const std::string& name, std::vector<double> sums,
                                   double windows) const {
    for (double& x : sums) x /= windows;
    const Index rows = static_cast<Index>(sums.size()) / heads;
    return {name, rows, heads, std::move(sums)};
  }
};

// What the streaming form makes of the same queries.
void add_moments(std::vector<double>& sums, int layer, const View& queries, int heads, int width,
                 Index truncation) {
  std::vector<float> block(static_cast<size_t>(64 * width));
  for (int h = 0; h < heads; ++h) {
    lesskv::UnitMoments moments;
    for (Index first = 0; first < queries.tokens; first += 64) {
      const Index count = std::min<Index>(64, queries.tokens - first);
      for (Index t = 0; t < count; ++t)
        lesskv::detail::read_row(queries, first + t, h, width, block.data() + t * width);
      moments.add(block.data(), width, count, width);
    }
    sums[static_cast<size_t>(layer * heads + h)] += moments.entropy(truncation);
  }
}

// How many rows of each head a cut over all heads keeps, of `kept` of them, by the attention of a
// replay of the text: KVzip.
void add_counts(std::vector<double>& counts, engine::Run& engine,
                const engine::Tokenizer& tokenizer, std::span<const std::int32_t> tokens,
                compare::Pass& pass, double kept) {
  compare::keep_probes(engine, pass, engine::replay_chunks(tokenizer, tokens));
  const lesskv::Shape& shape = pass.exact.shape();
  lesskv::KVCache cut(shape,
                      lesskv::Keep{.fraction = kept, .sinks = lesskv::KVzip::published.sinks},
                      lesskv::KVzip{}, lesskv::GlobalCut<>{});
  compare::replay(pass, cut);
  cut.compress();
  for (int layer = 0; layer < shape.layers; ++layer)
    for (int h = 0; h < shape.kv_heads; ++h)
      counts[static_cast<size_t>(layer * shape.kv_heads + h)] +=
          static_cast<double>(cut.size(layer, h) - lesskv::KVzip::published.sinks);
}

}  // namespace

Result run(const Options& options) {
  const engine::Model model = engine::Model::open(options.model);
  const engine::Tokenizer tokenizer(model.file());
  const lesskv::Shape shape = engine::cache_shape(model);
  if (options.context < 4 * shape.head_dim)
    throw std::runtime_error("--context " + std::to_string(options.context) +
                             ": an entropy of fewer than 4 * head_dim tokens is not trusted, " +
                             std::to_string(4 * shape.head_dim) + " here");
  const Index k =
      options.truncation > 0 ? options.truncation : lesskv::default_truncation(shape.head_dim);
  if (k > std::min(shape.head_dim, shape.value_width()))
    throw std::runtime_error("--truncation " + std::to_string(k) + ": more than the channels");

  std::vector<std::vector<std::int32_t>> windows;
  for (const std::string& text : options.texts) {
    const compare::Document document = compare::read_document(text, tokenizer);
    const Index tokens = static_cast<Index>(document.tokens.size());
    if (tokens < options.context)
      throw std::runtime_error(text + ": it has " + std::to_string(tokens) +
                               " tokens, --context asks for " + std::to_string(options.context));
    for (Index w = 0; w < options.windows && (w + 1) * options.context <= tokens; ++w)
      windows.emplace_back(document.tokens.begin() + w * options.context,
                           document.tokens.begin() + (w + 1) * options.context);
  }

  compare::Progress progress(options.progress);
  engine::Run engine(model);
  Sums queries(shape.layers, shape.query_heads), keys(shape.layers, shape.kv_heads),
      values(shape.layers, shape.kv_heads);
  Result out;
  out.moments.assign(queries.full.size(), 0.0);
  std::vector<double> counts(static_cast<size_t>(shape.heads()), 0.0);
  for (size_t w = 0; w < windows.size(); ++w) {
    const std::string which = std::to_string(w + 1) + " of " + std::to_string(windows.size());
    // In parts, so that the bar moves: a window takes seconds.
    compare::Pass pass(shape);
    const std::span<const std::int32_t> tokens(windows[w]);
    constexpr Index part = engine::Run::pass_tokens;
    const Index parts = (options.context + part - 1) / part;
    progress.start("exact pass, window " + which, static_cast<long>(parts));
    for (Index first = 0; first < options.context; first += part) {
      const Index count = std::min(part, options.context - first);
      compare::forward_and_keep(
          engine, pass.exact, pass.tensors,
          tokens.subspan(static_cast<size_t>(first), static_cast<size_t>(count)), first);
      progress.step();
    }
    progress.start("entropies, window " + which, shape.layers);
    for (int layer = 0; layer < shape.layers; ++layer) {
      queries.add(layer, pass.tensors.queries(layer), shape.head_dim, k);
      keys.add(layer, pass.tensors.keys(layer), shape.head_dim, k);
      values.add(layer, pass.tensors.values(layer), shape.value_width(), k);
      add_moments(out.moments, layer, pass.tensors.queries(layer), shape.query_heads,
                  shape.head_dim, k);
      progress.step();
    }
    if (options.kept > 0) add_counts(counts, engine, tokenizer, tokens, pass, options.kept);
  }

  const double n = static_cast<double>(windows.size());
  for (double& x : out.moments) x /= n;
  lesskv::Calibration& file = out.file;
  file.model = std::filesystem::path(options.model).filename().string();
  file.layers = shape.layers;
  file.query_heads = shape.query_heads;
  file.kv_heads = shape.kv_heads;
  file.head_dim = shape.head_dim;
  file.tokens = options.context * static_cast<Index>(windows.size());
  file.truncation = k;
  file.tables.push_back(queries.table("entropy_queries", queries.truncated, n));
  file.tables.push_back(keys.table("entropy_keys", keys.truncated, n));
  file.tables.push_back(values.table("entropy_values", values.truncated, n));
  file.tables.push_back(queries.table("full_entropy_queries", queries.full, n));
  file.tables.push_back(keys.table("full_entropy_keys", keys.full, n));
  file.tables.push_back(values.table("full_entropy_values", values.full, n));
  // What EntropyWeight makes of them, for TableBudget, or what a replay says.
  std::vector<double> shares(static_cast<size_t>(shape.heads()), 1.0);
  const std::vector<lesskv::HeadEntropy> none(shares.size());
  lesskv::EntropyWeight{.table = {"", file}}.share(shape, none, shares);
  if (options.kept > 0) shares = std::move(counts);
  file.tables.push_back({"shares", shape.layers, shape.kv_heads, std::move(shares)});
  return out;
}

std::string summary(const Result& result) {
  const lesskv::Calibration& file = result.file;
  const auto mean = [&](const char* name, Index layer) {
    const lesskv::Calibration::Table& table = *file.find(name);
    double sum = 0;
    for (Index c = 0; c < table.columns; ++c)
      sum += table.values[static_cast<size_t>(layer * table.columns + c)];
    return sum / static_cast<double>(table.columns);
  };
  char line[160];
  std::string out = "layer   H_k: queries    keys  values   H: queries    keys  values\n";
  for (Index l = 0; l < file.layers; ++l) {
    std::snprintf(line, sizeof line, "%5td        %7.3f %7.3f %7.3f      %7.3f %7.3f %7.3f\n", l,
                  mean("entropy_queries", l), mean("entropy_keys", l), mean("entropy_values", l),
                  mean("full_entropy_queries", l), mean("full_entropy_keys", l),
                  mean("full_entropy_values", l));
    out += line;
  }
  const std::vector<double> series =
      lesskv::layer_series(file.find("full_entropy_queries")->values, file.layers, file.head_dim);
  const std::vector<int> groups =
      lesskv::layer_groups(series, lesskv::default_drop(file.query_heads));
  out += "groups of layers by drops of H of the queries:";
  for (int g = 0; g <= groups.back(); ++g)
    (out += ' ') += std::to_string(std::count(groups.begin(), groups.end(), g));

  // The streaming form against the reference form.
  const std::vector<double>& exact = file.find("entropy_queries")->values;
  const double n = static_cast<double>(exact.size());
  double largest = 0, a = 0, b = 0, aa = 0, bb = 0, ab = 0;
  for (size_t i = 0; i < exact.size(); ++i) {
    largest = std::max(largest, std::abs(exact[i] - result.moments[i]));
    a += exact[i] / n;
    b += result.moments[i] / n;
  }
  for (size_t i = 0; i < exact.size(); ++i) {
    aa += (exact[i] - a) * (exact[i] - a);
    bb += (result.moments[i] - b) * (result.moments[i] - b);
    ab += (exact[i] - a) * (result.moments[i] - b);
  }
  std::snprintf(
      line, sizeof line,
      "\nH_k of queries as they stream by, against all at once: correlation %.4f, largest "
      "difference %.3f, deviation over heads %.3f\n",
      ab / std::sqrt(aa * bb), largest, std::sqrt(aa / n));
  return out + line;
}

}  // namespace calibrate
