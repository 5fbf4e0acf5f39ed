// SPDX-License-Identifier: MIT
// What a policy of the command line stands for.
#include <gtest/gtest.h>

#include <compare/policy.hpp>

namespace policy_test {

using compare::Policy;

TEST(Policy, DefaultDictionary) {
  EXPECT_EQ(Policy::with_dictionary("csr(atoms=3,dictionary=default)", "/a/b.lesskvd"),
            "csr(atoms=3,dictionary=/a/b.lesskvd)");
  EXPECT_EQ(Policy::with_dictionary(
                "keys(csr(dictionary=default,atoms=3))+values(csr(dictionary=x))", "/d"),
            "keys(csr(dictionary=/d,atoms=3))+values(csr(dictionary=x))");
  EXPECT_EQ(Policy::with_dictionary("csr(dictionary=defaults)", "/d"), "csr(dictionary=defaults)");
  EXPECT_EQ(Policy::with_dictionary("csr(dictionary=default", "/default"),
            "csr(dictionary=/default");
  EXPECT_EQ(Policy::with_dictionary("snapkv", ""), "snapkv");
  try {
    Policy("csr(dictionary=default)");
    FAIL() << "there is none";
  } catch (const lesskv::Error& error) {
    EXPECT_NE(std::string(error.what()).find("CSR::dictionary"), std::string::npos);
  }
  for (const std::string& spec : compare::dictionary_policies())
    EXPECT_NE(Policy::with_dictionary(spec, "/d"), spec);
}

TEST(Policy, KnowsWhereTheScoresOfAReplayAreAllThatSaysWhichRowsStay) {
  for (const char* const spec : {"kvzip", "keep(sinks=4)+kvzip+globalcut+lm", "replay_8x"})
    EXPECT_TRUE(Policy(spec).by_kvzip()) << spec;
  for (const char* const spec : {"h2o+globalcut(by=kvzip)", "maxrank(kvzip,h2o)", "h2o"})
    EXPECT_FALSE(Policy(spec).by_kvzip()) << spec;
  EXPECT_TRUE(Policy("maxrank(kvzip,h2o)").needs_probes());
  EXPECT_TRUE(Policy("h2o+globalcut(by=kvzip)").needs_probes());
}

}  // namespace policy_test
