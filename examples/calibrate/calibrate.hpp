// SPDX-License-Identifier: MIT
// Runs a model over texts and measures the entropy of every head, in the reference form: all
// queries, keys and values of a window, two exact passes.
#pragma once

#include <compare/progress.hpp>
#include <lesskv/budget/calibration.hpp>
#include <string>
#include <vector>

namespace calibrate {

using lesskv::Index;

struct Options {
  std::string model;
  std::vector<std::string> texts;  // UTF-8, or token ids (.i32)
  Index context = 4096;            // tokens of a window
  Index windows = 1;               // of every text, one after the other
  Index truncation = 0;            // k; 0: a quarter of the channels
  double kept = 0;  // share of rows for which the table of shares is made, by replay; 0: by entropy
  int progress = -1;  // file descriptor
};

struct Result {
  lesskv::Calibration file;
  std::vector<double> moments;  // [layer][query head]: what the streaming form gives
};

// Throws std::exception naming the file or the option that is wrong.
Result run(const Options& options);

// Layer by layer, the groups of layers, and how far the streaming form is from the reference form.
std::string summary(const Result& result);

}  // namespace calibrate
