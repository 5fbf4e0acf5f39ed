// SPDX-License-Identifier: MIT
// The trainer against losses written out, a planted dictionary, and itself after an interruption;
// the grouping of layers against its definition.
#include <gtest/gtest.h>

#include <cmath>
#include <cstdio>
#include <fstream>
#include <lesskv/codec/sparse/codec.hpp>
#include <random>
#include <train_dictionary/grouping.hpp>
#include <train_dictionary/training.hpp>

namespace trainer_test {

using namespace training;
using lesskv::detail::uz;

std::vector<float> unit_rows(Index count, int dim, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> out(uz(count * dim));
  for (Index i = 0; i < count; ++i) {
    float square = 0;
    for (int c = 0; c < dim; ++c) {
      out[uz(i * dim + c)] = normal(random);
      square += out[uz(i * dim + c)] * out[uz(i * dim + c)];
    }
    for (int c = 0; c < dim; ++c) out[uz(i * dim + c)] /= std::sqrt(square);
  }
  return out;
}

// |I - D^T D|^2 / N^2, N x N entries.
double slow_diversity(const std::vector<float>& atoms, int dim) {
  const Index n = static_cast<Index>(atoms.size()) / dim;
  double out = 0;
  for (Index i = 0; i < n; ++i)
    for (Index j = 0; j < n; ++j) {
      double product = 0;
      for (int c = 0; c < dim; ++c)
        product += double(atoms[uz(i * dim + c)]) * double(atoms[uz(j * dim + c)]);
      out += std::pow((i == j ? 1.0 : 0.0) - product, 2);
    }
  return out / double(n * n);
}

TEST(Trainer, DiversityByTheIdentity) {
  std::vector<float> atoms = unit_rows(40, 12, 1), gradient;
  EXPECT_NEAR(diversity_loss(atoms, 12, &gradient), slow_diversity(atoms, 12), 1e-6);
  // The gradient of the full loss, off the sphere too: diagonal terms count there, so compare its
  // tangent part by differences along the sphere.
  for (const Index i : {Index{3}, Index{25}}) {
    std::vector<double> direction(12);
    std::mt19937 random(static_cast<unsigned>(i));
    std::normal_distribution<double> normal;
    double along = 0, slope = 0;
    for (double& x : direction) x = normal(random);
    for (std::size_t c = 0; c < 12; ++c) along += direction[c] * double(atoms[uz(i * 12) + c]);
    for (std::size_t c = 0; c < 12; ++c) direction[c] -= along * double(atoms[uz(i * 12) + c]);
    for (std::size_t c = 0; c < 12; ++c) slope += direction[c] * double(gradient[uz(i * 12) + c]);
    const auto moved = [&](double step) {
      std::vector<float> other = atoms;
      double square = 0;
      for (std::size_t c = 0; c < 12; ++c) {
        const double x = double(atoms[uz(i * 12) + c]) + step * direction[c];
        square += x * x;
      }
      for (std::size_t c = 0; c < 12; ++c)
        other[uz(i * 12) + c] = static_cast<float>(
            (double(atoms[uz(i * 12) + c]) + step * direction[c]) / std::sqrt(square));
      return slow_diversity(other, 12);
    };
    EXPECT_NEAR((moved(5e-3) - moved(-5e-3)) / 1e-2, slope, 1e-3 * std::abs(slope) + 1e-6);
  }
}

// Sums of two atoms of a planted dictionary.
struct Planted {
  int dim = 16;
  std::vector<float> atoms, rows;
  explicit Planted(Index count, Index n) : atoms(unit_rows(count, 16, 2)), rows(uz(n * 16)) {
    std::mt19937 random(3);
    std::uniform_real_distribution<float> size(0.5f, 2.f);
    for (Index i = 0; i < n; ++i)
      for (int k = 0; k < 2; ++k) {
        const Index atom = static_cast<Index>(random() % static_cast<unsigned>(count));
        const float c = random() % 2 ? size(random) : -size(random);
        for (int d = 0; d < dim; ++d) rows[uz(i * 16 + d)] += c * atoms[uz(atom * 16 + d)];
      }
  }
  Samples samples() const {
    return {dim, static_cast<Index>(rows.size()) / dim,
            [this](Index i, float* out) { std::copy_n(rows.data() + i * dim, dim, out); }};
  }
};

TrainerOptions small() {
  TrainerOptions options;
  options.atoms = 24;
  options.steps = 2;
  options.batch = 256;
  options.batches = 200;
  return options;
}

TEST(Trainer, FindsAPlantedDictionary) {
  const Planted planted(20, 4000);
  Trainer trainer(small(), planted.samples());
  trainer.start();
  const double before = trainer.error_on(0, 4000);
  while (trainer.step()) {
  }
  const double after = trainer.error_on(0, 4000);
  EXPECT_GT(before, 0.1);
  EXPECT_LT(after, 0.5 * before);
  // Most planted atoms are there, up to their sign.
  const lesskv::Dictionary found = trainer.dictionary(lesskv::DType::f32);
  std::vector<float> atom(16);
  int there = 0;
  for (Index p = 0; p < 20; ++p) {
    float most = 0;
    for (Index i = 0; i < found.size(); ++i) {
      found.atom(i, atom.data());
      float product = 0;
      for (std::size_t c = 0; c < 16; ++c) product += atom[c] * planted.atoms[uz(p * 16) + c];
      most = std::max(most, std::abs(product));
    }
    there += most > 0.95f;
  }
  EXPECT_GE(there, 14);
}

TEST(Trainer, GoesOnBitByBit) {
  const Planted planted(20, 1000);
  TrainerOptions options = small();
  options.batches = 40;
  Trainer whole(options, planted.samples()), first(options, planted.samples());
  whole.start();
  first.start();
  while (whole.step()) {
  }
  for (int i = 0; i < 17; ++i) first.step();
  Trainer second(options, planted.samples());
  second.resume(first.state());
  while (second.step()) {
  }
  EXPECT_EQ(second.state().atoms, whole.state().atoms);
  EXPECT_EQ(second.error(), whole.error());
  options.atoms = 23;
  Trainer other(options, planted.samples());
  EXPECT_THROW(other.resume(first.state()), lesskv::Error);
  options.atoms = 2000;
  EXPECT_THROW(Trainer(options, planted.samples()), lesskv::Error);
}

TEST(Trainer, UnusedAtomsComeBack) {
  const Planted planted(20, 4000);
  TrainerOptions options = small();
  options.batches = 48;
  Trainer trainer(options, planted.samples());
  trainer.start();
  Trainer::State state = trainer.state();
  for (Index i = 1; i < 24; ++i)  // all atoms but one are the same: nobody uses the copies
    std::copy_n(state.atoms.begin(), 16, state.atoms.begin() + i * 16);
  trainer.resume(state);
  const double before = trainer.error_on(0, 1000);
  while (trainer.step()) {
  }
  EXPECT_LT(trainer.error_on(0, 1000), 0.5 * before);
}

TEST(Grouping, JensenShannon) {
  EXPECT_NEAR(jensen_shannon({1, 2, 3}, {2, 4, 6}), 0, 1e-12);
  EXPECT_NEAR(jensen_shannon({1, 0}, {0, 5}), 1, 1e-12);
  // (3/4, 1/4) against (1/4, 3/4): 1 - H(1/4, 3/4) ... by hand 0.18872.
  EXPECT_NEAR(jensen_shannon({3, 1}, {1, 3}), 0.188722, 1e-6);
}

TEST(Grouping, PairsAndChains) {
  const auto far = [](std::vector<double> at) {
    std::vector<std::vector<double>> out(at.size(), std::vector<double>(at.size()));
    for (std::size_t i = 0; i < at.size(); ++i)
      for (std::size_t j = 0; j < at.size(); ++j) out[i][j] = std::abs(at[i] - at[j]);
    return out;
  };
  using Groups = std::vector<int>;
  EXPECT_EQ(group_layers(far({0, .05, .1, .5, .55}), .1, .3), (Groups{0, 0, 0, 1, 1}));
  EXPECT_EQ(group_layers(far({0, .06, .12, .5}), .1, .3), (Groups{0, 0, 1, 2}));  // 0 and 2: .12
  // Back and forth: every pair is close, the sum over neighbours is not.
  EXPECT_EQ(group_layers(far({0, .1, 0, .1, 0, .1}), .1, .31), (Groups{0, 0, 0, 0, 1, 1}));
  EXPECT_EQ(group_layers_into(far({0, .01, .02, .6, .61, .9}), 3), (Groups{0, 0, 0, 1, 1, 2}));
  EXPECT_EQ(group_layers_into(far({0, .01, .02, .6, .61, .9}), 1), (Groups{0, 0, 0, 0, 0, 0}));
  EXPECT_EQ(group_layers_into(far({0, .1, .2}), 9), (Groups{0, 1, 2}));
}

TEST(Grouping, LayersThatAreDistributedAlike) {
  std::vector<std::vector<float>> rows;
  for (int l = 0; l < 5; ++l) {
    std::vector<float> layer = unit_rows(20000, 6, static_cast<unsigned>(l));
    if (l > 2)
      for (std::size_t i = 0; i < layer.size(); i += 6) layer[i] = 3 * std::abs(layer[i]) + 1;
    rows.push_back(std::move(layer));
  }
  const auto divergence = layer_divergence(rows, 6);
  EXPECT_GT(divergence[0][3], 1.3 * divergence[0][2]);
  EXPECT_EQ(divergence[1][1], 0);
  EXPECT_EQ(group_layers_into(divergence, 2), (std::vector<int>{0, 0, 0, 1, 1}));
}

// Two layers, two heads, made up; everything from vectors to a file's worth of dictionaries.
Collected made_up() {
  Collected out;
  for (Vectors* side : {&out.keys, &out.values}) {
    side->layers = 2;
    side->heads = 2;
    side->dim = 16;
    side->tokens = 400;
    for (int l = 0; l < 2; ++l) {
      std::vector<lesskv::f16> rows;
      for (const float x : unit_rows(800, 16, static_cast<unsigned>(l) + 5))
        rows.push_back(lesskv::to_f16(x));
      side->rows.push_back(std::move(rows));
    }
    side->mean.assign(2 * 2 * 16, 0.f);
    side->scale.assign(4, 1.f);
  }
  return out;
}

TEST(TrainSet, FitsTheBytesAndGoesOn) {
  const Collected vectors = made_up();
  SetOptions options;
  options.trainer = small();
  options.trainer.atoms = 0;
  options.trainer.batches = 16;
  options.key_groups = 1;
  options.value_groups = 2;
  options.value_chunks = 2;
  options.stages = 4;
  options.levels = 8;
  options.max_bytes = 12000;
  options.threads = 2;
  options.source = "test";
  options.state = ::testing::TempDir() + "lesskv_training.state";
  std::remove(options.state.c_str());
  const TrainedSet whole = train_set(vectors, options, {});
  EXPECT_FALSE(whole.resumed);
  EXPECT_LE(whole.set.bytes(), options.max_bytes);
  EXPECT_GT(whole.set.bytes(), options.max_bytes / 2);
  EXPECT_EQ(whole.set.key_dim(), 16);
  EXPECT_EQ(whole.set.value_chunks(), 2);
  // The state of a finished training gives the same again.
  const TrainedSet again = train_set(vectors, options, {});
  EXPECT_TRUE(again.resumed);
  EXPECT_EQ(again.set.serialise(), whole.set.serialise());
  // Of another source, damaged or cut off: from the start.
  options.source = "another";
  EXPECT_FALSE(train_set(vectors, options, {}).resumed);
  { std::ofstream(options.state, std::ios::app) << 'x'; }
  EXPECT_FALSE(train_set(vectors, options, {}).resumed);
  std::remove(options.state.c_str());
  // What comes out codes.
  const lesskv::SparseCodec codec({lesskv::SparseCode::packed, 4}, whole.set.values(1),
                                  whole.set.mean_of_values(1, 1));
  std::vector<float> row(16, 0.5f), back(16);
  std::vector<std::byte> block(codec.block_bytes(16, 1));
  codec.encode(row.data(), 1, block.data());
  codec.decode(block.data(), 1, 0, 1, back.data());
  for (const float x : back) EXPECT_TRUE(std::isfinite(x));
  options.max_bytes = 100;
  EXPECT_THROW(train_set(vectors, options, {}), lesskv::Error);
}

}  // namespace trainer_test
