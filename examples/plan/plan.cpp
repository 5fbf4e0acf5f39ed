// SPDX-License-Identifier: MIT
#include "plan.hpp"

#include <cmath>
#include <filesystem>

namespace plan {

using namespace lesskv;

namespace {

[[noreturn]] void fail(const std::string& place, const std::string& what) {
  throw std::runtime_error(place + ": " + what);
}

// What the policy wants to see of queries is there. A plan from fewer queries would be another
// policy's plan.
void check_needs(const Tensors& tensors, const PolicySpec& spec) {
  Need needs = Need::nothing, observed = Need::nothing;
  Index window = 0;
  const auto add = [&](const PolicyTraits& policy) {
    needs = needs | policy.needs;
    window = std::max(window, policy.window);
    if (policy.observes) observed = observed | policy.needs;
  };
  if (spec.scorer) add(AnyPolicy(*spec.scorer).traits());
  for (const AnyPolicy& budgeter : spec.budgeters) add(budgeter.traits());
  const bool every = asks(observed, Need::queries) || asks(observed, Need::attention);
  const Index wanted = every ? tensors.tokens : std::min(window, tensors.tokens);
  if (wanted == 0) return;
  const std::string who = "'" + spec.methods + "' looks at the queries of the newest " +
                          std::to_string(wanted) + " tokens";
  if (tensors.queries.empty() && tensors.attention.empty())
    fail("--queries", "is missing: " + who + "; give them, or --attention");
  if (tensors.queries.empty() && asks(needs, Need::queries))
    fail("--queries", "is missing: " + who + ", attention is not enough");
  const Layer& given = tensors.queries.empty() ? tensors.attention[0] : tensors.queries[0];
  if (given.rows() < wanted)
    fail(given.file, "has " + std::to_string(given.rows()) + " queries, but " + who);
}

std::string kept_file(int layer, int head) {
  return std::string("kept_l") + (layer < 10 ? "0" : "") + std::to_string(layer) + "_h" +
         std::to_string(head) + ".npy";
}

double rounded(float x, DType dtype) {
  return double{dtype == DType::f16    ? to_float(to_f16(x))
                : dtype == DType::bf16 ? to_float(to_bf16(x))
                                       : x};
}

double error_of(const Layer& layer, int head, const std::vector<std::int32_t>& rows, DType dtype) {
  double error = 0, square = 0;
  for (const std::int32_t row : rows)
    for (Index c = 0; c < layer.channels(); ++c) {
      const float x = layer.at(head, row, c);
      const double difference = rounded(x, dtype) - double{x};
      error += difference * difference;
      square += double{x} * double{x};
    }
  return square > 0 ? error / square : 0;
}

}  // namespace

std::size_t Result::bytes(std::size_t rows) const {
  return rows *
         static_cast<std::size_t>((shape.head_dim + shape.value_width()) * size_of(shape.dtype));
}

PolicySpec parse_policy(const std::string& text) {
  try {
    PolicySpec spec = parse_spec(text);
    if (!spec.has_amount())
      fail("--policy", "nothing says how much to keep; add keep(fraction=...)");
    if (spec.merger)
      fail("--policy", "'" + spec.methods + "' makes new rows of those that leave; this program " +
                           "says which rows stay, and no more");
    return spec;
  } catch (const Error& error) {
    fail("--policy", error.what());
  }
}

Result run(const Tensors& tensors, const PolicySpec& spec, float scale) {
  if (!(scale >= 0) || !std::isfinite(scale)) fail("--scale", "must be positive");
  check_needs(tensors, spec);
  Result out;
  out.shape = tensors.shape;
  out.shape.dtype = spec.dtype.value_or(out.shape.dtype);
  out.tokens = tensors.tokens;
  out.policy = spec.to_string();
  check_range(tensors, out.shape.dtype);

  Plan plan;
  try {
    AnyPlanner planner = make_planner(spec, tensors.shape);
    const Source source = [&](int layer, int head) { return tensors.head(layer, head); };
    for (int l = 0; l < out.shape.layers; ++l) {
      planner.append(l, tensors.tokens);
      if (!planner.needs_queries()) continue;
      if (!tensors.queries.empty())
        planner.observe(l, tensors.queries[static_cast<std::size_t>(l)].view(), source, {}, scale);
      else
        for (int h = 0; h < out.shape.kv_heads; ++h)
          planner.observe(l, h, make_rows(tensors.attention_of(l, h)));
    }
    plan = planner.plan(source);
    planner.commit(plan);
    for (int l = 0; l < out.shape.layers; ++l)
      for (int h = 0; h < out.shape.kv_heads; ++h) {
        HeadResult& head = out.heads.emplace_back();
        head.layer = l;
        head.head = h;
        for (const Position p : planner.positions(l, h))
          head.kept.push_back(static_cast<std::int32_t>(to_int(p)));
      }
  } catch (const Error& error) {
    fail("--policy", error.what());
  }
  out.judged = plan.judged;
  for (HeadResult& head : out.heads) {
    const auto l = static_cast<std::size_t>(head.layer);
    head.key_error = error_of(tensors.keys[l], head.head, head.kept, out.shape.dtype);
    head.value_error = error_of(tensors.values[l], head.head, head.kept, out.shape.dtype);
  }
  return out;
}

void write(const Result& result, const std::string& folder) {
  namespace fs = std::filesystem;
  std::error_code error;
  const bool made = fs::create_directories(folder, error);
  if (error || !fs::is_directory(folder, error))
    fail("--out " + folder, "is no folder and cannot be made one");
  // Complete files under other names first: files that are there already stay as they are unless
  // all of the new ones can take their place.
  struct File {
    std::string part, name;
  };
  std::vector<File> files;
  try {
    for (const HeadResult& head : result.heads) {
      const std::string name = (fs::path(folder) / kept_file(head.layer, head.head)).string();
      if (fs::is_directory(name, error)) fail(name, "is a folder");
      files.push_back({name + ".part", name});
      npy::write(files.back().part, head.kept);
    }
    for (const File& file : files) {
      fs::rename(file.part, file.name, error);
      if (error) fail(file.name, error.message());
    }
  } catch (const std::exception&) {
    for (const File& file : files) fs::remove(file.part, error);
    if (made) fs::remove(folder, error);
    throw;
  }
}

}  // namespace plan
