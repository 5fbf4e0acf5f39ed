// SPDX-License-Identifier: MIT
// Pass keys: numbers hidden in real prose, several in a text, asked for one by one. Of five digits (or
// however few) all must be right; of long ones, from long_pass_key digits on, every digit at its place counts.
#pragma once

#include <algorithm>
#include <array>
#include <engine/sampler.hpp>
#include <engine/tokenizer.hpp>
#include <optional>
#include <string>

#include "pass.hpp"

namespace compare {

struct PassKey {
  std::string name, digits;
  std::vector<std::int32_t> question;  // up to and with "... The pass key of NAME is"
  bool found_by_exact = false;
  // Of the question but its last token, behind the exact context: for policies that may see the
  // question.
  std::optional<Tensors> question_tensors;  // set by the exact pass
};

struct PassKeyContext {
  std::vector<std::int32_t> tokens;
  std::vector<PassKey> keys;
};

// Counter-based noise (splitmix64): the same seed gives the same keys everywhere.
inline std::uint64_t mix(std::uint64_t x) {
  x += 0x9e3779b97f4a7c15u;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

inline constexpr std::size_t long_pass_key = 16;

inline constexpr std::array<const char*, 20> pass_key_names = {
    "Alice", "Martin", "Clara", "Victor", "Helen", "Oscar", "Nina",  "Peter",  "Laura", "Simon",
    "Emma",  "Felix",  "Diana", "Robert", "Julia", "Henry", "Sarah", "Thomas", "Grace", "Adam"};

// Puts keys (at most as many as there are names) into `prose`, five at 10, 30, 50, 70 and 90 % of
// it, each at the next end of a sentence.
inline PassKeyContext make_pass_keys(const engine::Tokenizer& tokenizer,
                                     std::span<const std::int32_t> prose, std::uint64_t seed,
                                     std::size_t digits = 5, std::size_t count = 5) {
  const auto ends_sentence = [&](std::int32_t token) {
    const std::string text = tokenizer.decode(token);
    return !text.empty() && (text.back() == '.' || text.back() == '\n');
  };
  PassKeyContext out;
  std::size_t from = 0;
  const std::size_t first_name = mix(seed) % pass_key_names.size();
  for (std::size_t k = 0; k < count; ++k) {
    PassKey key;
    key.name = pass_key_names[(first_name + k) % pass_key_names.size()];
    key.digits = std::to_string(10000 + mix(seed * 1000 + k + 1) % 90000);
    for (std::uint64_t i = 0; key.digits.size() < digits; ++i)
      key.digits += static_cast<char>('0' + mix((seed * 1000 + k + 1) * 1000 + i) % 10);
    key.digits.resize(digits);
    std::size_t at = prose.size() * (2 * k + 1) / (2 * count);
    const std::size_t limit = std::min(prose.size(), at + prose.size() / (2 * count));
    while (at < limit && !ends_sentence(prose[at])) ++at;
    at = std::min(prose.size(), at + 1);
    out.tokens.insert(out.tokens.end(), prose.begin() + static_cast<Index>(from),
                      prose.begin() + static_cast<Index>(at));
    from = at;
    const auto hidden =
        tokenizer.encode(" The pass key of " + key.name + " is " + key.digits +
                         ". Remember it: " + key.digits + " is the pass key of " + key.name + ".");
    out.tokens.insert(out.tokens.end(), hidden.ids.begin(), hidden.ids.end());
    key.question = tokenizer
                       .encode("\n\nQuestion: What is the pass key of " + key.name +
                               "?\nAnswer: The pass key of " + key.name + " is")
                       .ids;
    out.keys.push_back(std::move(key));
  }
  out.tokens.insert(out.tokens.end(), prose.begin() + static_cast<Index>(from), prose.end());
  return out;
}

// The prose of text `i` of `count` with pass keys: 1/2 to 3/4 of `context` tokens, from behind those
// that are scored, or else from the beginning.
inline std::span<const std::int32_t> pass_key_prose(std::span<const std::int32_t> document,
                                                    Index context, Index score, int i, int count) {
  const double share = 0.5 + 0.25 * (i + 0.5) / count;
  const auto length = static_cast<std::size_t>(share * static_cast<double>(context));
  const std::size_t used = static_cast<std::size_t>(context + score);
  return document.subspan(document.size() >= used + length ? used : 0, length);
}

// How many points a key gives: one, or one a digit.
inline Index points(const PassKey& key) {
  return key.digits.size() < long_pass_key ? 1 : static_cast<Index>(key.digits.size());
}

// Points of the greedy continuation of `fed`. A short key must follow, after blanks, exactly: stops
// at the first wrong token. Of a long one as many digits as it has are taken, blanks left out.
template <class Cache>
Index points_said(engine::Run& run, const engine::Tokenizer& tokenizer, Cache cache,
                  std::vector<std::int32_t> fed, Index position, const PassKey& key) {
  constexpr std::size_t most_blanks = 4;
  const std::string& digits = key.digits;
  const bool all_or_nothing = points(key) == 1;
  std::string said;
  for (;;) {
    const std::int32_t token = engine::argmax(run.forward(cache, fed, position));
    position += static_cast<Index>(fed.size());
    fed = {token};
    said += tokenizer.decode(token);
    const std::size_t start = std::min(said.find_first_not_of(' '), said.size());
    const std::string number = said.substr(start, digits.size());
    const bool ended = token < 0 || tokenizer.is_special(token) || start > most_blanks;
    if (all_or_nothing) {
      if (start > most_blanks || number != digits.substr(0, number.size())) return 0;
      if (number == digits) return 1;
      if (ended) return 0;
    } else if (ended || number.size() == digits.size()) {
      Index right = 0;
      for (std::size_t i = 0; i < number.size(); ++i) right += number[i] == digits[i];
      return right;
    }
  }
}

// The exact pass over a context, which keys it finds, and the tensors of their questions.
inline Pass exact_pass(engine::Run& run, const engine::Tokenizer& tokenizer,
                       PassKeyContext& context, bool probes = false) {
  Pass pass = exact_pass(run, context.tokens);
  if (probes) keep_probes(run, pass, engine::replay_chunks(tokenizer, context.tokens));
  const auto end = static_cast<Index>(context.tokens.size());
  for (PassKey& key : context.keys) {
    lesskv::KVCache<> asked = pass.exact.fork();
    Tensors tensors(asked.shape());
    const std::span<const std::int32_t> question(key.question);
    forward_and_keep(run, asked, tensors, question.first(question.size() - 1), end);
    key.question_tensors = std::move(tensors);
    const Index said = points_said(run, tokenizer, std::move(asked), {key.question.back()},
                                   end + static_cast<Index>(key.question.size()) - 1, key);
    key.found_by_exact = 10 * said >= 9 * points(key);  // a long one: nearly
  }
  return pass;
}

}  // namespace compare
