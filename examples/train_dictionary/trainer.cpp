// SPDX-License-Identifier: MIT
#include "trainer.hpp"

#include <Eigen/Core>
#include <algorithm>
#include <cmath>
#include <numeric>

namespace training {
namespace {

using Matrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
using lesskv::detail::uz;

// Counter-based (splitmix64): the k-th number of a stream needs no state.
std::uint64_t random_at(std::uint64_t seed, std::uint64_t stream, std::uint64_t k) {
  std::uint64_t x = seed * 0x9e3779b97f4a7c15u + stream * 0xd1342543de82ef95u + k;
  x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
  x = (x ^ x >> 27) * 0x94d049bb133111ebu;
  x += seed + 0x9e3779b97f4a7c15u * (k + 1);
  x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
  x = (x ^ x >> 27) * 0x94d049bb133111ebu;
  return x ^ x >> 31;
}

Index below(std::uint64_t random, Index limit) {
  return static_cast<Index>(random % static_cast<std::uint64_t>(limit));
}

// Row i at unit norm; a row without direction gets one.
void normalise(float* row, int dim) {
  double square = 0;
  for (int c = 0; c < dim; ++c) square += double(row[c]) * row[c];
  if (!(square > 1e-30)) {
    std::fill(row, row + dim, 0.f);
    row[0] = 1;
    return;
  }
  for (int c = 0; c < dim; ++c) row[c] = static_cast<float>(row[c] / std::sqrt(square));
}

constexpr std::uint64_t cluster_stream = 1u << 30;

}  // namespace

double diversity_loss(const std::vector<float>& atoms, int dim, std::vector<float>* gradient) {
  const Index count = static_cast<Index>(atoms.size()) / dim;
  const double n2 = double(count) * double(count);
  const Eigen::Map<const Matrix> d(atoms.data(), count, dim);
  const Matrix frame = d.transpose() * d;
  if (gradient) {
    gradient->resize(atoms.size());
    Eigen::Map<Matrix>(gradient->data(), count, dim) = static_cast<float>(4 / n2) * (d * frame - d);
  }
  return (frame.cast<double>().squaredNorm() - double(count)) / n2;
}

Trainer::Trainer(const TrainerOptions& options, Samples samples)
    : options_(options), samples_(std::move(samples)) {
  if (samples_.count < options_.atoms)
    lesskv::fail("Trainer::samples: ", samples_.count, " vectors for ", options_.atoms, " atoms");
  if (options_.atoms < 1 || options_.steps < 1 || options_.batch < 1 || options_.batches < 0)
    lesskv::fail("Trainer::options: atoms, steps and batch must be positive");
}

void Trainer::start() {
  const int dim = samples_.dim;
  const Index count = options_.atoms;
  const Index rows = std::min(samples_.count, options_.cluster_rows * count);
  // Without repetition where few are there: a stride through the samples from a random start.
  Matrix x(rows, dim), centre(count, dim);
  const Index from = below(random_at(options_.seed, cluster_stream, 0), samples_.count);
  for (Index i = 0; i < rows; ++i) {
    const Index spread = static_cast<Index>(double(i) * double(samples_.count) / double(rows));
    samples_.read((from + spread) % samples_.count, x.row(i).data());
  }
  for (Index i = 0; i < count; ++i)
    centre.row(i) = x.row(static_cast<Index>(double(i) * double(rows) / double(count)));
  std::vector<Index> owner(uz(rows));
  std::vector<float> distance(uz(rows));
  Matrix products;
  for (int round = 0; round < options_.cluster_rounds; ++round) {
    const Eigen::VectorXf half = 0.5f * centre.rowwise().squaredNorm();
    constexpr Index part = 512;
    for (Index first = 0; first < rows; first += part) {
      const Index n = std::min(part, rows - first);
      products.noalias() = x.middleRows(first, n) * centre.transpose();
      for (Index i = 0; i < n; ++i) {
        Index best = 0;
        float most = products(i, 0) - half[0];
        for (Index k = 1; k < count; ++k)
          if (products(i, k) - half[k] > most) {
            most = products(i, k) - half[k];
            best = k;
          }
        owner[uz(first + i)] = best;
        distance[uz(first + i)] = x.row(first + i).squaredNorm() - 2 * most;
      }
    }
    centre.setZero();
    std::vector<Index> members(uz(count), 0);
    for (Index i = 0; i < rows; ++i) {
      centre.row(owner[uz(i)]) += x.row(i);
      ++members[uz(owner[uz(i)])];
    }
    // A centre without members moves to one of the vectors farthest from theirs.
    std::vector<Index> far(uz(rows));
    std::iota(far.begin(), far.end(), Index{0});
    const Index empty = std::count(members.begin(), members.end(), Index{0});
    std::partial_sort(far.begin(), far.begin() + empty, far.end(), [&](Index a, Index b) {
      return distance[uz(a)] != distance[uz(b)] ? distance[uz(a)] > distance[uz(b)] : a < b;
    });
    Index next = 0;
    for (Index k = 0; k < count; ++k) {
      if (members[uz(k)] > 0)
        centre.row(k) /= static_cast<float>(members[uz(k)]);
      else
        centre.row(k) = x.row(far[uz(next++)]);
    }
  }
  state_ = State();
  state_.atoms.assign(centre.data(), centre.data() + count * dim);
  for (Index i = 0; i < count; ++i) normalise(state_.atoms.data() + i * dim, dim);
  state_.first_moment.assign(state_.atoms.size(), 0.f);
  state_.second_moment.assign(state_.atoms.size(), 0.f);
  state_.use.assign(uz(count), 0.f);
}

void Trainer::load_batch(int batch, std::vector<float>& rows) const {
  rows.resize(uz(options_.batch * samples_.dim));
  for (Index i = 0; i < options_.batch; ++i)
    samples_.read(below(random_at(options_.seed, static_cast<std::uint64_t>(batch) + 2,
                                  static_cast<std::uint64_t>(i)),
                        samples_.count),
                  rows.data() + i * samples_.dim);
}

bool Trainer::step() {
  if (state_.batch >= options_.batches) return false;
  const int dim = samples_.dim, steps = options_.steps;
  const Index n = options_.batch;
  std::vector<float> rows;
  load_batch(state_.batch, rows);
  const lesskv::Pursuit coder(
      lesskv::Dictionary(dim, options_.atoms, state_.atoms.data(), lesskv::DType::f32));
  std::vector<std::int32_t> index(uz(n * steps)), count(uz(n));
  std::vector<float> coefficient(uz(n * steps));
  coder.encode(rows.data(), n, dim, {.steps = steps},
               {index.data(), coefficient.data(), count.data()});

  double energy = 0, error = 0;
  for (const float x : rows) energy += double(x) * x;
  // What is left of each vector, then L_MSE's gradient -2 / B residual * coefficient.
  for (Index i = 0; i < n; ++i) {
    float* x = rows.data() + i * dim;
    for (Index k = i * steps; k < i * steps + count[uz(i)]; ++k) {
      const float* atom = state_.atoms.data() + Index{index[uz(k)]} * dim;
      for (int c = 0; c < dim; ++c) x[c] -= coefficient[uz(k)] * atom[c];
    }
  }
  for (const float x : rows) error += double(x) * x;
  std::vector<float> gradient;
  diversity_ = diversity_loss(state_.atoms, dim, &gradient);
  const double mse = error / double(n);
  const double beta =
      diversity_ > 0 ? std::clamp(options_.diversity * mse / diversity_, 0.0, 1.0) : 0;
  for (float& g : gradient) g *= static_cast<float>(beta);
  const float factor = -2.f / static_cast<float>(n);
  for (float& use : state_.use) use *= 0.9f;
  for (Index i = 0; i < n; ++i)
    for (Index k = i * steps; k < i * steps + count[uz(i)]; ++k) {
      const Index atom = index[uz(k)];
      float* g = gradient.data() + atom * dim;
      for (int c = 0; c < dim; ++c) g[c] += factor * coefficient[uz(k)] * rows[uz(i * dim + c)];
      state_.use[uz(atom)] += 1;
    }
  descend(gradient);
  const double share = energy > 0 ? error / energy : 0;
  state_.error = state_.batch == 0 ? share : 0.9 * state_.error + 0.1 * share;
  ++state_.batch;
  // The last batches only settle what is there.
  if (options_.revive_every > 0 && state_.batch % options_.revive_every == 0 &&
      state_.batch <= options_.batches * 3 / 4)
    revive(rows);
  return state_.batch < options_.batches;
}

void Trainer::descend(const std::vector<float>& gradient) {
  const int dim = samples_.dim;
  const double t = state_.batch + 1;
  const double along = options_.batches > 1 ? double(state_.batch) / (options_.batches - 1) : 0;
  const double rate = options_.rate_first + along * (options_.rate_last - options_.rate_first);
  const float b1 = 0.9f, b2 = 0.999f;
  const float scale1 = static_cast<float>(1 / (1 - std::pow(0.9, t)));
  const float scale2 = static_cast<float>(1 / (1 - std::pow(0.999, t)));
  for (Index i = 0; i < options_.atoms; ++i) {
    float* atom = state_.atoms.data() + i * dim;
    float* m = state_.first_moment.data() + i * dim;
    float* v = state_.second_moment.data() + i * dim;
    const float* g = gradient.data() + i * dim;
    float radial = 0;
    for (int c = 0; c < dim; ++c) radial += g[c] * atom[c];
    for (int c = 0; c < dim; ++c) {
      const float tangent = g[c] - radial * atom[c];
      m[c] = b1 * m[c] + (1 - b1) * tangent;
      v[c] = b2 * v[c] + (1 - b2) * tangent * tangent;
      atom[c] -= static_cast<float>(rate) * m[c] * scale1 / (std::sqrt(v[c] * scale2) + 1e-8f);
    }
    normalise(atom, dim);
  }
}

void Trainer::revive(const std::vector<float>& residual) {
  const int dim = samples_.dim;
  const float mean = std::accumulate(state_.use.begin(), state_.use.end(), 0.f) /
                     static_cast<float>(options_.atoms);
  std::vector<Index> dead;
  for (Index i = 0; i < options_.atoms; ++i)
    if (state_.use[uz(i)] < static_cast<float>(options_.revive_below) * mean) dead.push_back(i);
  if (dead.empty()) return;
  std::vector<std::pair<float, Index>> worst;
  for (Index i = 0; i < options_.batch; ++i) {
    float square = 0;
    for (int c = 0; c < dim; ++c) square += residual[uz(i * dim + c)] * residual[uz(i * dim + c)];
    if (square > 0) worst.emplace_back(-square, i);
  }
  std::sort(worst.begin(), worst.end());
  for (std::size_t k = 0; k < std::min(dead.size(), worst.size()); ++k) {
    const Index at = dead[k] * dim;
    std::copy_n(residual.data() + worst[k].second * dim, dim, state_.atoms.data() + at);
    normalise(state_.atoms.data() + at, dim);
    std::fill_n(state_.first_moment.data() + at, dim, 0.f);
    std::fill_n(state_.second_moment.data() + at, dim, 0.f);
    state_.use[uz(dead[k])] = mean;
  }
}

double Trainer::error_on(Index first, Index count) const {
  const int dim = samples_.dim;
  const lesskv::Pursuit coder(dictionary(lesskv::DType::f32));
  std::vector<float> rows(uz(count * dim));
  for (Index i = 0; i < count; ++i) samples_.read(first + i, rows.data() + i * dim);
  const Index slots = count * options_.steps;
  std::vector<std::int32_t> index(uz(slots)), counts(uz(count));
  std::vector<float> coefficient(uz(slots)), left(uz(slots + count));
  coder.encode(rows.data(), count, dim, {.steps = options_.steps},
               {index.data(), coefficient.data(), counts.data(), nullptr, left.data()});
  double energy = 0, error = 0;
  for (Index i = 0; i < count; ++i) {
    energy += left[uz(i * (options_.steps + 1))];
    error += left[uz(i * (options_.steps + 1) + counts[uz(i)])];
  }
  return energy > 0 ? error / energy : 0;
}

lesskv::Dictionary Trainer::dictionary(lesskv::DType stored) const {
  return lesskv::Dictionary(samples_.dim, options_.atoms, state_.atoms.data(), stored);
}

void Trainer::resume(State state) {
  const std::size_t size = uz(options_.atoms * samples_.dim);
  if (state.atoms.size() != size || state.first_moment.size() != size ||
      state.second_moment.size() != size || state.use.size() != uz(options_.atoms) ||
      state.batch < 0 || state.batch > options_.batches)
    lesskv::fail("Trainer::resume: the state is of other options");
  state_ = std::move(state);
}

}  // namespace training
