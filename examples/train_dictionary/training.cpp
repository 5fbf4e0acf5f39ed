// SPDX-License-Identifier: MIT
#include "training.hpp"

#include <atomic>
#include <cstdio>
#include <cstring>
#include <exception>
#include <fstream>
#include <iterator>
#include <lesskv/codec/sparse/levels.hpp>
#include <mutex>
#include <thread>

#include "grouping.hpp"

namespace training {
namespace {

using lesskv::detail::uz;

void run_parallel(int threads, std::size_t count, const std::function<void(std::size_t)>& job) {
  std::atomic<std::size_t> next{0};
  std::exception_ptr failure;
  std::mutex mutex;
  const auto work = [&] {
    try {
      for (std::size_t i = next++; i < count; i = next++) job(i);
    } catch (...) {
      const std::lock_guard lock(mutex);
      if (!failure) failure = std::current_exception();
      next = count;
    }
  };
  std::vector<std::thread> others;
  for (int t = 1; t < threads; ++t) others.emplace_back(work);
  work();
  for (std::thread& thread : others) thread.join();
  if (failure) std::rethrow_exception(failure);
}

// One dictionary to be learnt: a chunk of the vectors of some layers.
struct Job {
  const Vectors* vectors;
  std::vector<int> layers;
  int chunk, chunks;

  // Heads differ in size by an order of magnitude; at equal size all count alike. Pursuit does not
  // mind the scale of what it codes.
  Samples samples() const {
    Samples out;
    out.dim = vectors->dim / chunks;
    const Index heads = vectors->heads, layer_count = static_cast<Index>(layers.size());
    out.count = vectors->tokens * heads * layer_count;
    out.read = [this, heads, layer_count](Index i, float* to) {
      const int layer = layers[uz(i % layer_count)];
      const Index row = i / layer_count;
      const int head = static_cast<int>(row % heads);
      static thread_local std::vector<float> whole;
      whole.resize(static_cast<std::size_t>(vectors->dim));
      vectors->read(layer, row / heads, head, whole.data());
      const float scale = vectors->scale[static_cast<std::size_t>(layer * vectors->heads + head)];
      const int dim = vectors->dim / chunks;
      for (int c = 0; c < dim; ++c)
        to[c] = whole[static_cast<std::size_t>(chunk * dim + c)] / scale;
    };
    return out;
  }
};

std::vector<int> group(const Vectors& vectors, int groups) {
  // Many: a histogram of 40,000 cells is mostly noise with few.
  constexpr Index sample = 16384;
  std::vector<std::vector<float>> rows;
  const Index all = vectors.tokens * vectors.heads, count = std::min(sample, all);
  for (int l = 0; l < vectors.layers; ++l) {
    std::vector<float> layer(uz(count * vectors.dim));
    for (Index i = 0; i < count; ++i) {
      const Index row = i * all / count;
      vectors.read(l, row / vectors.heads, static_cast<int>(row % vectors.heads),
                   layer.data() + i * vectors.dim);
    }
    rows.push_back(std::move(layer));
  }
  return group_layers_into(layer_divergence(rows, vectors.dim), groups);
}

int count_of(const std::vector<int>& groups) { return groups.empty() ? 0 : groups.back() + 1; }

// The state of all trainings: source, then the states. Local to one machine, so in its own order
// of bytes; a checksum guards against a file that was cut off.
template <class T>
void put(std::string& out, const T& x) {
  out.append(reinterpret_cast<const char*>(&x), sizeof x);
}
void put_all(std::string& out, const std::vector<float>& x) {
  put(out, static_cast<std::uint64_t>(x.size()));
  out.append(reinterpret_cast<const char*>(x.data()), x.size() * sizeof(float));
}

std::uint64_t checksum(const std::string& bytes, std::size_t size) {
  return lesskv::detail::fnv1a(reinterpret_cast<const std::byte*>(bytes.data()), size);
}

void save_state(const SetOptions& options, const std::vector<Trainer>& trainers) {
  if (options.state.empty()) return;
  std::string out;
  put(out, static_cast<std::uint64_t>(options.source.size()));
  out += options.source;
  for (const Trainer& trainer : trainers) {
    const Trainer::State& state = trainer.state();
    put(out, state.batch);
    put(out, state.error);
    for (const auto* x : {&state.atoms, &state.first_moment, &state.second_moment, &state.use})
      put_all(out, *x);
  }
  put(out, checksum(out, out.size()));
  const std::string part = options.state + ".part";
  std::ofstream file(part, std::ios::binary);
  file.write(out.data(), static_cast<std::streamsize>(out.size()));
  file.close();
  if (!file || std::rename(part.c_str(), options.state.c_str()) != 0)
    lesskv::fail(options.state, ": the state of the training cannot be written");
}

// False if there is none, or one of another source: the training then starts anew.
bool load_state(const SetOptions& options, std::vector<Trainer>& trainers) {
  if (options.state.empty()) return false;
  std::ifstream file(options.state, std::ios::binary);
  if (!file) return false;
  const std::string bytes{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
  if (bytes.size() < 8) return false;
  std::uint64_t stored = 0;
  std::memcpy(&stored, bytes.data() + bytes.size() - 8, 8);
  const std::size_t end = bytes.size() - 8;
  if (stored != checksum(bytes, end)) return false;
  std::size_t at = 0;
  const auto get = [&](void* to, std::size_t n) {
    if (n > end - at) return false;
    std::memcpy(to, bytes.data() + at, n);
    at += n;
    return true;
  };
  std::uint64_t length = 0;
  if (!get(&length, 8) || length != options.source.size() || length > end - at ||
      bytes.compare(at, length, options.source) != 0)
    return false;
  at += length;
  std::vector<Trainer::State> states(trainers.size());
  for (Trainer::State& state : states) {
    if (!get(&state.batch, sizeof state.batch) || !get(&state.error, sizeof state.error))
      return false;
    for (auto* x : {&state.atoms, &state.first_moment, &state.second_moment, &state.use}) {
      if (!get(&length, 8) || length > (end - at) / sizeof(float)) return false;
      x->resize(length);
      if (!get(x->data(), length * sizeof(float))) return false;
    }
  }
  for (std::size_t i = 0; i < trainers.size(); ++i) trainers[i].resume(std::move(states[i]));
  return true;
}

void check(const Collected& vectors, const SetOptions& options) {
  if (options.key_chunks < 1 || vectors.keys.dim % options.key_chunks != 0 ||
      options.value_chunks < 1 || vectors.values.dim % options.value_chunks != 0)
    lesskv::fail("train_set::chunks do not divide head_dim");
  if (options.key_groups < 1 || options.value_groups < 1)
    lesskv::fail("train_set::groups must be at least 1");
  if (options.parts < 1 || options.threads < 1)
    lesskv::fail("train_set::parts and threads must be at least 1");
}

}  // namespace

Index atoms_that_fit(const Collected& vectors, const SetOptions& options) {
  const std::size_t layers = static_cast<std::size_t>(vectors.keys.layers);
  const std::size_t heads = layers * static_cast<std::size_t>(vectors.keys.heads);
  const std::size_t dims = static_cast<std::size_t>(vectors.keys.dim + vectors.values.dim);
  const std::size_t dictionaries = static_cast<std::size_t>(
      options.key_groups * options.key_chunks + options.value_groups * options.value_chunks);
  const std::size_t rest =
      (options.means ? heads * dims * sizeof(float) : 0) +
      static_cast<std::size_t>(options.key_chunks + options.value_chunks) * layers * 4 +
      options.rope_frequencies.size() * sizeof(double) +
      dictionaries * static_cast<std::size_t>(options.stages * options.levels) * sizeof(float);
  // An atom of every group: together the width of a key and a value each.
  const std::size_t each = 2 * static_cast<std::size_t>(options.key_groups * vectors.keys.dim +
                                                        options.value_groups * vectors.values.dim);
  const std::size_t fit = options.max_bytes > rest ? (options.max_bytes - rest) / each : 0;
  if (fit < 16)
    lesskv::fail("train_set::max_bytes is ", options.max_bytes, "; ", rest,
                 " are needed before the first atom");
  // Full panels of the kernels; 1024 is what 10 bits can name, and then 6 are left for the level.
  return std::min(static_cast<Index>(fit / 16 * 16), Index{1} << 15);
}

TrainedSet train_set(const Collected& vectors, const SetOptions& options,
                     const Progress& progress) {
  check(vectors, options);
  TrainedSet out;
  if (progress.start) progress.start("grouping layers", 2);
  out.key_groups = group(vectors.keys, options.key_groups);
  if (progress.step) progress.step();
  out.value_groups = group(vectors.values, options.value_groups);
  if (progress.step) progress.step();

  TrainerOptions base = options.trainer;
  if (base.atoms == 0) base.atoms = atoms_that_fit(vectors, options);
  std::vector<Job> jobs;
  const auto add = [&](const Vectors& side, const std::vector<int>& groups, int chunks,
                       std::vector<std::uint32_t>& table) {
    table.resize(groups.size() * static_cast<std::size_t>(chunks));
    for (int g = 0; g < count_of(groups); ++g)
      for (int chunk = 0; chunk < chunks; ++chunk) {
        Job job{&side, {}, chunk, chunks};
        for (std::size_t l = 0; l < groups.size(); ++l)
          if (groups[l] == g) {
            job.layers.push_back(static_cast<int>(l));
            table[l * static_cast<std::size_t>(chunks) + static_cast<std::size_t>(chunk)] =
                static_cast<std::uint32_t>(jobs.size());
          }
        jobs.push_back(std::move(job));
      }
  };
  add(vectors.keys, out.key_groups, options.key_chunks, out.set.key_dictionary);
  add(vectors.values, out.value_groups, options.value_chunks, out.set.value_dictionary);

  std::vector<Trainer> trainers;
  for (std::size_t i = 0; i < jobs.size(); ++i) {
    TrainerOptions own = base;
    own.seed += i;
    trainers.emplace_back(own, jobs[i].samples());
  }
  const auto report = [&] {
    if (!progress.errors) return;
    std::vector<double> errors;
    for (const Trainer& trainer : trainers) errors.push_back(trainer.error());
    progress.errors(trainers[0].done(), errors);
  };
  out.resumed = load_state(options, trainers);
  if (!out.resumed) {
    if (progress.start) progress.start("k-means", static_cast<long>(jobs.size()));
    run_parallel(options.threads, jobs.size(), [&](std::size_t i) {
      trainers[i].start();
      if (progress.step) progress.step();
    });
    save_state(options, trainers);
  }
  if (progress.start)
    progress.start("training",
                   static_cast<long>(jobs.size()) * std::max(base.batches - trainers[0].done(), 0));
  for (int part = 1; part <= options.parts; ++part) {
    const int until = base.batches * part / options.parts;
    if (trainers[0].done() >= until) continue;
    run_parallel(options.threads, jobs.size(), [&](std::size_t i) {
      while (trainers[i].done() < until) {
        trainers[i].step();
        if (progress.step) progress.step();
      }
    });
    save_state(options, trainers);
    report();
  }

  if (progress.start) progress.start("coefficient levels", static_cast<long>(jobs.size()));
  out.set.dictionaries.resize(jobs.size());
  run_parallel(options.threads, jobs.size(), [&](std::size_t i) {
    const Samples samples = jobs[i].samples();
    const Index n = std::min(samples.count, Index{8192});
    std::vector<float> rows(uz(n * samples.dim));
    for (Index k = 0; k < n; ++k)
      samples.read(k * samples.count / n, rows.data() + k * samples.dim);
    const lesskv::Pursuit coder(trainers[i].dictionary());
    out.set.dictionaries[i] =
        lesskv::fit_levels(coder, rows.data(), n, options.stages, options.levels);
    if (progress.step) progress.step();
  });
  out.set.layers = vectors.keys.layers;
  out.set.kv_heads = vectors.keys.heads;
  out.set.keys_before_rope = options.keys_before_rope;
  out.set.rope_frequencies = options.rope_frequencies;
  if (options.means) {
    out.set.key_mean = vectors.keys.mean;
    out.set.value_mean = vectors.values.mean;
  }
  return out;
}

}  // namespace training
