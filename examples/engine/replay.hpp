// SPDX-License-Identifier: MIT
// The replay of KVzip (arXiv 2505.23416): the model is asked to repeat its context and is given it
// once more, a chunk at a time, as probes. What a row is worth is then known before any question is.
//
// Prompts and sizes are those of kvpress (KVzipPress), without the template of a chat: a chunk is
// introduced by a request, which from the second one on ends with the last 8 tokens before it.
#pragma once

#include <algorithm>
#include <span>
#include <string_view>
#include <vector>

#include "run.hpp"
#include "tokenizer.hpp"

namespace engine {

struct ReplayOptions {
  Index chunk = 2048;  // tokens of the context that are repeated at a time
  Index overlap = 8;   // tokens before it that the request names
  std::string_view first = "\n\nRepeat the previous context exactly.\n";
  std::string_view next = "\n\nRepeat the part of the previous context exactly, starting with";
};

// What is fed for each chunk.
inline std::vector<std::vector<std::int32_t>> replay_chunks(const Tokenizer& tokenizer,
                                                            std::span<const std::int32_t> context,
                                                            const ReplayOptions& options = {}) {
  std::vector<std::vector<std::int32_t>> out;
  const Index count = static_cast<Index>(context.size());
  for (Index start = 0; start < count; start += options.chunk) {
    const auto part = [&](Index first, Index last) {
      return context.subspan(static_cast<std::size_t>(first),
                             static_cast<std::size_t>(last - first));
    };
    std::vector<std::int32_t> tokens =
        tokenizer.encode(start == 0 ? options.first : options.next, false).ids;
    const auto append = [&](std::span<const std::int32_t> more) {
      tokens.insert(tokens.end(), more.begin(), more.end());
    };
    if (start > 0) {
      append(part(std::max<Index>(0, start - options.overlap), start));
      append(tokenizer.encode("\n", false).ids);
    }
    append(part(start, std::min(start + options.chunk, count)));
    out.push_back(std::move(tokens));
  }
  return out;
}

// After the context went through the cache at positions 0 .. and before compress(): policies that
// ask for probes see those of the replay. on_tensors: of the options, for callers that want to keep
// them; `on_chunk` is told of each chunk before it is fed.
template <class Cache>
void replay(Run& run, Cache& cache, const std::vector<std::vector<std::int32_t>>& chunks,
            std::int64_t position, const ForwardOptions& options = {},
            const std::function<void(std::size_t)>& on_chunk = nullptr) {
  ForwardOptions silent = options;
  silent.logits = 0;
  for (std::size_t i = 0; i < chunks.size(); ++i) {
    if (on_chunk) on_chunk(i);
    cache.begin_probes();
    try {
      run.forward(cache, chunks[i], position, silent);
    } catch (...) {
      cache.end_probes();
      throw;
    }
    cache.end_probes();
  }
}

}  // namespace engine
