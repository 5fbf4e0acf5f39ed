// SPDX-License-Identifier: MIT
// All dictionaries of a model: groups the layers, trains a dictionary per group, side and chunk,
// fits coefficient levels. Goes on where it was stopped.
#pragma once

#include <functional>
#include <lesskv/codec/sparse/dictionary_set.hpp>
#include <string>
#include <vector>

#include "collect.hpp"
#include "trainer.hpp"

namespace training {

struct SetOptions {
  TrainerOptions trainer;  // atoms 0: as many as max_bytes leaves room for
  int key_groups = 4, value_groups = 4;
  int key_chunks = 1, value_chunks = 1;
  std::size_t max_bytes = std::size_t{1} << 20;
  bool keys_before_rope = true;
  std::vector<double> rope_frequencies;  // of the model; written into the file
  bool means = true;
  int stages = 15, levels = 64;
  int threads = 1;
  int parts = 8;       // the state is saved after each part of the training
  std::string state;   // file; empty: none
  std::string source;  // names model, text and options: a state of another source is not used
};

// What is reported while training: after k-means and after each part.
struct Progress {
  std::function<void(const std::string& stage, long total)> start;
  std::function<void()> step;
  // Error of every dictionary so far (|residual|^2 / |x|^2), keys first.
  std::function<void(int batches, const std::vector<double>& errors)> errors;
};

struct TrainedSet {
  lesskv::DictionarySet set;
  std::vector<int> key_groups, value_groups;
  bool resumed = false;
};

TrainedSet train_set(const Collected& vectors, const SetOptions& options, const Progress& progress);

// Atoms of each dictionary, so that everything together fits into max_bytes.
Index atoms_that_fit(const Collected& vectors, const SetOptions& options);

}  // namespace training
