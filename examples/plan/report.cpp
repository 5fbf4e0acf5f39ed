// SPDX-License-Identifier: MIT
#include <algorithm>
#include <cstdarg>
#include <cstdio>

#include "plan.hpp"

namespace plan {

using namespace lesskv;

namespace {

[[gnu::format(printf, 1, 2)]] std::string format(const char* form, ...) {
  char text[256];
  va_list arguments;
  va_start(arguments, form);
  std::vsnprintf(text, sizeof text, form, arguments);
  va_end(arguments);
  return text;
}

}  // namespace

std::string table(const Result& result) {
  const std::string dtype = name_of(result.shape.dtype);
  const auto all = static_cast<std::size_t>(result.tokens);
  std::string out = "policy: " + result.policy + "\n";
  out += format("%d layers, %d query heads, %d KV heads, keys of %d and values of %d channels\n",
                result.shape.layers, result.shape.query_heads, result.shape.kv_heads,
                result.shape.head_dim, result.shape.value_width());
  out += "bytes: keys and values of the rows as " + dtype + "; NMSE: sum of squared errors / sum " +
         "of squares of the kept\nrows, made by storing them as " + dtype +
         ", not by the rows that left\n\n";
  out +=
      "layer  head      kept of rows       kept %  bytes before  bytes after   K NMSE   V NMSE\n";
  std::size_t before = 0, after = 0, rows = 0;
  double key_error = 0, value_error = 0;
  for (const HeadResult& head : result.heads) {
    const std::size_t kept = head.kept.size();
    out += format("%5d %5d %9zu of %-9zu %7.1f %13zu %12zu %8.2g %8.2g\n", head.layer, head.head,
                  kept, all, 100.0 * double(kept) / double(all), result.bytes(all),
                  result.bytes(kept), head.key_error, head.value_error);
    rows += kept;
    before += result.bytes(all);
    after += result.bytes(kept);
    key_error = std::max(key_error, head.key_error);
    value_error = std::max(value_error, head.value_error);
  }
  const std::size_t total = all * result.heads.size();
  out += format("  sum       %9zu of %-9zu %7.1f %13zu %12zu %8.2g %8.2g (largest)\n", rows, total,
                100.0 * double(rows) / double(total), before, after, key_error, value_error);
  if (!result.judged)
    out +=
        "No row was judged: the policy wants more rows before it starts (keep(every=...), the "
        "lag), or everything may stay.\n";
  return out;
}

std::string list_policies() {
  std::string out =
      "A policy is parts joined by '+', for example 'keep(fraction=0.25,sinks=16)+lagkv(lag=128)'."
      "\n  keep(...)   fraction, tokens, bytes or compression; sinks, recent, every,"
      "\n              shared=head|layer|model\n"
      "  store(...)  dtype=f32|f16|bf16\n  exact       everything stays\n\n";
  for (const MethodInfo& method : list_methods()) {
    out += method.name + ": " + method.role + ", " + method.summary + "\n";
    if (method.published.sinks > 0 || method.published.recent > 0)
      out +=
          "    pins unless keep says otherwise: sinks=" + std::to_string(method.published.sinks) +
          ", recent=" + std::to_string(method.published.recent) + "\n";
    for (const ParameterInfo& parameter : method.parameters)
      out += "    " + parameter.name + "=" + parameter.value + "  " + parameter.text + "\n";
  }
  return out;
}

}  // namespace plan
