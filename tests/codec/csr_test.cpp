// SPDX-License-Identifier: MIT
// CSR in a cache: what is stored is what the definition says, attention reads it right, bytes are
// counted, and what cannot be is an error.
#include <lesskv/codec/lloyd_max.hpp>
#include <lesskv/score/keydiff.hpp>
#include <lesskv/score/lagkv.hpp>
#include <lesskv/score/snapkv.hpp>

#include "csr_support.hpp"

namespace csr_test {

using namespace csr;

template <class Cache>
void expect_equals_definition(const Cache& cache, const std::vector<Tensors>& all, Index first,
                              const Matrix& got) {
  const Matrix q = all.back().queries.middleRows(first, got.rows());
  const Matrix want = attention_by_definition(cache, shape.layers - 1, q, range(first, got.rows()));
  EXPECT_LT((got - want).cwiseAbs().maxCoeff(), 2e-5);
}

// Turned by a position (or back), in double.
std::vector<double> turned(std::vector<double> x, double position, double direction) {
  const std::vector<double> speed = frequencies(static_cast<int>(x.size()), 10000);
  for (std::size_t i = 0; i < speed.size(); ++i) {
    const double angle = direction * position * speed[i];
    const double a = x[i], b = x[i + speed.size()];
    x[i] = a * std::cos(angle) - b * std::sin(angle);
    x[i + speed.size()] = b * std::cos(angle) + a * std::sin(angle);
  }
  return x;
}

// Every stored row against the definition: turned back, less the mean, pursued in double, turned
// again.
TEST(CSRCache, RowsAreWhatTheDefinitionGives) {
  const auto all = tensors(shape, 150, 1);
  Shape exact = shape;
  exact.dtype = DType::f32;
  for (const bool before : {true, false})
    for (const bool orthogonal : {false, true}) {
      const DictionarySet set = example(before);
      KVCache cache(exact, Keep{.sinks = 3, .recent = 5},
                    CSR{.atoms = 4,
                        .value_atoms = 3,
                        .format = SparseCode::pairs,
                        .pursuit = orthogonal ? PursuitMethod::orthogonal : PursuitMethod::matching,
                        .dictionary = set});
      feed(cache, all, 0, 150);
      cache.compress();
      Index compared = 0;
      for (int l = 0; l < shape.layers; ++l)
        for (int h = 0; h < shape.kv_heads; ++h) {
          const Matrix k = cache.keys(l, h), v = cache.values(l, h);
          const Tensors& in = all[static_cast<std::size_t>(l)];
          EXPECT_EQ(k.topRows(3), in.keys.block(0, h * 32, 3, 32));
          EXPECT_EQ(v.bottomRows(5), in.values.block(145, h * 32, 5, 32));
          for (Index r = 3; r < 145; r += 7)
            for (const bool keys : {true, false}) {
              const Matrix& from = keys ? in.keys : in.values;
              const auto mean = keys ? set.mean_of_keys(l, h) : set.mean_of_values(l, h);
              std::vector<double> x(32);
              for (int c = 0; c < 32; ++c)
                x[static_cast<std::size_t>(c)] = double{from(r, h * 32 + c)};
              if (keys && before) x = turned(x, double(r), -1);
              std::vector<float> centred(32);
              for (std::size_t c = 0; c < 32; ++c)
                centred[c] = static_cast<float>(x[c] - double{mean[c]});
              const Dictionary d = keys ? set.keys(l)[0] : set.values(l)[0];
              const sparse::Slow slow(d, centred.data(), keys ? 4 : 3, orthogonal);
              if (slow.gap < 1e-4) continue;
              ++compared;
              std::vector<double> want(mean.begin(), mean.end());
              std::vector<float> atom(32);
              for (std::size_t s = 0; s < slow.index.size(); ++s) {
                d.atom(slow.index[s], atom.data());
                for (std::size_t c = 0; c < 32; ++c)
                  want[c] += slow.coefficient[s] * double{atom[c]};
              }
              if (keys && before) want = turned(want, double(r), 1);
              for (Index c = 0; c < 32; ++c)
                ASSERT_NEAR(double{(keys ? k : v)(r, c)}, want[static_cast<std::size_t>(c)], 4e-3)
                    << "row " << r;
            }
        }
      EXPECT_GT(compared, 150);
    }
}

// The reference's indices, through the block of a codec: real keys, rotated and given with their
// positions.
TEST(CSRCache, CodesEqualTheReference) {
  const auto rows = load_npy<float>(sparse::path("x_kpre")),
             atoms = load_npy<float>(sparse::path("dict_k")),
             gap = load_npy<float>(sparse::path("mp_gap_kpre_k"));
  const auto index = load_npy<std::int32_t>(sparse::path("mp_idx_kpre_k"));
  const int dim = static_cast<int>(atoms.shape[1]), steps = static_cast<int>(index.shape[1]);
  DictionarySet set;
  set.layers = set.kv_heads = 1;
  set.dictionaries = {
      Dictionary(dim, static_cast<Index>(atoms.shape[0]), atoms.data.data(), DType::f32)};
  set.key_dictionary = set.value_dictionary = {0};
  set.rope_frequencies = frequencies(dim, 100000);
  const Rotation rotation(Rope{.theta = 100000}, dim);
  const CSR policy{.atoms = steps, .format = SparseCode::pairs, .dictionary = set};
  const auto codec = policy.codec(Side::keys, dim, 0, 0);
  Index compared = 0;
  for (std::size_t first = 0; first < rows.shape[0]; first += 64) {
    const Index n = static_cast<Index>(std::min<std::size_t>(64, rows.shape[0] - first));
    std::vector<float> keys(rows.data.begin() + static_cast<Index>(first) * dim,
                            rows.data.begin() + (static_cast<Index>(first) + n) * dim);
    std::vector<std::uint32_t> positions;
    for (Index i = 0; i < n; ++i) {
      positions.push_back(static_cast<std::uint32_t>(37 * i + 11));
      rotation.apply(keys.data() + i * dim, Position{positions.back()});
    }
    std::vector<std::uint16_t> block(codec->bytes(n) / 2);
    codec->encode(keys.data(), positions.data(), n, block.data());
    for (Index i = 0; i < n; ++i) {
      const std::size_t row = first + static_cast<std::size_t>(i);
      if (gap.data[row] < 1e-4f) continue;
      ++compared;
      for (Index s = 0; s < steps; ++s)  // tiles of 16 rows: indices, then coefficients
        ASSERT_EQ(block[static_cast<std::size_t>(i / 16 * 32 * steps + s * 16 + i % 16)],
                  index.data[row * static_cast<std::size_t>(steps) + static_cast<std::size_t>(s)])
            << "row " << row << " step " << s;
    }
  }
  EXPECT_GT(compared, static_cast<Index>(gap.size()) * 8 / 10);
}

struct Kind {
  const char* name;
  SparseCode format;
  int atoms, value_atoms;
  PursuitMethod pursuit;
  bool before_rope;
  int chunks;
};
constexpr Kind kinds[] = {
    {"packed", SparseCode::packed, 5, 0, PursuitMethod::matching, true, 1},
    {"packed after RoPE", SparseCode::packed, 3, 4, PursuitMethod::matching, false, 2},
    {"pairs in chunks", SparseCode::pairs, 4, 4, PursuitMethod::refit, true, 2},
    {"lexico", SparseCode::lexico, 6, 3, PursuitMethod::orthogonal, false, 1}};
CSR policy(const Kind& kind) {
  return {kind.atoms, kind.value_atoms, kind.format, kind.pursuit,
          example(kind.before_rope, kind.chunks)};
}

// Law 6, for both ways to read keys, few query rows and many.
TEST(CSRCache, AttentionEqualsDecodeThenAttend) {
  const auto all = tensors(shape, 900, 2);
  for (const Kind& kind : kinds) {
    SCOPED_TRACE(kind.name);
    KVCache cache(shape, Keep{.fraction = 0.6, .sinks = 5}, LagKV{.lag = 32}, policy(kind));
    feed(cache, all, 0, 700);
    cache.compress();
    Index at = 700;
    for (const Index n : {1, 1, 2, 40, 1, 100, 1}) {
      const Matrix got = feed(cache, all, at, n);
      expect_equals_definition(cache, all, at, got);
      at += n;
      cache.compress();
    }
  }
}

TEST(CSRCache, TheRuleForTables) {
  const auto codec = [](bool before_rope) {
    return std::static_pointer_cast<const lesskv::detail::CsrCodec>(
        CSR{.atoms = 4, .dictionary = example(before_rope)}.codec(Side::keys, 32, 0, 0));
  };
  const auto after = codec(false), before = codec(true);
  for (const Index rows : {Index{0}, Index{64}, Index{100000}})
    EXPECT_FALSE(before->by_table(rows, 3)) << "a table would depend on the position";
  EXPECT_FALSE(after->by_table(0, 3));
  EXPECT_FALSE(after->by_table(16, 3));
  EXPECT_TRUE(after->by_table(4000, 3));
  EXPECT_EQ(after->by_table(300, 3), after->codec().table_pays(300, 3));
  // Both ways give the same, whatever the number of rows says.
  const std::vector<float> rows = sparse::random_rows(64, 32, 3),
                           queries = sparse::random_rows(4, 32, 4);
  std::vector<std::byte> block(after->bytes(64));
  std::vector<std::uint32_t> positions(64);
  after->encode(rows.data(), positions.data(), 64, block.data());
  const SideCode& code = after->code();
  std::vector<float> prepared(static_cast<std::size_t>(code.key_workspace)), out[2];
  for (const bool table : {false, true}) {
    out[table].assign(4 * 64, 0.f);
    code.prepare(code, queries.data(), 3, table ? 4000 : 16, prepared.data());
    code.scores(code, BlockRef{block.data(), block.data(), 50, true, positions.data()},
                prepared.data(), 3, out[table].data(), nullptr, 0);
  }
  for (std::size_t i = 0; i < 3 * 64; ++i) EXPECT_NEAR(out[0][i], out[1][i], 2e-5);
}

// Codes move as they are: what stays is the same row, bit by bit, also when blocks join.
TEST(CSRCache, RowsThatStayDoNotChange) {
  const auto all = tensors(shape, 1000, 3);
  for (const Kind& kind : kinds) {
    SCOPED_TRACE(kind.name);
    KVCache cache(shape, Keep{.tokens = 150, .sinks = 4}, KeyDiff{}, policy(kind));
    feed(cache, all, 0, 500);
    cache.compress();
    for (Index at = 500; at < 1000; at += 50) {
      const Matrix k = cache.keys(1, 1), v = cache.values(1, 1);
      const std::vector<Position> before = cache.positions(1, 1);
      const Matrix got = feed(cache, all, at, 50);
      expect_equals_definition(cache, all, at, got);
      cache.compress();
      const std::vector<Position> after = cache.positions(1, 1);
      const Matrix k2 = cache.keys(1, 1), v2 = cache.values(1, 1);
      Index compared = 0;
      std::size_t i = 0;
      for (std::size_t j = 0; j < after.size(); ++j) {
        while (i < before.size() && before[i] < after[j]) ++i;
        if (i == before.size() || before[i] != after[j]) continue;
        const auto row = static_cast<Index>(to_int(after[j]));
        const float first = all[1].keys(row, 32), third = all[1].keys(row, 34);
        const auto held = k.row(static_cast<Index>(i));
        if (held[0] == to_float(to_f16(first)) && held[2] == to_float(to_f16(third)))
          continue;  // was still exact
        ++compared;
        ASSERT_EQ(k.row(static_cast<Index>(i)), k2.row(static_cast<Index>(j)));
        ASSERT_EQ(v.row(static_cast<Index>(i)), v2.row(static_cast<Index>(j)));
      }
      EXPECT_GT(compared, 30);
    }
  }
}

TEST(CSRCache, TruncateForkAndClear) {
  const auto all = tensors(shape, 500, 4);
  KVCache cache(shape, Keep{.sinks = 4}, policy(kinds[0]));
  feed(cache, all, 0, 400);
  cache.compress();
  auto fork = cache.fork();
  const Matrix before = cache.keys(1, 0);
  fork.truncate(Position{150});
  EXPECT_EQ(fork.keys(1, 0), before.topRows(150));
  const Matrix got = feed(fork, all, 150, 60);
  expect_equals_definition(fork, all, 150, got);
  fork.compress();
  EXPECT_EQ(fork.keys(1, 0).topRows(150), before.topRows(150));
  EXPECT_EQ(cache.keys(1, 0), before);
  fork.clear();
  EXPECT_EQ(fork.size(0, 0), 0);
  feed(fork, all, 0, 400);
  fork.compress();
  EXPECT_EQ(fork.keys(1, 0), before);
}

TEST(CSRCache, BytesAreCounted) {
  const auto all = tensors(shape, 1028, 5);
  const Dictionaries dictionaries = example();
  const CSR csr{.atoms = 3, .dictionary = dictionaries};
  KVCache exact(shape);
  KVCache coded(shape, Keep{.sinks = 4}, csr);
  const std::size_t empty = coded.bytes();
  feed(exact, all, 0, 1028);
  feed(coded, all, 0, 1028);
  coded.compress();
  EXPECT_FALSE(dictionaries.shared()->encoding()) << "tables go with the compression";
  // Once for all heads and both sides.
  EXPECT_EQ(coded.bytes_shared(), dictionaries.shared()->bytes());
  EXPECT_GE(coded.bytes_shared(), dictionaries.set().bytes());
  EXPECT_GT(empty, coded.bytes_shared());
  // 16 blocks of 64 rows a head and side, (3 + 1) 16-bit words a row; 4 exact sinks in a tile.
  const std::size_t codes = std::size_t{4} * 2 * 1024 * 4 * 2, sinks = 4 * 2 * 16 * 32 * 2;
  EXPECT_GE(coded.bytes() - empty, codes + sinks);
  EXPECT_LE(coded.bytes() - empty, codes + sinks + 4 * (17 * 64 + 1028 * 8 + 1000));
  EXPECT_GT(coded.stats().peak_bytes, coded.bytes() + dictionaries.shared()->encoder_bytes());
  // Keep::bytes is held, codecs and dictionaries included.
  for (const std::size_t limit : {std::size_t{230000}, std::size_t{300000}}) {
    KVCache cache(shape, Keep{.bytes = limit, .sinks = 4}, KeyDiff{}, csr);
    feed(cache, all, 0, 700);
    cache.compress();
    EXPECT_LE(cache.bytes(), limit);
    Index rows = cache.stats().held;
    for (Index at = 700; at < 1000; ++at) {
      feed(cache, all, at, 1);
      ASSERT_LE(cache.bytes(), limit) << at << ", before compress()";
      cache.compress();
      ASSERT_LE(cache.bytes(), limit) << at;
      // No more leave at once than room for the next 64 steps takes.
      ASSERT_LE(rows - cache.stats().held, 4 * (64 + 16)) << at;
      rows = cache.stats().held;
    }
  }
  // Other dictionaries for values: both are counted.
  KVCache two(shape, Keys{CSR{.dictionary = example()}}, Values{CSR{.dictionary = example()}});
  EXPECT_EQ(two.bytes_shared(), 2 * dictionaries.shared()->bytes());
}

TEST(CSRCache, SidesApart) {
  const auto all = tensors(shape, 300, 6);
  KVCache csr(shape, Keep{.sinks = 4}, policy(kinds[0]));
  KVCache exact(shape);
  KVCache mixed(shape, Keep{.sinks = 4}, Keys{policy(kinds[0])}, Values{LloydMax{.bits = 3}});
  KVCache scalar(shape, Keep{.sinks = 4}, LloydMax{.bits = 3});
  KVCache keys(shape, Keep{.sinks = 4}, Keys{policy(kinds[0])});
  feed(csr, all, 0, 300);
  feed(exact, all, 0, 300);
  feed(mixed, all, 0, 300);
  feed(scalar, all, 0, 300);
  feed(keys, all, 0, 300);
  csr.compress();
  mixed.compress();
  scalar.compress();
  keys.compress();
  for (int h = 0; h < 2; ++h) {
    EXPECT_EQ(mixed.keys(1, h), csr.keys(1, h));
    EXPECT_EQ(mixed.values(1, h), scalar.values(1, h));
    EXPECT_EQ(keys.keys(1, h), csr.keys(1, h));
    EXPECT_EQ(keys.values(1, h), exact.values(1, h));
  }
}

TEST(CSRCache, ThreadsChangeNothing) {
  const auto all = tensors(shape, 400, 7);
  const auto run = [&](bool reversed) {
    KVCache cache(shape, Keep{.fraction = 0.4, .sinks = 4}, SnapKV{.window = 16}, policy(kinds[0]));
    if (reversed)
      cache.set_executor([](Index count, const std::function<void(Index)>& task) {
        for (Index i = count; i-- > 0;) task(i);
      });
    feed(cache, all, 0, 400);
    cache.compress();
    return cache.keys(1, 1);
  };
  EXPECT_EQ(run(false), run(true));
}

// Each head takes atoms from its own prompt, before it encodes its first rows.
TEST(CSRCache, AtomsOfThePrompt) {
  const auto all = tensors(shape, 700, 9);
  Shape exact = shape;
  exact.dtype = DType::f32;
  for (const bool before : {true, false}) {
    const Dictionaries dictionaries = example(before);
    CSR csr{.atoms = 2, .format = SparseCode::pairs, .dictionary = dictionaries};
    KVCache without(exact, Keep{.sinks = 4}, csr);
    csr.sampled = 20;
    csr.guard = 10;
    KVCache with(exact, Keep{.sinks = 4}, csr);
    for (auto* cache : {&without, &with}) {
      feed(*cache, all, 0, 500);
      cache->compress();
    }
    // The newest rows are atoms now, up to 16 bits a number, and so are some of the worst.
    const Tensors& in = all[1];
    Index near = 0;
    for (Index r = 4; r < 500; ++r) {
      const auto want = in.values.block(r, 32, 1, 32);
      const double size = double(want.squaredNorm());
      const double error = double((with.values(1, 1).row(r) - want).squaredNorm());
      near += error < 1e-5 * size;
      if (r >= 480) {
        ASSERT_LT(error, 1e-5 * size) << r;
        ASSERT_LT(double((with.keys(1, 1).row(r) - in.keys.block(r, 32, 1, 32)).squaredNorm()),
                  1e-5 * size);
      }
    }
    EXPECT_EQ(near, 30);
    EXPECT_GT(relative_error(without.values(1, 1).bottomRows(20), in.values.block(480, 32, 20, 32)),
              0.3);
    // Counted, once a head and side, f16; the dictionaries stay shared.
    EXPECT_EQ(with.bytes_shared(), without.bytes_shared());
    const std::size_t atoms = std::size_t{4} * 2 * 30 * 32 * 2;
    EXPECT_EQ(with.bytes() - with.bytes_shared(),
              without.bytes() - without.bytes_shared() + atoms -
                  4 * 2 * sizeof(std::uint32_t));  // their own dictionaries need no names
    // Learnt once; what follows uses the same atoms, forks too.
    const Matrix keys = with.keys(0, 1);
    auto fork = with.fork();
    const Matrix got = feed(fork, all, 500, 100);
    expect_equals_definition(fork, all, 500, got);
    fork.compress();
    EXPECT_EQ(fork.keys(0, 1).topRows(500), keys);
    const Matrix more = feed(fork, all, 600, 1);
    expect_equals_definition(fork, all, 600, more);
    EXPECT_FALSE(dictionaries.shared()->encoding());
  }
  // A limit in bytes holds with them.
  CSR csr{.atoms = 3, .dictionary = example(), .sampled = 16, .guard = 16};
  KVCache cache(shape, Keep{.bytes = 200000, .sinks = 4}, KeyDiff{}, csr);
  feed(cache, all, 0, 700);
  cache.compress();
  EXPECT_LE(cache.bytes(), 200000u);
  EXPECT_GT(cache.bytes(), 150000u);
}

TEST(CSRCache, BadInput) {
  const auto error = [&](const CSR& csr, Shape of = shape) {
    return message_of([&] { KVCache cache(of, csr); });
  };
  const auto with = [&](auto&& change) {
    DictionarySet set = example();
    change(set);
    return message_of([&] { KVCache cache(shape, CSR{.atoms = 3, .dictionary = set}); });
  };
  expect_says(error({}), "CSR::dictionary is missing");
  Shape other = shape;
  other.head_dim = 64;
  expect_says(error({.atoms = 3, .dictionary = example()}, other),
              "CSR::dictionary is for keys of 32");
  other = shape;
  other.layers = 3;
  expect_says(error({.atoms = 3, .dictionary = example()}, other),
              "CSR::dictionary is for 2 layers");
  expect_says(error({.atoms = 0, .dictionary = example()}), "CSR::atoms is 0");
  expect_says(error({.atoms = 9, .dictionary = example()}), "CSR::atoms is 9; the dictionary has");
  expect_says(error({.atoms = 3, .dictionary = example(true, 2)}), "CSR::atoms is 3");
  expect_says(error({.atoms = 4, .value_atoms = 5, .dictionary = example(true, 2)}),
              "CSR::value_atoms is 5");
  expect_says(error({.atoms = 65, .format = SparseCode::pairs, .dictionary = example()}),
              "CSR::atoms is 65");
  expect_says(error({.atoms = 3, .value_atoms = -1, .dictionary = example()}),
              "CSR::value_atoms is -1");
  expect_says(error({.atoms = 3, .pursuit = PursuitMethod::orthogonal, .dictionary = example()}),
              "CSR::pursuit");
  expect_says(with([](DictionarySet& set) { set.rope_frequencies.clear(); }),
              "CSR::dictionary: its keys are coded before RoPE");
  expect_says(with([](DictionarySet& set) {
                set.dictionaries[0] = Dictionary(32, 4000, random_atoms(4000, 32, 1).data())
                                          .with_levels(3, 64, std::vector<float>(192, 0.5f).data());
              }),
              "CSR::format: 4000 atoms and 64 levels");
  expect_says(error({.atoms = 3, .dictionary = example(), .guard = -1}), "CSR::guard is -1");
  expect_says(error({.atoms = 3, .dictionary = example(), .sampled = 4000}),
              "CSR::format: 4200 atoms and 16 levels");
  // A damaged file.
  const File file(example());
  std::FILE* bytes = std::fopen(file.path.c_str(), "r+b");
  std::fseek(bytes, 200, SEEK_SET);
  std::fputc(1 ^ std::fgetc(bytes), bytes);
  std::fclose(bytes);
  expect_says(message_of([&] { Dictionaries{file.path}; }), "CSR::dictionary: " + file.path);
  expect_says(message_of([&] { Dictionaries{file.path}; }), "checksum");
}

}  // namespace csr_test
