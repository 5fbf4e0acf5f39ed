// SPDX-License-Identifier: MIT
#include "run.hpp"

#include "dequantize.hpp"

namespace engine {

void Run::embed(std::span<const std::int32_t> tokens, std::int64_t first_position) {
  const Config& c = model_->config();
  const Weights& table = model_->embedding();
  const auto n = static_cast<Index>(tokens.size());
  const Index query_width = c.query_heads * c.head_dim, kv_width = c.kv_heads * c.head_dim;
  rows_.queries = row_buffer_.reserve(n * std::max(c.width, 2 * (query_width + kv_width)));
  rows_.keys = rows_.queries + n * query_width;
  rows_.values = rows_.keys + n * kv_width;
  rows_.attended = rows_.values + n * kv_width;

  float* const embedded = row_buffer_.data();
  for (Index t = 0; t < n; ++t)
    dequantize(table.type, table.row(tokens[static_cast<std::size_t>(t)]), embedded + t * c.width,
               c.width);
  from_rows(embedded, c.width, n, hidden_);
  rotation_table(model_->frequencies(), first_position, n, cosines_, sines_);
}

void Run::project(int layer) {
  const Layer& weights = model_->layers()[static_cast<std::size_t>(layer)];
  rms_norm(hidden_, weights.attention_norm, model_->config().norm_epsilon, normed_);
  multiply(weights.query, normed_, queries_, false, executor_);
  multiply(weights.key, normed_, keys_, false, executor_);
  multiply(weights.value, normed_, values_, false, executor_);
  rotate(queries_, cosines_, sines_);
  rotate(keys_, cosines_, sines_);
  to_rows(queries_, rows_.queries);
  to_rows(keys_, rows_.keys);
  to_rows(values_, rows_.values);
}

void Run::finish_layer(int layer) {
  const Layer& weights = model_->layers()[static_cast<std::size_t>(layer)];
  from_rows(rows_.attended, queries_.features(), queries_.tokens(), attended_);
  multiply(weights.output, attended_, hidden_, true, executor_);
  rms_norm(hidden_, weights.feed_forward_norm, model_->config().norm_epsilon, normed_);
  multiply(weights.gate, normed_, gate_, false, executor_);
  multiply(weights.up, normed_, up_, false, executor_);
  swiglu(gate_, up_);
  multiply(weights.down, gate_, hidden_, true, executor_);
}

void Run::show_hidden(const ForwardOptions& options, int entry, Index first_token) {
  const bool last = entry == static_cast<int>(model_->config().layers);
  if (last) rms_norm(hidden_, model_->output_norm(), model_->config().norm_epsilon, normed_);
  const Panels& shown = last ? normed_ : hidden_;
  Buffer rows;
  to_rows(shown, rows.reserve(shown.features() * shown.tokens()));
  options.on_hidden({entry, first_token, shown.tokens(), rows.data()});
}

// Logits of tokens [first_token, end) of the pass, to rows `row`, row + 1, ... of logits_. The
// other tokens of the pass are left out before the product with the output matrix, which costs a
// quarter of the whole model here.
void Run::write_logits(Index first_token, Index row) {
  const Config& c = model_->config();
  const Index n = hidden_.tokens() - first_token;
  Buffer rows;
  float* const wanted = rows.reserve(n * c.width);
  for (Index t = 0; t < n; ++t) copy_token(hidden_, first_token + t, wanted + t * c.width);
  from_rows(wanted, c.width, n, attended_);
  rms_norm(attended_, model_->output_norm(), c.norm_epsilon, normed_);
  float* const to = logits_.data() + row * c.vocabulary;
  if (n == 1) return multiply(model_->output(), normed_.panel(0), to, false, executor_);
  multiply(model_->output(), normed_, vocabulary_, false, executor_);
  to_rows(vocabulary_, to);
}

std::size_t Run::bytes() const {
  std::size_t sum = row_buffer_.bytes() + logits_.bytes();
  for (const Panels* panels : {&hidden_, &normed_, &queries_, &keys_, &values_, &attended_, &gate_,
                               &up_, &cosines_, &sines_, &vocabulary_})
    sum += panels->bytes();
  return sum;
}

}  // namespace engine
