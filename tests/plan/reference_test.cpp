// SPDX-License-Identifier: MIT
// The program keeps the rows that the methods' own code keeps of the same tensors.
#include <cmath>

#include "support.hpp"

namespace reference_test {

using namespace support;
using plan::Result;

Result run(const plan::Paths& paths, const std::string& policy, float scale = 0) {
  return plan::run(plan::read_tensors(paths), plan::parse_policy(policy), scale);
}

std::string lagkv(Index sinks, Index lag, const std::string& fraction, const std::string& weight) {
  return "keep(fraction=" + fraction + ",sinks=" + std::to_string(sinks) +
         ")+lagkv(lag=" + std::to_string(lag) + (weight.empty() ? "" : ",value_weight=" + weight) +
         ")";
}
std::string lagkv_file(int layer, Index sinks, Index lag, const std::string& fraction,
                       const std::string& weight) {
  return "lagkv/kept_" + reference::layer_name(layer) + "_S" + std::to_string(sinks) + "_L" +
         std::to_string(lag) + "_r" + fraction + (weight.empty() ? "" : "_w" + weight) + ".npy";
}

TEST(Reference, LagKVKeepsWhatTheOfficialCodeKeeps) {
  for (const int layer : {0, 15, 29}) {
    const plan::Tensors tensors = plan::read_tensors(reference_paths(layer, false));
    for (const auto& [sinks, lag] : {std::pair<Index, Index>{4, 128}, {16, 128}, {16, 256}})
      for (const char* fraction : {"0.5", "0.25", "0.1"})
        for (const char* weight : {"", "0.5", "0"}) {
          const std::string file = lagkv_file(layer, sinks, lag, fraction, weight);
          if (!fs::exists(reference::path(file))) continue;
          SCOPED_TRACE(file);
          expect_rows(plan::run(tensors, parse_spec(lagkv(sinks, lag, fraction, weight))), 0,
                      reference::kept(file));
        }
  }
  EXPECT_TRUE(fs::exists(reference::path(lagkv_file(15, 16, 128, "0.25", "0"))));
}

void expect_kvpress(const std::string& name, const std::string& method, int layer,
                    const std::string& removed, const std::string& pins = "") {
  const std::string file =
      "kvpress/kept_" + name + "_" + reference::layer_name(layer) + "_r" + removed + ".npy";
  SCOPED_TRACE(file);
  const auto want = reference::kept(file);
  expect_rows(run(reference_paths(layer, true),
                  "keep(tokens=" + std::to_string(want.shape[1]) + pins + ")+" + method),
              0, want);
}

TEST(Reference, KvpressMethodsKeepWhatKvpressKeeps) {
  for (const int layer : {0, 15, 29}) {
    expect_kvpress("snapkv_w64k5", "snapkv", layer, "0.8");
    expect_kvpress("tova", "tova", layer, "0.8");
    expect_kvpress("keydiff", "keydiff", layer, "0.8");
    expect_kvpress("knorm", "keynorm", layer, "0.8");
  }
  for (const char* removed : {"0.5", "0.8"}) {
    expect_kvpress("snapkv_w32k7", "snapkv(window=32,pool=7)", 15, removed);
    expect_kvpress("observed", "h2o(age_normalised=true)", 15, removed);
  }
  expect_kvpress("h2o", "h2o", 15, "0.5", ",recent=256");
}

// All layers in one call, from folders; a layer is judged as if it were alone.
TEST(Folders, GiveEveryLayerItsOwnFile) {
  const Folder folder;
  plan::Paths paths{folder / "k", folder / "v", folder / "q", ""};
  const std::vector<int> layers{0, 15, 29};
  for (std::size_t i = 0; i < 3; ++i) {
    const std::string name = reference::layer_name(layers[i]), to = "/l0" + std::to_string(i);
    for (const char* side : {"k", "v"}) {
      fs::create_directories(folder / side);
      fs::copy_file(input(side + ("_" + name)), (folder / side) + to + ".npy");
    }
    // The newest 64 queries of every layer.
    const Index stored = layers[i] == 15 ? 1024 : 64;
    const std::vector<float> q = floats_of(input(layers[i] == 15 ? "q_l15" : "qwin64_" + name));
    std::vector<float> newest;
    for (Index h = 0; h < 9; ++h) {
      const auto from = q.begin() + ((h + 1) * stored - 64) * 64;
      newest.insert(newest.end(), from, from + 64 * 64);
    }
    write_bytes((folder / "q") + to + ".npy", npy_bytes("<f2", {9, 64, 64}, f16_bytes(newest)));
  }
  write_bytes((folder / "k") + "/notes.txt", "other files are left alone");

  const Result lag = run(paths, lagkv(16, 128, "0.25", ""));
  const Result snap = run(paths, "keep(tokens=204)+snapkv");
  ASSERT_EQ(lag.heads.size(), 9u);
  for (int i = 0; i < 3; ++i) {
    const int layer = layers[static_cast<std::size_t>(i)];
    SCOPED_TRACE(layer);
    expect_rows(lag, 3 * i, reference::kept(lagkv_file(layer, 16, 128, "0.25", "")));
    expect_rows(
        snap, 3 * i,
        reference::kept("kvpress/kept_snapkv_w64k5_" + reference::layer_name(layer) + "_r0.8.npy"));
  }
  EXPECT_EQ(snap.heads[5].layer, 1);
  EXPECT_EQ(snap.heads[5].head, 2);

  // What is written is what was planned.
  const Outcome outcome =
      call({"--keys", paths.keys, "--values", paths.values, "--queries", paths.queries, "--policy",
            "keep(tokens=204)+snapkv", "--out", folder / "made/of/parts"});
  EXPECT_EQ(outcome.code, 0) << outcome.error;
  std::size_t files = 0;
  for ([[maybe_unused]] const auto& entry : fs::directory_iterator(folder / "made/of/parts"))
    ++files;
  EXPECT_EQ(files, 9u);
  for (const plan::HeadResult& head : snap.heads) {
    const auto file = load_npy<std::int32_t>((folder / "made/of/parts") + "/kept_" +
                                             reference::layer_name(head.layer) + "_h" +
                                             std::to_string(head.head) + ".npy");
    EXPECT_EQ(file.shape, std::vector<std::size_t>{204});
    EXPECT_EQ(file.data, head.kept);
    EXPECT_TRUE(std::is_sorted(file.data.begin(), file.data.end()));
  }
}

TEST(Types, F32AndF16FilesOfTheSameNumbersGiveTheSameRows) {
  const Folder folder;
  plan::Paths paths = reference_paths(15, true);
  for (std::string* path : {&paths.keys, &paths.values, &paths.queries}) {
    const auto file = load_npy<float>(*path);
    *path = folder / fs::path(*path).filename().string();
    write_f32(*path, {static_cast<Index>(file.shape[0]), 1024, 64}, file.data);
  }
  expect_rows(run(paths, lagkv(16, 128, "0.25", "")), 0,
              reference::kept(lagkv_file(15, 16, 128, "0.25", "")));
  expect_rows(run(paths, "keep(tokens=512)+snapkv"), 0,
              reference::kept("kvpress/kept_snapkv_w64k5_l15_r0.5.npy"));
}

// Causal softmax of the reference queries, in double: [query_head, query, token].
std::vector<float> reference_attention(Index w) {
  const std::vector<float> q = floats_of(input("q_l15")), k = floats_of(input("k_l15"));
  std::vector<float> out(static_cast<std::size_t>(9 * w * 1024), 0.f);
  for (Index h = 0; h < 9; ++h)
    for (Index i = 0; i < w; ++i) {
      const Index seen = 1024 - w + i + 1;
      const Eigen::Map<const Eigen::RowVectorXf> query(&q[std::size_t((h * 1024 + seen - 1) * 64)],
                                                       64);
      const Eigen::Map<const Matrix> keys(&k[std::size_t(h / 3 * 1024 * 64)], seen, 64);
      Eigen::RowVectorXd e = (keys.cast<double>() * query.cast<double>().transpose()) / 8;
      e = (e.array() - e.maxCoeff()).exp();
      Eigen::Map<Eigen::RowVectorXf>(&out[std::size_t((h * w + i) * 1024)], seen) =
          (e / e.sum()).cast<float>();
    }
  return out;
}

TEST(Attention, InsteadOfQueriesGivesTheSameRows) {
  const Folder folder;
  plan::Paths paths = reference_paths(15, false);
  paths.attention = folder / "window.npy";
  write_f32(paths.attention, {9, 64, 1024}, reference_attention(64));
  expect_rows(run(paths, "keep(tokens=204)+snapkv"), 0,
              reference::kept("kvpress/kept_snapkv_w64k5_l15_r0.8.npy"));
  expect_rows(run(paths, "keep(tokens=204)+tova"), 0,
              reference::kept("kvpress/kept_tova_l15_r0.8.npy"));
  paths.attention = folder / "all.npy";
  write_f32(paths.attention, {9, 1024, 1024}, reference_attention(1024));
  expect_rows(run(paths, "keep(tokens=204)+h2o(age_normalised=true)"), 0,
              reference::kept("kvpress/kept_observed_l15_r0.8.npy"));
}

TEST(Scale, BelongsToTheLogits) {
  const Folder folder;
  plan::Paths paths = reference_paths(15, true);
  std::vector<float> q = floats_of(paths.queries);
  for (float& x : q) x *= 2;
  paths.queries = folder / "q.npy";
  write_bytes(paths.queries, npy_bytes("<f2", {9, 1024, 64}, f16_bytes(q)));
  const auto want = reference::kept("kvpress/kept_snapkv_w64k5_l15_r0.5.npy");
  expect_rows(run(paths, "keep(tokens=512)+snapkv", 1.f / 16), 0, want);
  EXPECT_NE(run(paths, "keep(tokens=512)+snapkv").heads[0].kept, reference::row(want, 0));
}

}  // namespace reference_test
