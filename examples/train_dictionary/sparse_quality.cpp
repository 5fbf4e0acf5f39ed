// SPDX-License-Identifier: MIT
// sparse_quality: what sparse codes cost and keep on real keys and values, one line per code.
//   sparse_quality --dictionary FILE [--uncentred FILE] [--data tests/data/inputs]
// The tensors are keys (after RoPE), values and queries of layers 0, 15 and 29 over a document that
// no dictionary has seen. Keys are coded before RoPE. Printed per code: bits a number without
// dictionaries; |error|^2 / variance of keys and of values, the mean over heads; and the error of
// the logits, the root mean square of q.(k - decoded k) / sqrt(d) over the last 64 queries.
#include <CLI/CLI.hpp>
#include <array>
#include <cmath>
#include <cstdio>
#include <functional>
#include <lesskv/codec/sparse/codec.hpp>
#include <lesskv/codec/sparse/dictionary_set.hpp>
#include <lesskv/codec/sparse/levels.hpp>
#include <lesskv/codec/sparse/prompt.hpp>
#include <lesskv/core/rope.hpp>
#include <plan/npy.hpp>
#include <random>

namespace {

using namespace lesskv;
using Vector = std::vector<float>;
using lesskv::detail::uz;

constexpr Index tokens = 1024, dim = 64, heads = 3, group = 3, window = 64;
constexpr std::array layers = {0, 15, 29};

// One head: rows [tokens][dim], keys before RoPE; queries [window * group][dim] after it.
struct HeadData {
  int layer, head;
  Vector keys, values, queries;
};

Vector rows_of(const std::string& file, Index head, Index first, Index count, Index all) {
  const npy::Tensor tensor = npy::read(file);
  if (tensor.dtype != DType::f16 || tensor.shape.size() != 3 || tensor.shape[1] != all ||
      tensor.shape[2] != dim)
    throw std::runtime_error(file + ": not the tensor that is expected");
  Vector out(uz(count * dim));
  const auto* from = reinterpret_cast<const f16*>(tensor.data.data());
  for (Index i = 0; i < count * dim; ++i)
    out[uz(i)] = to_float(from[(head * all + first) * dim + i]);
  return out;
}

std::vector<HeadData> load(const std::string& folder, const Rotation& rotation) {
  std::vector<HeadData> out;
  for (const int layer : layers) {
    const std::string name = (layer < 10 ? "l0" : "l") + std::to_string(layer) + ".npy";
    for (int head = 0; head < heads; ++head) {
      HeadData data{layer,
                    head,
                    rows_of(folder + "/k_" + name, head, 0, tokens, tokens),
                    rows_of(folder + "/v_" + name, head, 0, tokens, tokens),
                    {}};
      for (Index t = 0; t < tokens; ++t) rotation.undo(data.keys.data() + t * dim, Position{t});
      for (Index g = 0; g < group; ++g) {
        const Vector q =
            layer == 15
                ? rows_of(folder + "/q_" + name, head * group + g, tokens - window, window, tokens)
                : rows_of(folder + "/qwin64_" + name, head * group + g, 0, window, window);
        data.queries.insert(data.queries.end(), q.begin(), q.end());
      }
      out.push_back(std::move(data));
    }
  }
  return out;
}

double variance(const Vector& rows, Index first) {
  double out = 0;
  for (Index c = 0; c < dim; ++c) {
    double sum = 0, square = 0;
    for (Index t = first; t < tokens; ++t) {
      const double x = double(rows[uz(t * dim + c)]);
      sum += x;
      square += x * x;
    }
    out += square - sum * sum / double(tokens - first);
  }
  return out;
}

// What share of the energy is the mean: the least and the most of all heads.
void print_means(const std::vector<HeadData>& all) {
  for (const bool keys : {true, false}) {
    double least = 1, most = 0;
    for (const HeadData& head : all) {
      const Vector& rows = keys ? head.keys : head.values;
      double energy = 0;
      for (std::size_t i = uz(4 * dim); i < rows.size(); ++i)
        energy += double(rows[i]) * double(rows[i]);
      const double share = 1 - variance(rows, 4) / energy;
      least = std::min(least, share);
      most = std::max(most, share);
    }
    std::printf("mean of a head: %.0f to %.0f %% of the energy of its %s\n", 100 * least,
                100 * most, keys ? "keys before RoPE" : "values");
  }
}

struct Result {
  double bits = 0, keys = 0, logits = 0, values = 0;
};

// Decoded rows [first, tokens) of a side of a head, and the bits that were used.
using Coder = std::function<double(const HeadData&, bool keys, Index first, Vector& decoded)>;

// Rows before `first` are not judged: sinks, or what a dictionary was made of.
Result judge(const std::vector<HeadData>& all, const Rotation& rotation, Index first,
             const Coder& code) {
  Result out;
  for (const HeadData& head : all)
    for (const bool keys : {true, false}) {
      const Vector& rows = keys ? head.keys : head.values;
      Vector decoded(rows.size());
      const double bits = code(head, keys, first, decoded);
      double error = 0;
      for (Index i = first * dim; i < tokens * dim; ++i)
        error += std::pow(double(rows[uz(i)]) - double(decoded[uz(i)]), 2);
      const double share = error / variance(rows, first) / double(all.size());
      (keys ? out.keys : out.values) += share;
      out.bits += bits / double(2 * all.size());
      if (!keys) continue;
      double square = 0;
      Vector difference(uz(dim));
      for (Index t = first; t < tokens; ++t) {
        for (Index c = 0; c < dim; ++c)
          difference[uz(c)] = rows[uz(t * dim + c)] - decoded[uz(t * dim + c)];
        rotation.apply(difference.data(), Position{t});
        for (Index q = 0; q < window * group; ++q) {
          double dot = 0;
          for (Index c = 0; c < dim; ++c)
            dot += double(head.queries[uz(q * dim + c)]) * double(difference[uz(c)]);
          square += dot * dot / double(dim);
        }
      }
      out.logits +=
          std::sqrt(square / double((tokens - first) * window * group)) / double(all.size());
    }
  return out;
}

double code_blocks(const SparseCodec& codec, const Vector& rows, Index first, Vector& decoded) {
  const SparseCodec::Coders coders = codec.make_coders();
  std::size_t bytes = 0;
  std::vector<std::byte> block(codec.block_bytes(dim, SparseCodec::block_rows));
  for (Index t = first; t < tokens; t += SparseCodec::block_rows) {
    const Index n = std::min(SparseCodec::block_rows, tokens - t);
    codec.encode(rows.data() + t * dim, n, block.data(), coders);
    codec.decode(block.data(), n, 0, n, decoded.data() + t * dim);
    bytes += codec.used_bytes(block.data(), n);
  }
  return 8.0 * double(bytes) / double((tokens - first) * dim);
}

Coder sparse(const DictionarySet& set, SparseFormat format, bool means = true) {
  return [&set, format, means](const HeadData& head, bool keys, Index first, Vector& decoded) {
    const std::span<const float> mean =
        keys ? set.mean_of_keys(head.layer, head.head) : set.mean_of_values(head.layer, head.head);
    const SparseCodec codec(format, keys ? set.keys(head.layer) : set.values(head.layer),
                            means ? mean : std::span<const float>());
    return code_blocks(codec, keys ? head.keys : head.values, first, decoded);
  };
}

// Centred rows of a head, [first, last).
Vector centred(const DictionarySet& set, const HeadData& head, bool keys, Index first, Index last) {
  const std::span<const float> mean =
      keys ? set.mean_of_keys(head.layer, head.head) : set.mean_of_values(head.layer, head.head);
  const Vector& rows = keys ? head.keys : head.values;
  Vector out(rows.begin() + first * dim, rows.begin() + last * dim);
  for (std::size_t i = 0; i < out.size(); ++i) out[i] -= mean.empty() ? 0 : mean[i % uz(dim)];
  return out;
}

// The same number of atoms, drawn at random, or taken from the first half of this very document
// (three heads of the layer: what a prompt can give).
Coder untrained(const DictionarySet& set, const std::vector<HeadData>& all, bool sampled,
                SparseFormat format) {
  return [&set, &all, sampled, format](const HeadData& head, bool keys, Index first,
                                       Vector& decoded) {
    const Index count = set.dictionaries[0].size();
    Vector rows;
    if (sampled) {
      for (const HeadData& other : all)
        if (other.layer == head.layer) {
          const Vector part = centred(set, other, keys, 4, tokens / 2);
          rows.insert(rows.end(), part.begin(), part.end());
        }
    } else {
      std::mt19937 random(7);
      std::normal_distribution<float> normal;
      rows.resize(uz(count * dim));
      for (float& x : rows) x = normal(random);
    }
    // Spread over all rows.
    const Index have = static_cast<Index>(rows.size()) / dim;
    Vector picked;
    for (Index i = 0; i < count; ++i)
      picked.insert(picked.end(), rows.begin() + i * have / count * dim,
                    rows.begin() + (i * have / count + 1) * dim);
    const Vector atoms = sampled_atoms(picked.data(), count, dim, count);
    Dictionary plain(static_cast<int>(dim), static_cast<Index>(atoms.size()) / dim, atoms.data());
    const Vector fit = centred(set, head, keys, 4, tokens / 2);
    const Dictionary d = fit_levels(Pursuit(plain), fit.data(), tokens / 2 - 4, format.atoms, 64);
    const std::span<const float> mean =
        keys ? set.mean_of_keys(head.layer, head.head) : set.mean_of_values(head.layer, head.head);
    return code_blocks(SparseCodec(format, {d}, mean), keys ? head.keys : head.values, first,
                       decoded);
  };
}

// The rival of equal bits: mean of the head, Hadamard, Lloyd-Max levels of a normal, one f16 scale
// a row.
Coder scalar(const DictionarySet& set, int bits) {
  std::mt19937 random(3);
  std::normal_distribution<float> normal;
  Vector sample(200000);
  for (float& x : sample) x = normal(random);
  Vector levels(uz(Index{1} << bits));
  lesskv::detail::lloyd_levels(sample, 1 << bits, levels.data());
  return [&set, levels, bits](const HeadData& head, bool keys, Index first, Vector& decoded) {
    const Vector rows = centred(set, head, keys, 0, tokens);
    const Vector& whole = keys ? head.keys : head.values;
    const auto hadamard = [](float* x) {
      for (Index h = 1; h < dim; h *= 2)
        for (Index i = 0; i < dim; i += 2 * h)
          for (Index j = i; j < i + h; ++j) {
            const float a = x[j], b = x[j + h];
            x[j] = a + b;
            x[j + h] = a - b;
          }
      for (Index i = 0; i < dim; ++i) x[i] /= std::sqrt(float(dim));
    };
    for (Index t = first; t < tokens; ++t) {
      Vector x(rows.begin() + t * dim, rows.begin() + (t + 1) * dim), y(x.size());
      hadamard(x.data());
      double square = 0, xy = 0, yy = 0;
      for (const float v : x) square += double(v) * double(v);
      const float size = static_cast<float>(std::sqrt(square / double(dim)));
      for (std::size_t c = 0; c < x.size(); ++c) {
        y[c] = levels[0];
        for (const float l : levels)
          if (std::abs(l * size - x[c]) < std::abs(y[c] * size - x[c])) y[c] = l;
        xy += double(x[c]) * double(y[c]);
        yy += double(y[c]) * double(y[c]);
      }
      const float scale = to_float(to_f16(static_cast<float>(yy > 0 ? xy / yy : 0)));
      for (float& v : y) v *= scale;
      hadamard(y.data());
      for (Index c = 0; c < dim; ++c)
        decoded[uz(t * dim + c)] = y[uz(c)] + whole[uz(t * dim + c)] - rows[uz(t * dim + c)];
    }
    return bits + 16.0 / double(dim);
  };
}

void print(const char* name, const Result& r) {
  std::printf("%-44s %5.2f  %6.3f  %6.3f  %6.3f\n", name, r.bits, r.keys, r.logits, r.values);
  std::fflush(stdout);
}

void run(const std::string& file, const std::string& uncentred, const std::string& data) {
  const DictionarySet set = DictionarySet::load(file);
  if (set.key_dim() != dim || set.kv_heads != heads || set.layers <= layers.back() ||
      !set.keys_before_rope)
    throw std::runtime_error(file + ": not for the model of these tensors, or keys after RoPE");
  const Rotation rotation(Rope{.theta = 100000}, static_cast<int>(dim));
  const std::vector<HeadData> all = load(data, rotation);
  const auto line = [&](const std::string& name, Index first, const Coder& coder) {
    print(name.c_str(), judge(all, rotation, first, coder));
  };
  std::printf("%zu dictionaries of %td atoms, %zu bytes; rows from 4 on, 9 heads of 3 layers\n",
              set.dictionaries.size(), set.dictionaries[0].size(), set.bytes());
  print_means(all);
  std::printf("%-44s  bits    keys  logits  values\n", "code");
  const bool whole = set.key_chunks() == 1 && set.value_chunks() == 1;
  for (const int atoms : {3, 7, 15}) {
    if (!whole) break;
    line("packed, " + std::to_string(atoms) + " atoms", 4,
         sparse(set, {SparseCode::packed, atoms}));
  }
  for (const int atoms : {2, 4, 8}) {
    const std::string text = std::to_string(atoms) + " atoms";
    line("CSR as published (f16 pairs), " + text, 4, sparse(set, {SparseCode::pairs, atoms}));
    line("  least squares on these", 4,
         sparse(set, {SparseCode::pairs, atoms, PursuitMethod::refit}));
    line("  OMP", 4, sparse(set, {SparseCode::pairs, atoms, PursuitMethod::orthogonal}));
  }
  for (const int atoms : {3, 5, 11})
    if (whole)
      line("Lexico's pairs (OMP, E4M3), " + std::to_string(atoms) + " atoms", 4,
           sparse(set, {SparseCode::lexico, atoms, PursuitMethod::orthogonal}));
  for (const float tolerance : {0.7f, 0.5f})
    line("Lexico's pairs, OMP until " + std::to_string(tolerance).substr(0, 3) + " of the norm", 4,
         sparse(set, {SparseCode::lexico, 16, PursuitMethod::orthogonal, tolerance}));
  if (!uncentred.empty()) {
    const DictionarySet with_mean = DictionarySet::load(uncentred);
    for (const int atoms : {3, 7})
      line("packed, " + std::to_string(atoms) + " atoms, mean not removed", 4,
           sparse(with_mean, {SparseCode::packed, atoms}, false));
  }
  for (const int bits : {1, 2, 4})
    line("scalar: Hadamard, Lloyd-Max, " + std::to_string(bits) + " bits", 4, scalar(set, bits));
  if (!whole) return;
  std::printf("-- second half of the document only\n");
  for (const int atoms : {3, 7}) {
    const std::string text = "packed, " + std::to_string(atoms) + " atoms, dictionary ";
    const SparseFormat format{SparseCode::packed, atoms};
    line(text + "trained", tokens / 2, sparse(set, format));
    line(text + "sampled from prompt", tokens / 2, untrained(set, all, true, format));
    line(text + "random", tokens / 2, untrained(set, all, false, format));
  }
}

}  // namespace

int main(int argc, char** argv) {
  std::string file, uncentred, data = "tests/data/inputs";
  CLI::App app{"What sparse codes keep of real keys and values."};
  app.add_option("--dictionary", file, "of train_dictionary")->required()->check(CLI::ExistingFile);
  app.add_option("--uncentred", uncentred, "another, trained with --no-means")
      ->check(CLI::ExistingFile);
  app.add_option("--data", data, "folder of the tensors")->check(CLI::ExistingDirectory);
  CLI11_PARSE(app, argc, argv);
  try {
    run(file, uncentred, data);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "sparse_quality: %s\n", error.what());
    return 1;
  }
}
