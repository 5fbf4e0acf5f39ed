// SPDX-License-Identifier: MIT
// Blocks of sparse codes: sizes, what comes back, attention without decoding, prompt atoms, errors.
#include <lesskv/codec/sparse/codec.hpp>
#include <lesskv/codec/sparse/levels.hpp>
#include <lesskv/codec/sparse/prompt.hpp>

#include "sparse_support.hpp"

namespace sparse_codec_test {

using namespace sparse;

Dictionary dictionary(int dim, Index atoms, unsigned seed, int stages = 8, int levels = 16) {
  const Pursuit coder(Dictionary(dim, atoms, random_atoms(atoms, dim, seed).data()));
  const std::vector<float> rows = random_rows(500, dim, seed + 1);
  return fit_levels(coder, rows.data(), 500, stages, levels);
}

std::vector<std::byte> encode(const SparseCodec& codec, const std::vector<float>& rows) {
  const Index n = static_cast<Index>(rows.size()) / codec.dim();
  std::vector<std::byte> out(codec.block_bytes(codec.dim(), n) + 8, std::byte{0xa5});
  codec.encode(rows.data(), n, out.data());
  for (std::size_t i = out.size() - 8; i < out.size(); ++i) EXPECT_EQ(out[i], std::byte{0xa5});
  out.resize(out.size() - 8);
  out.resize(codec.used_bytes(out.data(), n));  // what is not used is not needed
  return out;
}

std::vector<float> decode(const SparseCodec& codec, const std::vector<std::byte>& block, Index n) {
  std::vector<float> out(static_cast<std::size_t>(n * codec.dim()));
  codec.decode(block.data(), n, 0, n, out.data());
  return out;
}

double relative_error(const std::vector<float>& got, const std::vector<float>& want) {
  double error = 0, energy = 0;
  for (std::size_t i = 0; i < want.size(); ++i) {
    error += (double(got[i]) - want[i]) * (double(got[i]) - want[i]);
    energy += double(want[i]) * want[i];
  }
  return error / energy;
}

struct Kind {
  const char* name;
  SparseFormat format;
  int chunks;
};
const Kind kinds[] = {
    {"pairs", {SparseCode::pairs, 4}, 1},
    {"pairs in two chunks", {SparseCode::pairs, 4}, 2},
    {"pairs, OMP", {SparseCode::pairs, 6, PursuitMethod::orthogonal}, 1},
    {"lexico", {SparseCode::lexico, 8, PursuitMethod::orthogonal}, 1},
    {"lexico, tolerance", {SparseCode::lexico, 8, PursuitMethod::orthogonal, 0.6f}, 1},
    {"pairs, tolerance, two chunks", {SparseCode::pairs, 8, PursuitMethod::matching, 0.5f}, 2},
    {"packed", {SparseCode::packed, 7}, 1},
    {"packed in two chunks", {SparseCode::packed, 6}, 2},
};

SparseCodec make(const Kind& kind, const std::vector<float>& mean) {
  std::vector<Dictionary> chunks;
  for (int c = 0; c < kind.chunks; ++c)
    chunks.push_back(dictionary(64 / kind.chunks, 200, static_cast<unsigned>(10 + c)));
  return SparseCodec(kind.format, chunks, mean);
}

TEST(SparseCodec, BitsPerNumber) {
  const std::vector<float> none;
  const auto bits = [&](SparseCode code, int dim, int atoms, int chunks = 1) {
    std::vector<Dictionary> all(static_cast<std::size_t>(chunks),
                                dictionary(dim / chunks, 64, 1, 16, 4));
    const SparseCodec codec({code, atoms}, all);
    return 8.0 * static_cast<double>(codec.block_bytes(dim, 64)) / (64.0 * dim);
  };
  EXPECT_EQ(bits(SparseCode::packed, 128, 7), 1.0);
  EXPECT_EQ(bits(SparseCode::packed, 128, 15), 2.0);
  EXPECT_EQ(bits(SparseCode::packed, 64, 3), 1.0);
  EXPECT_EQ(bits(SparseCode::packed, 64, 7), 2.0);
  EXPECT_EQ(bits(SparseCode::packed, 64, 15), 4.0);
  EXPECT_EQ(bits(SparseCode::pairs, 128, 4), 1.0);     // CSR-4
  EXPECT_EQ(bits(SparseCode::pairs, 128, 4, 2), 1.0);  // its values: two halves, two atoms each
  EXPECT_EQ(bits(SparseCode::pairs, 64, 4), 2.0);
  EXPECT_EQ(bits(SparseCode::lexico, 128, 8), 1.5);  // Lexico's table: .125 more, its row pointer
}

// What comes back is what the pursuit found, as far as 16, 8 or few bits hold it.
TEST(SparseCodec, ComesBack) {
  const std::vector<float> mean = random_rows(1, 64, 5), none;
  for (const Kind& kind : kinds)
    for (const bool centred : {false, true}) {
      SCOPED_TRACE(kind.name);
      const SparseCodec codec = make(kind, centred ? mean : none);
      for (const Index n : {Index{1}, Index{7}, Index{64}}) {
        const std::vector<float> rows = random_rows(n, 64, 6);
        const std::vector<std::byte> block = encode(codec, rows);
        const std::vector<float> got = decode(codec, block, n);
        // The same chunk by chunk with the coder's own numbers.
        std::vector<float> want = rows;
        for (int chunk = 0; chunk < kind.chunks; ++chunk) {
          const int dim = 64 / kind.chunks;
          std::vector<float> part;
          for (Index i = 0; i < n; ++i)
            for (int c = 0; c < dim; ++c)
              part.push_back(rows[static_cast<std::size_t>(i * 64 + chunk * dim + c)] -
                             (centred ? mean[static_cast<std::size_t>(chunk * dim + c)] : 0.f));
          const Pursuit coder(codec.dictionary(chunk));
          const Codes codes =
              sparse::encode(coder, part,
                             {kind.format.atoms / kind.chunks, kind.format.method,
                              kind.format.tolerance, kind.format.code == SparseCode::packed});
          for (Index i = 0; i < n; ++i) {
            const std::vector<double> y = sparse::decode(coder.dictionary(), codes, i);
            for (int c = 0; c < dim; ++c)
              want[static_cast<std::size_t>(i * 64 + chunk * dim + c)] =
                  static_cast<float>(y[static_cast<std::size_t>(c)]) +
                  (centred ? mean[static_cast<std::size_t>(chunk * dim + c)] : 0.f);
          }
        }
        if (kind.format.code == SparseCode::pairs) {
          EXPECT_LT(relative_error(got, want), 1e-6);
        }
        if (kind.format.code == SparseCode::lexico) {
          EXPECT_LT(relative_error(got, want), 4e-3);
        }
        if (kind.format.code == SparseCode::packed) {  // only the norm differs, for the better
          EXPECT_LE(relative_error(got, rows), relative_error(want, rows) * 1.0001);
          EXPECT_LT(relative_error(got, want), 0.05);
        }
        // Any part of a block, alone.
        for (Index first = 0; first < n; first += 5) {
          std::vector<float> part(static_cast<std::size_t>((n - first) * 64));
          codec.decode(block.data(), n, first, n - first, part.data());
          EXPECT_TRUE(std::equal(part.begin(), part.end(), got.begin() + first * 64));
        }
      }
    }
}

TEST(SparseCodec, ZerosAndHugeNumbers) {
  for (const Kind& kind : kinds) {
    SCOPED_TRACE(kind.name);
    const SparseCodec codec = make(kind, {});
    std::vector<float> rows(3 * 64, 0.f);
    for (std::size_t c = 0; c < 64; ++c) rows[64 + c] = 60000.f * static_cast<float>(c % 3);
    for (std::size_t c = 0; c < 64; ++c) rows[128 + c] = 1e-7f * static_cast<float>(c % 5);
    const std::vector<float> got = decode(codec, encode(codec, rows), 3);
    for (std::size_t c = 0; c < 64; ++c) EXPECT_EQ(got[c], 0);
    for (const float x : got) EXPECT_TRUE(std::isfinite(x));
  }
}

TEST(SparseCodec, AttentionIsDecodeThenAttend) {
  const std::vector<float> mean = random_rows(1, 64, 5);
  for (const Kind& kind : kinds)
    for (const Index R : {1, 3, 8, 11}) {
      SCOPED_TRACE(std::string(kind.name) + " R " + std::to_string(R));
      const SparseCodec codec = make(kind, mean);
      const Index n = 50;
      const std::vector<std::byte> block = encode(codec, random_rows(n, 64, 6));
      const std::vector<float> rows = decode(codec, block, n);
      const std::vector<float> queries = random_rows(R, 64, 7), weights = random_rows(R, n, 8);
      std::vector<float> table(static_cast<std::size_t>(codec.table_width() * R)),
          sums(table.size()), scores(static_cast<std::size_t>(R * 64)),
          out(static_cast<std::size_t>(R * 64));
      codec.make_table(queries.data(), R, table.data());
      codec.scores(block.data(), n, table.data(), R, scores.data(), 64);
      codec.add(block.data(), n, weights.data(), n, R, sums.data());
      codec.finish(sums.data(), R, out.data());
      for (Index r = 0; r < R; ++r) {
        std::vector<double> want(64, 0.0);
        for (Index i = 0; i < n; ++i) {
          double score = 0, size = 0;
          for (Index c = 0; c < 64; ++c) {
            const double x = rows[static_cast<std::size_t>(i * 64 + c)];
            score += x * queries[static_cast<std::size_t>(r * 64 + c)];
            size += std::abs(x * queries[static_cast<std::size_t>(r * 64 + c)]);
            want[static_cast<std::size_t>(c)] += x * weights[static_cast<std::size_t>(r * n + i)];
          }
          EXPECT_NEAR(scores[static_cast<std::size_t>(r * 64 + i)], score, 1e-5 * size);
        }
        for (std::size_t c = 0; c < 64; ++c)
          EXPECT_NEAR(out[static_cast<std::size_t>(r) * 64 + c], want[c], 2e-4);
      }
    }
}

TEST(SparseCodec, TheRuleForTables) {
  const SparseCodec codec({SparseCode::pairs, 4},
                          {Dictionary(64, 1024, random_atoms(1024, 64, 1).data())});
  EXPECT_FALSE(codec.table_pays(64, 3));
  EXPECT_TRUE(codec.table_pays(4096, 3));
  bool before = false;  // once it pays, it pays for all longer ones
  for (Index rows = 16; rows < 100000; rows *= 2) {
    const bool pays = codec.table_pays(rows, 3);
    EXPECT_TRUE(pays || !before);
    before = pays;
  }
  EXPECT_TRUE(before);
  // More query rows share the decoding, so tables pay later.
  EXPECT_TRUE(codec.table_pays(1000, 3));
  EXPECT_FALSE(codec.table_pays(1000, 64));
}

TEST(Levels, AreWhatLloydAndMaxFound) {
  // Optimal quantiser of a standard normal with 4 levels (Max 1960): +-.4528, +-1.510.
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  std::vector<float> x(400000);
  for (float& v : x) v = normal(random);
  float levels[4];
  detail::lloyd_levels(x, 4, levels);
  EXPECT_NEAR(levels[3], 1.510f, 0.02f);
  EXPECT_NEAR(levels[2], 0.4528f, 0.01f);
  EXPECT_NEAR(levels[0], -1.510f, 0.02f);
  // Fewer values than levels.
  detail::lloyd_levels({1, 2, 1}, 4, levels);
  for (int l = 1; l < 4; ++l) EXPECT_LE(levels[l - 1], levels[l]);
  EXPECT_EQ(levels[3], 2);
}

TEST(Levels, FewBitsCostLittle) {
  const std::vector<float> rows = random_rows(64, 64, 9);
  const Dictionary plain = dictionary(64, 512, 3, 8, 16);
  const SparseCodec exact({SparseCode::pairs, 7}, {plain});
  const double least = relative_error(decode(exact, encode(exact, rows), 64), rows);
  double before = 1;
  for (const int levels : {2, 4, 16, 64}) {
    const SparseCodec codec({SparseCode::packed, 7}, {dictionary(64, 512, 3, 8, levels)});
    const double error = relative_error(decode(codec, encode(codec, rows), 64), rows);
    EXPECT_LT(error, 1.001 * before);
    before = error;
  }
  EXPECT_LT(before, 1.01 * least);
}

TEST(PromptAtoms, OwnAtomsAreCountedAndUsed) {
  const Dictionary base(32, 100, random_atoms(100, 32, 3).data());
  const std::vector<float> rows = random_rows(40, 32, 4);
  const Pursuit coder(base);
  const std::vector<float> sampled = sampled_atoms(rows.data(), 40, 32, 10);
  ASSERT_EQ(sampled.size(), 320u);
  // The newest first, at unit norm.
  double square = 0, product = 0;
  for (std::size_t c = 0; c < 32; ++c) {
    square += double(sampled[c]) * sampled[c];
    product += double(sampled[c]) * rows[39 * 32 + c];
  }
  EXPECT_NEAR(square, 1, 1e-5);
  EXPECT_GT(product, 0);
  const std::vector<float> guard = guard_atoms(coder, rows.data(), 40, 5, {.steps = 3});
  ASSERT_EQ(guard.size(), 160u);
  const Dictionary extended = base.extended(sampled.data(), 10).extended(guard.data(), 5);
  EXPECT_EQ(extended.size(), 115);
  EXPECT_EQ(extended.base(), base.base());  // shared, not copied
  EXPECT_EQ(extended.shared_bytes(), base.shared_bytes());
  EXPECT_EQ(extended.own_bytes(), 15u * 32 * 2);
  std::vector<float> atom(32);
  extended.atom(110, atom.data());
  for (std::size_t c = 0; c < 32; ++c) EXPECT_NEAR(atom[c], guard[c], 1e-3);

  const SparseCodec codec({SparseCode::pairs, 3}, {extended});
  const std::vector<float> newest(rows.end() - 64, rows.end());
  const std::vector<float> got = decode(codec, encode(codec, newest), 2);
  EXPECT_LT(relative_error(got, newest), 1e-5);  // each of them is an atom
  const SparseCodec without({SparseCode::pairs, 3}, {base});
  EXPECT_GT(relative_error(decode(without, encode(without, newest), 2), newest), 0.1);
}

TEST(SparseCodec, BadInput) {
  const Dictionary d = dictionary(16, 64, 1);
  const auto make_with = [&](SparseFormat format, std::vector<Dictionary> chunks,
                             std::vector<float> mean = {}) {
    return message_of([&] { SparseCodec(format, chunks, mean); });
  };
  const auto expect = [](const std::string& got, const std::string& want) {
    EXPECT_NE(got.find(want), std::string::npos) << got;
  };
  expect(make_with({}, {}), "SparseCodec::chunks");
  expect(make_with({}, {d, dictionary(8, 64, 1)}), "SparseCodec::chunks");
  expect(make_with({SparseCode::packed, 0}, {d}), "SparseCodec::atoms is 0");
  expect(make_with({SparseCode::packed, 9}, {d}), "coefficient levels for 8");
  expect(make_with({SparseCode::pairs, 3}, {d, d}), "SparseCodec::atoms is 3, not a multiple");
  expect(make_with({SparseCode::pairs, 3, PursuitMethod::matching, 1.f}, {d}), "tolerance");
  expect(make_with({SparseCode::packed, 3, PursuitMethod::orthogonal}, {d}), "SparseCodec::method");
  expect(make_with({SparseCode::packed, 3, PursuitMethod::matching, .5f}, {d}), "tolerance");
  expect(make_with({}, {d}, std::vector<float>(15)), "SparseCodec::mean has 15");
  expect(make_with({}, {d}, std::vector<float>(16, std::nanf(""))), "SparseCodec::mean");
  expect(
      make_with({}, {dictionary(16, 64, 1, 8, 256).extended(random_atoms(300, 16, 2).data(), 300)}),
      "do not fit into 16");
  const SparseCodec codec({}, {d});
  expect(message_of([&] { codec.block_bytes(64, 64); }), "SparseCodec::dim is 64");
  std::vector<float> rows(65 * 16);
  std::vector<std::byte> out(10000);
  expect(message_of([&] { codec.encode(rows.data(), 65, out.data()); }), "SparseCodec::rows");
}

}  // namespace sparse_codec_test
