// SPDX-License-Identifier: MIT
#include "run.hpp"

#include <algorithm>

#include "dequantize.hpp"

namespace engine {

Index Run::check(std::span<const std::int32_t> tokens, std::int64_t first_position,
                 const ForwardOptions& options) const {
  const Index count = static_cast<Index>(tokens.size());
  const Index wanted = options.logits == every_token ? count : options.logits;
  if (wanted < 0 || wanted > count)
    throw Error("forward: logits of more tokens are asked for than are fed");
  if (first_position < 0) throw Error("forward: first_position is negative");
  for (const std::int32_t token : tokens)
    if (token < 0 || token >= model_->config().vocabulary)
      throw Error("forward: token " + std::to_string(token) + " is outside the vocabulary");
  return wanted;
}

void Run::embed(std::span<const std::int32_t> tokens, std::int64_t first_position, Pass& pass) {
  const Config& c = model_->config();
  const Weights& table = model_->embedding();
  const auto n = static_cast<Index>(tokens.size());
  float* const embedded = row_buffer_.reserve(n * c.width);
  pass.positions.clear();
  for (Index t = 0; t < n; ++t) {
    dequantize(table.type, table.row(tokens[static_cast<std::size_t>(t)]), embedded + t * c.width,
               c.width);
    pass.positions.push_back(first_position + t);
  }
  from_rows(embedded, c.width, n, pass.hidden);
  rotation_table(model_->frequencies(), pass.positions, pass.cosines, pass.sines);
}

void Run::point_rows(Index tokens) {
  const Config& c = model_->config();
  const Index query_width = c.query_heads * c.head_dim, kv_width = c.kv_heads * c.head_dim;
  rows_.queries = row_buffer_.reserve(tokens * 2 * (query_width + kv_width));
  rows_.keys = rows_.queries + tokens * query_width;
  rows_.values = rows_.keys + tokens * kv_width;
  rows_.attended = rows_.values + tokens * kv_width;
}

void Run::project(int layer, const Pass& pass) {
  const Layer& weights = model_->layers()[static_cast<std::size_t>(layer)];
  rms_norm(pass.hidden, weights.attention_norm, model_->config().norm_epsilon, normed_);
  multiply(weights.query, normed_, queries_, false, executor_);
  multiply(weights.key, normed_, keys_, false, executor_);
  multiply(weights.value, normed_, values_, false, executor_);
  rotate(queries_, pass.cosines, pass.sines);
  rotate(keys_, pass.cosines, pass.sines);
  point_rows(pass.hidden.tokens());
  to_rows(queries_, rows_.queries);
  to_rows(keys_, rows_.keys);
  to_rows(values_, rows_.values);
}

void Run::finish_layer(int layer, Pass& pass) {
  const Layer& weights = model_->layers()[static_cast<std::size_t>(layer)];
  from_rows(rows_.attended, queries_.features(), queries_.tokens(), attended_);
  multiply(weights.output, attended_, pass.hidden, true, executor_);
  rms_norm(pass.hidden, weights.feed_forward_norm, model_->config().norm_epsilon, normed_);
  multiply(weights.gate, normed_, gate_, false, executor_);
  multiply(weights.up, normed_, up_, false, executor_);
  swiglu(gate_, up_);
  multiply(weights.down, gate_, pass.hidden, true, executor_);
}

void Run::show_hidden(const ForwardOptions& options, int entry, const Pass& pass,
                      Index first_token) {
  const bool last = entry == layers();
  if (last) rms_norm(pass.hidden, model_->output_norm(), model_->config().norm_epsilon, normed_);
  const Panels& shown = last ? normed_ : pass.hidden;
  Buffer rows;
  to_rows(shown, rows.reserve(shown.features() * shown.tokens()));
  options.on_hidden({entry, first_token, shown.tokens(), rows.data(), pass.positions});
}

void Run::finish(const Pass& pass, Index first, Index count, Index wanted,
                 const ForwardOptions& options) {
  if (options.on_hidden) show_hidden(options, layers(), pass, first);
  const Index from = std::max(first, count - wanted);
  if (from < first + pass.hidden.tokens()) {
    logits_.reserve(wanted * model_->config().vocabulary);
    write_logits(pass, from - first, from - (count - wanted));
  }
}

// Logits of tokens [first_token, end) of the pass, to rows `row`, row + 1, ... of logits_. The
// other tokens of the pass are left out before the product with the output matrix, which costs a
// quarter of the whole model here.
void Run::write_logits(const Pass& pass, Index first_token, Index row) {
  const Config& c = model_->config();
  const Index n = pass.hidden.tokens() - first_token;
  Buffer rows;
  float* const wanted = rows.reserve(n * c.width);
  for (Index t = 0; t < n; ++t) copy_token(pass.hidden, first_token + t, wanted + t * c.width);
  from_rows(wanted, c.width, n, attended_);
  rms_norm(attended_, model_->output_norm(), c.norm_epsilon, normed_);
  float* const to = logits_.data() + row * c.vocabulary;
  if (n == 1) return multiply(model_->output(), normed_.panel(0), to, false, executor_);
  multiply(model_->output(), normed_, vocabulary_, false, executor_);
  to_rows(vocabulary_, to);
}

void Run::hold_queries(const Pass& pass, Index first, Index count, Index window) {
  const Index width = queries_.features(), tokens = pass.hidden.tokens();
  const Index begin = std::max<Index>(0, count - window);
  float* const held = last_queries_.reserve((count - begin) * width);
  for (Index t = std::max(first, begin); t < first + tokens; ++t)
    std::copy_n(rows_.queries + (t - first) * width, width, held + (t - begin) * width);
}

std::vector<Run::Pass> Run::keep(std::vector<Pass> passes, std::span<const std::int32_t> kept) {
  const Index width = model_->config().width, count = static_cast<Index>(kept.size());
  std::vector<Pass> out;
  std::size_t from = 0;
  Index first_of_from = 0;
  for (Index first = 0; first < count; first += pass_tokens) {
    const Index n = std::min(pass_tokens, count - first);
    float* const rows = row_buffer_.reserve(n * width);
    Pass& pass = out.emplace_back();
    for (Index t = 0; t < n; ++t) {
      const Index token = kept[static_cast<std::size_t>(first + t)];
      while (token >= first_of_from + passes[from].hidden.tokens()) {
        first_of_from += passes[from].hidden.tokens();
        passes[from++] = {};
      }
      copy_token(passes[from].hidden, token - first_of_from, rows + t * width);
      pass.positions.push_back(
          passes[from].positions[static_cast<std::size_t>(token - first_of_from)]);
    }
    from_rows(rows, width, n, pass.hidden);
    rotation_table(model_->frequencies(), pass.positions, pass.cosines, pass.sines);
  }
  return out;
}

std::size_t Run::bytes() const {
  std::size_t sum = row_buffer_.bytes() + logits_.bytes() + last_queries_.bytes();
  for (const Panels* panels : {&pass_.hidden, &pass_.cosines, &pass_.sines, &normed_, &queries_,
                               &keys_, &values_, &attended_, &gate_, &up_, &vocabulary_})
    sum += panels->bytes();
  return sum;
}

}  // namespace engine
