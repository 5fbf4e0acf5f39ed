// SPDX-License-Identifier: MIT
// CSR by name, and codecs for each side.
#include <lesskv/any.hpp>

#include "csr_support.hpp"

namespace csr_spec_test {

using namespace csr;

TEST(CSR, TextForm) {
  const auto all = tensors(shape, 300, 8);
  const File file(example());
  const std::string csr =
      "csr(atoms=3,format=pairs,pursuit=orthogonal,dictionary=" + file.path + ")";
  const auto same = [&](const std::string& spec, auto&& want) {
    AnyCache cache = make_cache(spec, shape);
    feed(cache, all, 0, 300);
    feed(want, all, 0, 300);
    cache.compress();
    want.compress();
    EXPECT_EQ(cache.keys(1, 1), want.keys(1, 1)) << spec;
    EXPECT_EQ(cache.values(0, 1), want.values(0, 1)) << spec;
  };
  const CSR typed{.atoms = 3,
                  .format = SparseCode::pairs,
                  .pursuit = PursuitMethod::orthogonal,
                  .dictionary = file.path};
  same(csr, KVCache(shape, Keep{.sinks = 4}, typed));
  same("keep(fraction=0.5,sinks=2)+snapkv(window=16)+" + csr,
       KVCache(shape, Keep{.fraction = 0.5, .sinks = 2}, SnapKV{.window = 16}, typed));
  same("keys(" + csr + ")+values(lm(bits=2))",
       KVCache(shape, Keep{.sinks = 4}, Keys{typed}, Values{LloydMax{.bits = 2}}));
  same("values(" + csr + ")", KVCache(shape, Keep{.sinks = 4}, Values{typed}));
  EXPECT_EQ(parse_spec("keys(lm(bits=2))+values(int)").to_string(),
            "keep(sinks=4)+keys(lm(bits=2))+values(int)");
  bool listed = false;
  for (const MethodInfo& method : list_methods())
    if (method.name == "csr") listed = method.role == "codec";
  EXPECT_TRUE(listed);
  const auto error = [&](const std::string& spec) {
    return message_of([&] { make_cache(spec, shape); });
  };
  expect_says(error("keys(snapkv)"), "unknown codec in keys 'snapkv'");
  expect_says(error("keys(lm(bits=2),lm)"), "keys takes one codec");
  expect_says(error("keys"), "keys takes one codec");
  expect_says(error("keys(lm)+keys(int)"), "two policies say how keys are stored");
  expect_says(error("keys(lm)+int"), "two policies say how rows are stored");
  expect_says(error("csr(format=huffman,dictionary=" + file.path + ")"), "is none of pairs");
  expect_says(error("csr"), "CSR::dictionary is missing");
  expect_says(error("keys(csr)"), "CSR::dictionary is missing");
  expect_says(error("csr(dictionary=/nowhere)"), "CSR::dictionary: /nowhere: ");
}

}  // namespace csr_spec_test
