// SPDX-License-Identifier: MIT
// A model of the Llama architecture: its sizes and its weights, as GGUF metadata and tensors
// describe them.
//
// Weights stay in the mapped file in their stored form and are dequantised to f32 inside the matrix
// products. Nothing is copied at load but the norms, so loading takes milliseconds and the memory
// is the file's, shared between processes (SmolLM2-135M in Q4_1: 98 MB, where f32 would be 540 MB
// and take five times as long to read for every decoded token). A Model is constant after loading:
// any number of threads may run it, each with its own Run.
#pragma once

#include <string>
#include <vector>

#include "gguf.hpp"
#include "panels.hpp"

namespace engine {

struct Config {
  Index layers = 0, width = 0, feed_forward = 0;
  Index query_heads = 0, kv_heads = 0, head_dim = 0;
  Index vocabulary = 0, context = 0;
  float norm_epsilon = 0;
};

struct Layer {
  Weights query, key, value, output;  // attention
  Weights gate, up, down;             // feed forward
  std::vector<float> attention_norm, feed_forward_norm;
};

class Model {
 public:
  // Throws Error naming the architecture, the metadata key or the tensor that does not fit.
  explicit Model(Gguf file);
  // The same from a file, which the error names as well.
  static Model open(const std::string& path);

  const Gguf& file() const { return file_; }
  const Config& config() const { return config_; }
  const std::vector<Layer>& layers() const { return layers_; }
  const Weights& embedding() const { return embedding_; }
  const Weights& output() const {
    return output_;
  }  // the embedding if the file has no output matrix (tied)
  const std::vector<float>& output_norm() const { return output_norm_; }
  // Radians per position of each channel pair: theta^(-2i / head_dim), divided by the factors of
  // the file if it has some.
  const std::vector<double>& frequencies() const { return frequencies_; }

 private:
  void read_config();
  void read_frequencies();
  Weights matrix(const std::string& name, Index rows, Index columns) const;
  std::vector<float> vector(const std::string& name, Index length) const;

  Gguf file_;
  Config config_;
  std::vector<Layer> layers_;
  Weights embedding_, output_;
  std::vector<float> output_norm_;
  std::vector<double> frequencies_;
};

}  // namespace engine
