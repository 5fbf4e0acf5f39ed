// SPDX-License-Identifier: MIT
// Matching pursuit and OMP against the definition in double, against Lexico's own code on real
// keys and values, and what is degenerate: nothing to code, equal atoms, exact sums of atoms.
#include <cstdint>
#include <lesskv/codec/sparse/fp8.hpp>

#include "sparse_support.hpp"

namespace sparse_pursuit_test {

using namespace sparse;

struct Case {
  const char *rows, *atoms;
};
constexpr Case cases[] = {
    {"kpre", "rand"}, {"kpre", "k"}, {"v", "v"}, {"kpost", "k"}, {"vhalf", "vhalf"}};

struct Reference {
  std::string name;
  support::Npy<float> atoms, rows;
  explicit Reference(const Case& c)
      : name(std::string(c.rows) + "_" + c.atoms),
        atoms(support::load_npy<float>(path(std::string("dict_") + c.atoms))),
        rows(support::load_npy<float>(
            path(std::string("x_") + (std::string(c.rows) == "vhalf" ? "v" : c.rows)))) {}
  // Halves are coded with up to 4 atoms, whole vectors with up to 8.
  int steps() const { return atoms.shape[1] == 32 ? 4 : 8; }
  Dictionary dictionary() const {
    return Dictionary(static_cast<int>(atoms.shape[1]), static_cast<Index>(atoms.shape[0]),
                      atoms.data.data(), DType::f32);
  }
};

std::vector<const PursuitKernels*> tables() {
  std::vector<const PursuitKernels*> out;
  for (const KernelTable* table : kernel_tables()) out.push_back(&pursuit_kernels(*table));
  return out;
}

void expect_codes(const Reference& reference, const std::string& kind, const Codes& codes) {
  const auto index = support::load_npy<std::int32_t>(path(kind + "_idx_" + reference.name));
  const auto energy = support::load_npy<float>(path(kind + "_energy_" + reference.name));
  const auto gap = support::load_npy<float>(path(kind + "_gap_" + reference.name));
  const std::size_t steps = index.shape[1];
  ASSERT_EQ(codes.steps, static_cast<int>(steps));
  Index compared = 0;
  for (std::size_t row = 0; row < gap.size(); ++row) {
    if (gap.data[row] < 1e-5f) continue;
    ++compared;
    for (std::size_t k = 0; k < steps; ++k)
      ASSERT_EQ(codes.index[row * steps + k], index.data[row * steps + k])
          << "row " << row << " step " << k;
    for (std::size_t k = 0; k <= steps; ++k) {
      const std::size_t at = row * (steps + 1) + k;
      ASSERT_NEAR(codes.energy[at], energy.data[at], 1e-4f * energy.data[at])
          << "row " << row << " after " << k;
    }
  }
  EXPECT_GT(compared, static_cast<Index>(gap.size()) * 9 / 10);
}

TEST(Pursuit, CodesEqualTheReference) {
  for (const Case& c : cases) {
    const Reference reference(c);
    SCOPED_TRACE(reference.name);
    for (const PursuitKernels* table : tables()) {
      SCOPED_TRACE(table->name);
      const Pursuit coder(reference.dictionary(), *table);
      const Codes plain = encode(coder, reference.rows.data, {.steps = reference.steps()});
      expect_codes(reference, "mp", plain);
      const auto want = support::load_npy<float>(path("mp_coef_" + reference.name));
      const auto gap = support::load_npy<float>(path("mp_gap_" + reference.name));
      float largest = 0;
      for (const float x : want.data) largest = std::max(largest, std::abs(x));
      for (std::size_t i = 0; i < want.size(); ++i) {
        if (gap.data[i / want.shape[1]] >= 1e-5f) {
          ASSERT_NEAR(plain.coefficient[i], want.data[i], 1e-5f * largest) << i;
        }
      }
      const Codes orthogonal =
          encode(coder, reference.rows.data,
                 {.steps = reference.steps(), .method = PursuitMethod::orthogonal});
      expect_codes(reference, "omp", orthogonal);
    }
  }
}

TEST(Pursuit, LeastSquaresCoefficientsEqualTheReference) {
  for (const Case& c : cases) {
    const Reference reference(c);
    SCOPED_TRACE(reference.name);
    const Pursuit coder(reference.dictionary());
    const auto gap = support::load_npy<float>(path("omp_gap_" + reference.name));
    for (int steps = 2; steps <= reference.steps(); steps *= 2) {
      const auto want = support::load_npy<float>(
          path("omp_coef_s" + std::to_string(steps) + "_" + reference.name));
      const Codes codes =
          encode(coder, reference.rows.data, {.steps = steps, .method = PursuitMethod::orthogonal});
      float largest = 0;
      for (const float x : want.data) largest = std::max(largest, std::abs(x));
      for (std::size_t i = 0; i < want.size(); ++i) {
        if (gap.data[i / static_cast<std::size_t>(steps)] >= 1e-5f) {
          ASSERT_NEAR(codes.coefficient[i], want.data[i], 1e-4f * largest) << i;
        }
      }
    }
  }
}

TEST(Pursuit, LengthsUnderAThresholdEqualLexico) {
  for (const Case& c : cases) {
    const Reference reference(c);
    SCOPED_TRACE(reference.name);
    const Pursuit coder(reference.dictionary());
    for (const char* tolerance : {"0.5", "0.2"}) {
      const auto want = support::load_npy<std::int32_t>(
          path(std::string("lexico_len_tol") + tolerance + "_" + reference.name));
      const Codes codes = encode(coder, reference.rows.data,
                                 {.steps = reference.steps(),
                                  .method = PursuitMethod::orthogonal,
                                  .tolerance = std::stof(tolerance)});
      EXPECT_EQ(codes.count, want.data) << tolerance;
    }
  }
}

TEST(Pursuit, EightBitCoefficientsEqualLexico) {
  for (const Case& c : cases) {
    const Reference reference(c);
    SCOPED_TRACE(reference.name);
    const Pursuit coder(reference.dictionary());
    const int steps = 4;
    const auto want = support::load_npy<std::uint8_t>(path("lexico_fp8_" + reference.name));
    const Codes codes =
        encode(coder, reference.rows.data, {.steps = steps, .method = PursuitMethod::orthogonal});
    ASSERT_EQ(want.size(), codes.coefficient.size());
    for (std::size_t i = 0; i < want.size(); ++i)
      EXPECT_EQ(to_e4m3(codes.coefficient[i]).bits, want.data[i]) << i;
  }
}

// Sizes that fill no panel, chunk or vector, in both storage types.
TEST(Pursuit, EqualsTheDefinition) {
  for (const auto& [dim, atoms] :
       {std::pair<int, Index>{1, 1}, {3, 5}, {7, 64}, {20, 65}, {64, 200}, {80, 130}, {128, 513}})
    for (const DType stored : {DType::f32, DType::f16})
      for (const bool orthogonal : {false, true}) {
        const Dictionary dictionary(dim, atoms, random_atoms(atoms, dim, 1).data(), stored);
        const std::vector<float> rows = random_rows(70, dim, 2);
        const int steps = std::min(dim, 9);
        for (const PursuitKernels* table : tables()) {
          SCOPED_TRACE(std::string(table->name) + " dim " + std::to_string(dim) + " atoms " +
                       std::to_string(atoms) + (orthogonal ? " orthogonal" : ""));
          const Pursuit coder(dictionary, *table);
          const Codes codes =
              encode(coder, rows,
                     {.steps = steps,
                      .method = orthogonal ? PursuitMethod::orthogonal : PursuitMethod::matching});
          Index compared = 0;
          for (Index row = 0; row < 70; ++row) {
            const Slow slow(dictionary, rows.data() + row * dim, steps, orthogonal);
            const double got = error(decode(dictionary, codes, row), rows.data() + row * dim);
            const int count = codes.count[static_cast<std::size_t>(row)];
            EXPECT_NEAR(got, codes.energy[static_cast<std::size_t>(row * (steps + 1) + count)],
                        1e-5 * slow.energy[0]);
            if (slow.gap < 1e-5) continue;
            ++compared;
            ASSERT_EQ(count, steps);
            for (int k = 0; k < steps; ++k)
              ASSERT_EQ(codes.index[codes.at(row, k)], slow.index[static_cast<std::size_t>(k)])
                  << row << ' ' << k;
            EXPECT_NEAR(got, slow.energy.back(), 1e-5 * slow.energy[0]);
          }
          if (dim > 7) {
            EXPECT_GT(compared, 55);
          }
        }
      }
}

TEST(Pursuit, OrthogonalResidualsAndRefit) {
  const Dictionary dictionary(32, 100, random_atoms(100, 32, 3).data(), DType::f32);
  const Pursuit coder(dictionary);
  const std::vector<float> rows = random_rows(64, 32, 4);
  const Codes plain = encode(coder, rows, {.steps = 8});
  const Codes refit = encode(coder, rows, {.steps = 8, .method = PursuitMethod::refit});
  const Codes whole = encode(coder, rows, {.steps = 32, .method = PursuitMethod::orthogonal});
  std::vector<float> atom(32);
  for (Index row = 0; row < 64; ++row) {
    const float* x = rows.data() + row * 32;
    EXPECT_LE(error(decode(dictionary, refit, row), x),
              error(decode(dictionary, plain, row), x) * (1 + 1e-6));
    EXPECT_LT(error(decode(dictionary, whole, row), x), 1e-6);  // 32 atoms span the space
    const std::vector<double> y = decode(dictionary, refit, row);
    for (int k = 0; k < refit.count[static_cast<std::size_t>(row)]; ++k) {
      dictionary.atom(refit.index[refit.at(row, k)], atom.data());
      double product = 0;
      for (std::size_t c = 0; c < 32; ++c) product += (x[c] - y[c]) * atom[c];
      EXPECT_NEAR(product, 0, 1e-4);
    }
  }
}

// A code book full of near copies: hundreds of atoms within the error of 8 bits of each other.
TEST(Pursuit, ExactAmongAtomsThatAreAlmostEqual) {
  std::vector<float> atoms = random_atoms(16, 24, 5);
  const std::vector<float> noise = random_rows(2000, 24, 6);
  std::vector<float> all;
  for (Index i = 0; i < 2000; ++i) {
    double square = 0;
    std::vector<double> x(24);
    for (std::size_t c = 0; c < 24; ++c) {
      x[c] = atoms[static_cast<std::size_t>(i % 16) * 24 + c] +
             1e-4 * noise[static_cast<std::size_t>(i) * 24 + c];
      square += x[c] * x[c];
    }
    for (const double v : x) all.push_back(static_cast<float>(v / std::sqrt(square)));
  }
  const Dictionary dictionary(24, 2000, all.data(), DType::f32);
  const Pursuit coder(dictionary);
  const std::vector<float> rows = random_rows(40, 24, 7);
  for (const bool orthogonal : {false, true}) {
    const Codes codes = encode(
        coder, rows,
        {.steps = 5, .method = orthogonal ? PursuitMethod::orthogonal : PursuitMethod::matching});
    Index compared = 0;
    for (Index row = 0; row < 40; ++row) {
      const Slow slow(dictionary, rows.data() + row * 24, 5, orthogonal);
      if (slow.gap < 2e-6) continue;
      ++compared;
      for (int k = 0; k < 5; ++k)
        EXPECT_EQ(codes.index[codes.at(row, k)], slow.index[static_cast<std::size_t>(k)]);
    }
    EXPECT_GT(compared, 10);
  }
}

TEST(Pursuit, NothingToCode) {
  std::vector<float> atoms = random_atoms(40, 16, 8);
  atoms.insert(atoms.end(), atoms.begin(), atoms.end());  // every atom twice
  const Dictionary dictionary(16, 80, atoms.data(), DType::f32);
  const Pursuit coder(dictionary);
  std::vector<float> rows(3 * 16, 0.f);
  std::copy(atoms.begin() + 7 * 16, atoms.begin() + 8 * 16, rows.begin() + 16);  // is atom 7
  for (std::size_t c = 0; c < 16; ++c) rows[32 + c] = 3 * atoms[c] - 2 * atoms[5 * 16 + c];
  for (const PursuitMethod method :
       {PursuitMethod::matching, PursuitMethod::refit, PursuitMethod::orthogonal}) {
    const Codes codes = encode(coder, rows, {.steps = 6, .method = method});
    EXPECT_EQ(codes.count[0], 0);
    ASSERT_GE(codes.count[1], 1);
    EXPECT_EQ(codes.index[codes.at(1, 0)], 7);  // the earlier of the equal ones
    EXPECT_NEAR(codes.coefficient[codes.at(1, 0)], 1, 1e-5);
    for (Index row = 0; row < 3; ++row)
      for (const double x : decode(dictionary, codes, row)) EXPECT_TRUE(std::isfinite(x));
    EXPECT_LT(error(decode(dictionary, codes, 1), rows.data() + 16), 1e-9);
    if (method == PursuitMethod::orthogonal) {
      EXPECT_LT(error(decode(dictionary, codes, 2), rows.data() + 32), 1e-6);
    }
  }
}

TEST(Pursuit, NumbersWhoseSquaresLeaveTheRange) {
  const Dictionary dictionary(8, 30, random_atoms(30, 8, 9).data(), DType::f32);
  const Pursuit coder(dictionary);
  const std::vector<float> rows = random_rows(1, 8, 10);
  const Codes plain = encode(coder, rows, {.steps = 4});
  for (const int exponent : {-120, -70, 60, 120}) {
    std::vector<float> scaled = rows;
    for (float& x : scaled) x = std::ldexp(x, exponent);
    const Codes codes = encode(coder, scaled, {.steps = 4});
    EXPECT_EQ(codes.index, plain.index);
    for (std::size_t k = 0; k < 4; ++k)
      EXPECT_NEAR(std::ldexp(codes.coefficient[k], -exponent), plain.coefficient[k], 1e-5);
  }
}

// Codes do not depend on which vectors are coded together.
TEST(Pursuit, EachVectorAlone) {
  const Dictionary dictionary(64, 300, random_atoms(300, 64, 11).data());
  const Pursuit coder(dictionary);
  const std::vector<float> rows = random_rows(133, 64, 12);
  const Codes all = encode(coder, rows, {.steps = 5});
  for (Index row = 0; row < 133; ++row) {
    Codes one(1, 5);
    coder.encode(rows.data() + row * 64, 1, 64, {.steps = 5}, one.out());
    for (int k = 0; k < 5; ++k) {
      EXPECT_EQ(one.index[one.at(0, k)], all.index[all.at(row, k)]);
      EXPECT_EQ(one.coefficient[one.at(0, k)], all.coefficient[all.at(row, k)]);
    }
  }
}

TEST(Pursuit, BadInput) {
  const Dictionary dictionary(8, 30, random_atoms(30, 8, 9).data());
  const Pursuit coder(dictionary);
  std::vector<float> rows(8, 1.f);
  Codes codes(1, 4);
  const auto run = [&](PursuitOptions options) {
    return message_of([&] { coder.encode(rows.data(), 1, 8, options, codes.out()); });
  };
  EXPECT_NE(run({.steps = 0}).find("Pursuit::steps is 0"), std::string::npos);
  EXPECT_NE(run({.steps = 65}).find("Pursuit::steps is 65"), std::string::npos);
  EXPECT_NE(run({.tolerance = 1}).find("Pursuit::tolerance"), std::string::npos);
  EXPECT_NE(run({.tolerance = std::nanf("")}).find("Pursuit::tolerance"), std::string::npos);
  EXPECT_NE(run({.quantised = true}).find("coefficient levels for 0"), std::string::npos);
  rows[3] = std::nanf("");
  EXPECT_NE(run({}).find("Pursuit::rows: vector 0 is not finite"), std::string::npos);
  EXPECT_NE(message_of([] { Pursuit{Dictionary()}; }).find("Pursuit::dictionary"),
            std::string::npos);
}

TEST(Dictionary, BadInput) {
  std::vector<float> atoms = random_atoms(4, 8, 1);
  EXPECT_NE(message_of([&] { Dictionary(0, 4, atoms.data()); }).find("Dictionary::dim is 0"),
            std::string::npos);
  EXPECT_NE(message_of([&] { Dictionary(8, 0, atoms.data()); }).find("Dictionary::count is 0"),
            std::string::npos);
  EXPECT_NE(message_of([&] { Dictionary(8, 4, atoms.data(), DType::bf16); }).find("stored"),
            std::string::npos);
  atoms[9] += 1;
  EXPECT_NE(message_of([&] { Dictionary(8, 4, atoms.data()); }).find("atom 1"), std::string::npos);
  atoms[9] = std::nanf("");
  EXPECT_NE(message_of([&] { Dictionary(8, 4, atoms.data()); }).find("atom 1"), std::string::npos);
}

}  // namespace sparse_pursuit_test
