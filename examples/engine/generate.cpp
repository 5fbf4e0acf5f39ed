// SPDX-License-Identifier: MIT
// Text generation with a compressed cache:
//   generate --chat --prompt "Why is the sky blue?" --policy "keep(tokens=256)+streamingllm"
// with --drop-hidden 0.375 a shorter prefill of long prompts (UNComp's hidden states), and with
// --bench the speed of prefill and decoding at two depths.
#include <CLI/CLI.hpp>
#include <chrono>
#include <cstdio>
#include <fstream>
#include <iterator>
#include <lesskv/any.hpp>

#include "replay.hpp"
#include "run.hpp"
#include "sampler.hpp"
#include "tokenizer.hpp"

namespace {

using namespace engine;

struct Arguments {
  std::string model, prompt, prompt_file, policy = "exact";
  Index max_tokens = 256, depth = 4096;
  bool chat = false, bench = false;
  DropHidden drop{.last_share = 1};  // below 1: prefill drops hidden states
  SamplerOptions sampler;
};

class Timer {
 public:
  double seconds() const {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
  }

 private:
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

// Where get_model.sh puts the default model.
std::string default_model() {
  const auto variable = [](const char* name) {
    const char* const value = std::getenv(name);
    return std::string(value ? value : "");
  };
  std::string folder = variable("LESSKV_CACHE");
  if (folder.empty()) {
    folder = variable("XDG_CACHE_HOME");
    if (folder.empty()) folder = variable("HOME") + "/.cache";
    folder += "/lesskv";
  }
  return folder + "/SmolLM2-135M-Instruct.Q4_1.gguf";
}

double per_second(Index tokens, double seconds) {
  return seconds > 0 ? static_cast<double>(tokens) / seconds : 0;
}

void generate(const Arguments& arguments, const Model& model) {
  const Tokenizer tokenizer(model.file());
  std::string prompt = arguments.prompt;
  if (!arguments.prompt_file.empty()) {
    std::ifstream file(arguments.prompt_file, std::ios::binary);
    if (!file) throw Error(arguments.prompt_file + ": cannot be opened");
    prompt.assign(std::istreambuf_iterator<char>(file), {});
  }
  if (arguments.chat)
    prompt = "<|im_start|>user\n" + prompt + "<|im_end|>\n<|im_start|>assistant\n";
  Encoding encoding = tokenizer.encode(prompt);
  if (encoding.dropped_bytes > 0)
    std::fprintf(stderr, "note: %zu bytes of the prompt have no token and were left out\n",
                 encoding.dropped_bytes);
  if (tokenizer.adds_begin()) encoding.ids.insert(encoding.ids.begin(), tokenizer.begin_id());
  if (encoding.ids.empty()) throw Error("prompt: it has no tokens");

  const lesskv::Shape shape = cache_shape(model);
  lesskv::AnyCache cache = lesskv::make_cache(arguments.policy, shape);
  Run run(model);
  Sampler sampler(arguments.sampler);
  auto position = static_cast<std::int64_t>(encoding.ids.size());

  const Timer prefill;
  auto logits = arguments.drop.last_share < 1 ? run.prefill(cache, encoding.ids, 0, arguments.drop)
                                              : run.forward(cache, encoding.ids, 0);
  const std::vector<float> behind_prompt(logits.begin(), logits.end());
  if (cache.needs_probes()) replay(run, cache, replay_chunks(tokenizer, encoding.ids), position);
  logits = behind_prompt;
  cache.compress();
  const double prefill_seconds = prefill.seconds();

  const Timer decode;
  Index generated = 0;
  while (generated < arguments.max_tokens) {
    const std::int32_t token = sampler.next(logits);
    if (token == tokenizer.end_id()) break;
    const std::string text = tokenizer.decode(token);
    std::fwrite(text.data(), 1, text.size(), stdout);
    std::fflush(stdout);
    if (++generated == arguments.max_tokens) break;
    logits = run.forward(cache, std::span(&token, 1), position++);
    cache.compress();
  }
  const double decode_seconds = decode.seconds();

  const auto exact_bytes = static_cast<double>(position) * shape.heads() * 2 * shape.head_dim * 2;
  const auto bytes = static_cast<double>(cache.bytes());
  std::fprintf(stderr,
               "\n\nprompt: %td tokens, %.1f tokens/s   generated: %td tokens, %.1f tokens/s\n"
               "cache: %.2f MB for %lld tokens (exact f16: %.2f MB), peak %.2f MB\n",
               static_cast<Index>(encoding.ids.size()),
               per_second(static_cast<Index>(encoding.ids.size()), prefill_seconds), generated,
               per_second(generated, decode_seconds), bytes / 1e6, static_cast<long long>(position),
               exact_bytes / 1e6, static_cast<double>(cache.stats().peak_bytes) / 1e6);
}

// Tokens without meaning, spread over the vocabulary: the time does not depend on what they say.
std::vector<std::int32_t> arbitrary_tokens(Index count, Index vocabulary) {
  std::vector<std::int32_t> tokens;
  std::mt19937 random(1);
  for (Index i = 0; i < count; ++i)
    tokens.push_back(
        static_cast<std::int32_t>(random() % static_cast<std::mt19937::result_type>(vocabulary)));
  return tokens;
}

void bench(const Arguments& arguments, const Model& model) {
  constexpr Index prompt_tokens = 512, decoded_tokens = 64;
  const auto prompt = arbitrary_tokens(prompt_tokens, model.config().vocabulary);
  Run run(model);
  std::printf("policy %s, kernels %s\n", arguments.policy.c_str(), lesskv::kernels().name);
  std::printf("%8s %18s %18s %14s\n", "depth", "prefill tokens/s", "decode tokens/s", "cache MB");
  // The first round warms up: file pages, work space, clock.
  for (const bool shown : {false, true})
    for (const Index depth : {Index{0}, arguments.depth}) {
      if (!shown && depth > 0) continue;
      lesskv::AnyCache cache = lesskv::make_cache(arguments.policy, cache_shape(model));
      std::int64_t position = 0;
      for (Index left = depth; left > 0;) {
        const Index n = std::min(left, prompt_tokens);
        run.forward(cache, std::span(prompt).first(static_cast<std::size_t>(n)), position,
                    {.logits = 0});
        cache.compress();
        position += n;
        left -= n;
      }
      lesskv::AnyCache fresh = cache.fork();
      const Timer prefill;
      run.forward(fresh, prompt, position);
      fresh.compress();
      const double prefill_seconds = prefill.seconds();

      const Timer decode;
      for (Index i = 0; i < decoded_tokens; ++i) {
        run.forward(cache, std::span(prompt).subspan(static_cast<std::size_t>(i), 1), position++);
        cache.compress();
      }
      if (!shown) continue;
      std::printf("%8td %18.1f %18.1f %14.2f\n", depth, per_second(prompt_tokens, prefill_seconds),
                  per_second(decoded_tokens, decode.seconds()),
                  static_cast<double>(cache.bytes()) / 1e6);
    }
}

}  // namespace

int main(int argc, char** argv) {
  Arguments arguments;
  arguments.model = default_model();
  CLI::App app("Generates text with a Llama-architecture model whose KV cache lesskv keeps");
  app.add_option("--model", arguments.model, "GGUF file")->capture_default_str();
  auto* const prompt =
      app.add_option("--prompt", arguments.prompt, "Text to continue; <|...|> tokens are parsed");
  app.add_option("--prompt-file", arguments.prompt_file, "The same from a file")->excludes(prompt);
  app.add_flag("--chat", arguments.chat, "The prompt is a question to an assistant (ChatML)");
  app.add_option("--policy", arguments.policy,
                 "What stays in the cache, e.g. \"keep(fraction=0.25,sinks=16)+lagkv\"")
      ->capture_default_str();
  app.add_option("--drop-hidden", arguments.drop.last_share,
                 "Prefill drops tokens between groups of layers; this share reaches the last one "
                 "(UNComp: 0.375)")
      ->check(CLI::Range(0.0, 1.0));
  app.add_option("--layer-groups", arguments.drop.groups,
                 "Layers of each group for --drop-hidden, e.g. 5,9,2,3,7,2,2 (SmolLM2-135M)")
      ->delimiter(',');
  app.add_option("--max-tokens", arguments.max_tokens)
      ->capture_default_str()
      ->check(CLI::PositiveNumber);
  app.add_option("--temperature", arguments.sampler.temperature, "0: always the most likely token")
      ->capture_default_str();
  app.add_option("--top-p", arguments.sampler.top_p)->capture_default_str();
  app.add_option("--seed", arguments.sampler.seed)->capture_default_str();
  app.add_flag("--bench", arguments.bench, "Only time prefill of 512 tokens and decoding of 64");
  app.add_option("--depth", arguments.depth, "Second depth of --bench")
      ->capture_default_str()
      ->check(CLI::PositiveNumber);
  CLI11_PARSE(app, argc, argv);
  try {
    const Model model = Model::open(arguments.model);
    if (arguments.bench)
      bench(arguments, model);
    else
      generate(arguments, model);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "generate: %s\n", error.what());
    return 1;
  }
}
