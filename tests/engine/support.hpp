// SPDX-License-Identifier: MIT
// The model of the engine's tests: the file named by LESSKV_TEST_MODEL (examples/get_model.sh
// prints its path). Tests that need it are skipped, with the reason, when it is not there.
#pragma once

#include <gtest/gtest.h>

#include <cstdlib>
#include <engine/model.hpp>
#include <engine/tokenizer.hpp>
#include <fstream>
#include <string>

#include "../support/npy.hpp"

namespace engine_test {

inline std::string data(const std::string& name) {
  return std::string(LESSKV_TEST_DATA) + "/model/" + name;
}

template <class T>
support::Npy<T> reference(const std::string& name) {
  return support::load_npy<T>(data(name + ".npy"));
}

inline std::string model_path() {
  const char* const path = std::getenv("LESSKV_TEST_MODEL");
  return path && std::ifstream(path).good() ? path : "";
}

// Loaded once for the whole program.
inline const engine::Model& model() {
  static const engine::Model loaded = engine::Model::open(model_path());
  return loaded;
}

class ModelTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (model_path().empty())
      GTEST_SKIP() << "LESSKV_TEST_MODEL does not name a file; examples/get_model.sh prints the "
                      "path of the default model";
  }
};

}  // namespace engine_test
