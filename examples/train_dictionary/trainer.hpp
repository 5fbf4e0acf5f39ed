// SPDX-License-Identifier: MIT
// NeuralDict (CSR, arXiv 2412.11741): one dictionary from many vectors.
//
//   L = L_MSE + beta L_div,  beta = clamp(0.1 L_MSE / L_div, 0, 1), no gradient through beta
//   L_MSE = mean |x - D r(x)|^2, r by matching pursuit, held constant in the gradient
//   L_div = |I - D^T D|_F^2 / N^2; as |D^T D|_F = |D D^T|_F this is (|D D^T|_F^2 - N) / N^2 for
//           unit atoms, so loss and gradient (4 / N^2) (D D^T D - D) cost N d^2, not N^2 d
//
// Start: k-means centroids, normalised. Adam on the gradient made tangent to the sphere, atoms
// brought back to unit norm after every step. Read in the paper: the losses, beta, unit norm, the
// start. Not published, chosen here by measurement (synthetic data, see the method page): Adam with
// rate 1e-2 falling linearly to 1e-3, batches of 2048; the mean over a batch where the paper writes
// a sum (beta then does not depend on the batch); atoms that hardly anybody uses are replaced by
// residuals of the worst-coded vectors (L_div alone does not keep two atoms from coinciding).
//
// Deterministic: batches are drawn by (seed, batch), so a training that was interrupted and resumed
// gives the same dictionary, bit by bit.
#pragma once

#include <cstdint>
#include <functional>
#include <lesskv/codec/sparse/pursuit.hpp>
#include <vector>

namespace training {

using lesskv::Index;

// Vectors to learn from, read one at a time.
struct Samples {
  int dim = 0;
  Index count = 0;
  std::function<void(Index, float*)> read;
};

struct TrainerOptions {
  Index atoms = 1024;
  int steps = 4;  // atoms per vector while training: what will be used later
  Index batch = 2048;
  int batches = 200;
  double rate_first = 1e-2, rate_last = 1e-3;
  double diversity = 0.1;  // the factor of beta
  int cluster_rounds = 8;
  Index cluster_rows = 32;     // per atom
  int revive_every = 16;       // batches; 0: never
  double revive_below = 0.05;  // of the mean use
  std::uint64_t seed = 1;
};

class Trainer {
 public:
  // Throws lesskv::Error if there are fewer vectors than atoms.
  Trainer(const TrainerOptions& options, Samples samples);

  // k-means. To be called once, before the first step.
  void start();
  // One batch; false when all are done.
  bool step();

  int done() const { return state_.batch; }
  // Mean |residual|^2 / mean |x|^2 over the last batches (forgetting 10 % a batch), and L_div of
  // the last one.
  double error() const { return state_.error; }
  double diversity() const { return diversity_; }
  // The same over vectors [first, first + count) of the samples, without training.
  double error_on(Index first, Index count) const;

  lesskv::Dictionary dictionary(lesskv::DType stored = lesskv::DType::f16) const;

  // What has to be kept to go on later.
  struct State {
    std::int32_t batch = 0;
    double error = 1;
    std::vector<float> atoms, first_moment, second_moment, use;
  };
  const State& state() const { return state_; }
  // Throws lesskv::Error if it is not of these options.
  void resume(State state);

 private:
  void load_batch(int batch, std::vector<float>& rows) const;
  void revive(const std::vector<float>& residual);
  void descend(const std::vector<float>& gradient);

  TrainerOptions options_;
  Samples samples_;
  State state_;
  double diversity_ = 0;
};

// For tests: L_div and its gradient by the identity.
double diversity_loss(const std::vector<float>& atoms, int dim, std::vector<float>* gradient);

}  // namespace training
