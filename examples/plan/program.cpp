// SPDX-License-Identifier: MIT
#include "program.hpp"

#include <CLI/CLI.hpp>
#include <cstdio>

#include "plan.hpp"

namespace plan {

int program(int argc, const char* const* argv) {
  Paths paths;
  std::string policy, out;
  float scale = 0;
  CLI::App app{
      "Says which rows a policy keeps of given keys and values. A tensor is a .npy file of f32 or "
      "f16, or a folder with one file a layer: l00.npy, l01.npy, ..."};
  app.add_option("--keys", paths.keys, "keys after RoPE, [head, token, channel]");
  app.add_option("--values", paths.values, "values, [head, token, channel]");
  app.add_option("--queries", paths.queries,
                 "queries of the newest tokens after RoPE, [query_head, query, channel]");
  app.add_option("--attention", paths.attention,
                 "instead of queries: their attention weights, [query_head, query, token]");
  app.add_option("--scale", scale, "of the attention logits; default: 1 / sqrt(channels)");
  app.add_option("--policy", policy,
                 "a policy as make_planner takes it; 'list' prints all names and parameters")
      ->required();
  app.add_option("--out", out, "folder for kept_lNN_hM.npy, int32, ascending positions");
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : 1;
  }
  try {
    if (policy == "list") {
      std::fputs(list_policies().c_str(), stdout);
      return 0;
    }
    const lesskv::PolicySpec spec = parse_policy(policy);
    const Result result = run(read_tensors(paths), spec, scale);
    if (!out.empty()) write(result, out);
    std::fputs(table(result).c_str(), stdout);
    return 0;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "plan: %s\n", error.what());
    return 1;
  }
}

}  // namespace plan
