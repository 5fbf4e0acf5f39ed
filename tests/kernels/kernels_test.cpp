// SPDX-License-Identifier: MIT
#include <gtest/gtest.h>

#include <lesskv/kernels/kernels.hpp>

#include <string>

namespace kernels_test {

TEST(Kernels, BaseIsAlwaysThereAndTheBestIsLast) {
  const auto tables = lesskv::kernel_tables();
  ASSERT_FALSE(tables.empty());
  EXPECT_EQ(std::string(tables.front()->name), "base");
  for (std::size_t i = 1; i < tables.size(); ++i) EXPECT_GT(tables[i]->lanes, tables[i - 1]->lanes);
}

TEST(Kernels, EnvironmentCapsTheChoice) {
  const char* cap = std::getenv("LESSKV_ISA");
  const lesskv::KernelTable* right = lesskv::kernel_tables().back();
  for (const auto* table : lesskv::kernel_tables())
    if (cap && std::string(table->name) == cap) right = table;
  EXPECT_EQ(&lesskv::kernels(), right);
}

}  // namespace kernels_test
