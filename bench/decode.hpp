// SPDX-License-Identifier: MIT
// What decode_bench.cpp times: something that decodes a model one token at a time.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

namespace bench {

class Decoder {
 public:
  virtual ~Decoder() = default;
  virtual void step(std::int32_t token) = 0;
  virtual double bytes() const = 0;  // of its cache
  // Within the steps so far: seconds that compress() took, all and at most.
  struct Compress {
    double all = 0, most = 0;
  };
  virtual Compress compress() const { return {}; }
};

struct NamedDecoder {
  std::string name;
  std::unique_ptr<Decoder> decoder;
};

// Another engine on the same model.
class Peer {
 public:
  virtual ~Peer() = default;
  // Decoders that hold all these tokens; they continue those of the call before.
  virtual std::vector<NamedDecoder> decoders(std::span<const std::int32_t> tokens) = 0;
};

// Null where none is built in (no_peer.cpp; bench/peers/llama_decode.cpp). `most_tokens`: that it
// will ever hold.
std::unique_ptr<Peer> make_peer(const std::string& model, std::int64_t most_tokens);

}  // namespace bench
