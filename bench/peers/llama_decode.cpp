// SPDX-License-Identifier: MIT
// llama.cpp beside us, one thread: flash attention over K and V as f16, q8_0 or q4_0, and f16 without
// flash attention. The prompt is computed with f16; the quantised caches get its rows quantised, which
// takes seconds instead of the many minutes of a prefill with quantised rows, and leaves the same bytes
// to read.
#include <ggml.h>
#include <llama.h>

#include <cstdio>
#include <cstring>
#include <stdexcept>

#include "../decode.hpp"

namespace {

using bench::NamedDecoder;
using Tokens = std::span<const std::int32_t>;

struct ModelDelete {
  void operator()(llama_model* model) const { llama_model_free(model); }
};
struct ContextDelete {
  void operator()(llama_context* context) const { llama_free(context); }
};
using Model = std::unique_ptr<llama_model, ModelDelete>;
using Context = std::unique_ptr<llama_context, ContextDelete>;

void feed(llama_context* context, Tokens tokens) {
  std::vector<llama_token> copy(tokens.begin(), tokens.end());
  for (std::size_t first = 0; first < copy.size(); first += 512) {
    const std::size_t n = std::min<std::size_t>(512, copy.size() - first);
    if (llama_decode(context,
                     llama_batch_get_one(copy.data() + first, static_cast<std::int32_t>(n))) != 0)
      throw std::runtime_error("llama_decode failed");
  }
}

// The state of a sequence whose rows are f16, with rows of `type`. It ends with the rows of all
// layers, keys first: type (int32), bytes of a row (uint64), rows. What does not look like this, or
// what llama.cpp then does not take, is an error.
std::vector<std::uint8_t> quantised(const std::vector<std::uint8_t>& state,
                                    const llama_model* model, std::size_t rows, ggml_type type) {
  const auto layers = static_cast<std::size_t>(llama_model_n_layer(model));
  const std::int64_t width =
      llama_model_n_embd(model) / llama_model_n_head(model) * llama_model_n_head_kv(model);
  const std::uint64_t from = ggml_row_size(GGML_TYPE_F16, width), to = ggml_row_size(type, width);
  const std::size_t header = 12, part = header + rows * from, tail = 2 * layers * part;
  if (state.size() < tail) throw std::runtime_error("llama.cpp: a state of another form");
  std::vector<std::uint8_t> out(state.begin(), state.end() - static_cast<std::ptrdiff_t>(tail));
  std::vector<float> plain(rows * static_cast<std::size_t>(width));
  for (const std::uint8_t* at = state.data() + state.size() - tail;
       at < state.data() + state.size(); at += part) {
    std::int32_t old_type;
    std::uint64_t old_size;
    std::memcpy(&old_type, at, 4);
    std::memcpy(&old_size, at + 4, 8);
    if (old_type != GGML_TYPE_F16 || old_size != from)
      throw std::runtime_error("llama.cpp: a state of another form");
    const std::int32_t new_type = type;
    const std::size_t start = out.size();
    out.resize(start + header + rows * to);
    std::memcpy(out.data() + start, &new_type, 4);
    std::memcpy(out.data() + start + 4, &to, 8);
    ggml_fp16_to_fp32_row(reinterpret_cast<const ggml_fp16_t*>(at + header), plain.data(),
                          static_cast<std::int64_t>(plain.size()));
    ggml_quantize_chunk(type, plain.data(), out.data() + start + header, 0,
                        static_cast<std::int64_t>(rows), width, nullptr);
  }
  return out;
}

class LlamaDecoder final : public bench::Decoder {
 public:
  LlamaDecoder(Context context, double bytes) : context_(std::move(context)), bytes_(bytes) {}
  void step(std::int32_t token) override {
    feed(context_.get(), Tokens(&token, 1));
    llama_get_logits_ith(context_.get(), -1);
  }
  double bytes() const override { return bytes_; }

 private:
  Context context_;
  double bytes_;
};

class Llama final : public bench::Peer {
 public:
  Llama(const std::string& path, std::int64_t most) : most_(most) {
    llama_log_set(
        [](ggml_log_level level, const char* text, void*) {
          if (level == GGML_LOG_LEVEL_ERROR) std::fputs(text, stderr);
        },
        nullptr);
    llama_backend_init();
    llama_model_params parameters = llama_model_default_params();
    parameters.n_gpu_layers = 0;
    model_.reset(llama_model_load_from_file(path.c_str(), parameters));
    if (!model_) throw std::runtime_error(path + ": llama.cpp cannot load it");
    prompt_ = make(GGML_TYPE_F16, true);
    plain_prompt_ = make(GGML_TYPE_F16, false);
  }

  std::vector<NamedDecoder> decoders(Tokens tokens) override {
    std::fprintf(stderr, "decode_bench: prefill of llama.cpp to %zu tokens\n", tokens.size());
    std::vector<std::uint8_t> state = extend(prompt_.get(), tokens);
    std::vector<NamedDecoder> out;
    const auto add = [&](const std::string& name, ggml_type type, bool flash,
                         const std::vector<std::uint8_t>& rows) {
      Context context = make(type, flash);
      if (llama_state_seq_set_data(context.get(), rows.data(), rows.size(), 0) == 0)
        throw std::runtime_error(name + " does not take the state");
      out.push_back({name, std::make_unique<LlamaDecoder>(std::move(context),
                                                          static_cast<double>(rows.size()))});
    };
    add("llama.cpp f16", GGML_TYPE_F16, true, state);
    for (const ggml_type type : {GGML_TYPE_Q8_0, GGML_TYPE_Q4_0})
      add(std::string("llama.cpp ") + ggml_type_name(type), type, true,
          quantised(state, model_.get(), tokens.size(), type));
    add("llama.cpp f16, no flash attention", GGML_TYPE_F16, false,
        extend(plain_prompt_.get(), tokens));
    held_ = tokens.size();
    return out;
  }

 private:
  // Feeds what is new; the state after it.
  std::vector<std::uint8_t> extend(llama_context* context, Tokens tokens) const {
    feed(context, tokens.subspan(held_));
    std::vector<std::uint8_t> state(llama_state_seq_get_size(context, 0));
    llama_state_seq_get_data(context, state.data(), state.size(), 0);
    return state;
  }
  Context make(ggml_type type, bool flash) const {
    llama_context_params parameters = llama_context_default_params();
    parameters.n_ctx = static_cast<std::uint32_t>((most_ + 255) / 256 * 256);
    parameters.n_batch = parameters.n_ubatch = 512;
    parameters.n_threads = parameters.n_threads_batch = 1;
    parameters.flash_attn_type =
        flash ? LLAMA_FLASH_ATTN_TYPE_ENABLED : LLAMA_FLASH_ATTN_TYPE_DISABLED;
    parameters.type_k = parameters.type_v = type;
    parameters.no_perf = true;
    Context context(llama_init_from_model(model_.get(), parameters));
    if (!context) throw std::runtime_error("llama.cpp: no context");
    return context;
  }

  std::int64_t most_;
  Model model_;
  Context prompt_, plain_prompt_;
  std::size_t held_ = 0;
};

}  // namespace

namespace bench {
std::unique_ptr<Peer> make_peer(const std::string& model, std::int64_t most_tokens) {
  return std::make_unique<Llama>(model, most_tokens);
}
}  // namespace bench
