// SPDX-License-Identifier: MIT
// Progress for a program that draws bars (examples/progress.py): one line a step on a file
// descriptor,
//   stage <tab> done <tab> total
// Without a descriptor nothing is written.
#pragma once

#include <unistd.h>

#include <mutex>
#include <string>

namespace compare {

class Progress {
 public:
  explicit Progress(int descriptor) : descriptor_(descriptor) {}

  // Starts a stage of `total` steps; the one before is over.
  void start(const std::string& stage, long total) {
    const std::lock_guard lock(mutex_);
    stage_ = stage;
    done_ = 0;
    total_ = total;
    write_line();
  }
  // From any thread.
  void step(long steps = 1) {
    const std::lock_guard lock(mutex_);
    done_ += steps;
    write_line();
  }

 private:
  void write_line() {
    if (descriptor_ < 0) return;
    const std::string line =
        stage_ + '\t' + std::to_string(done_) + '\t' + std::to_string(total_) + '\n';
    // Nobody reads any more: bars are a convenience, the comparison goes on.
    if (::write(descriptor_, line.data(), line.size()) < 0) descriptor_ = -1;
  }

  int descriptor_;
  std::mutex mutex_;
  std::string stage_;
  long done_ = 0, total_ = 0;
};

}  // namespace compare
