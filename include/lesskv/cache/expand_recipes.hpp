// SPDX-License-Identifier: MIT
// Recipes by name (recipes.hpp) in a spec.
#pragma once

#include <algorithm>
#include <string_view>
#include <utility>
#include <vector>

#include "../recipes.hpp"
#include "split_spec.hpp"

LESSKV_BEGIN_NAMESPACE
namespace detail {

// A recipe's name becomes the parts that it stands for. What a keep(...) beside it says goes before what
// the recipe says; an amount takes the place of its compression.
inline std::vector<SpecPart> expand_recipes(std::vector<SpecPart> parts) {
  const recipes::Recipe* found = nullptr;
  SpecPart keep{"keep", {}};
  std::vector<SpecPart> recipe, out;
  int keeps = 0;
  for (const SpecPart& part : parts) {
    const recipes::Recipe* one = recipes::find(part.name);
    if (part.name == "keep") {
      keep = part;
      ++keeps;
    } else if (!one) {
      out.push_back(part);
    } else {
      if (found) fail("spec: two recipes, ", found->name, " and ", one->name, "; name one");
      found = one;
      recipe = split_spec(one->text);
      // Its parameters are those of the table that it leaves open.
      const auto table = std::find_if(recipe.begin(), recipe.end(),
                                      [](const SpecPart& of) { return of.name == "table"; });
      if (table == recipe.end()) {
        if (!part.arguments.empty())
          fail("spec: ", part.name, " takes no parameters; keep(...) beside it says what differs");
        continue;
      }
      if (part.arguments.empty())
        fail("spec: ", part.name, " needs the table of a model: ", part.name,
             "(file=model.calibration); examples/calibrate --kept makes one");
      table->arguments = part.arguments;
    }
  }
  if (!found || keeps > 1) return parts;
  const auto says = [&](std::string_view key) {
    return std::any_of(keep.arguments.begin(), keep.arguments.end(),
                       [&](const auto& argument) { return argument.first == key; });
  };
  const bool amount = says("fraction") || says("tokens") || says("bytes") || says("compression");
  for (SpecPart& part : recipe) {
    if (part.name != "keep") {
      out.push_back(std::move(part));
      continue;
    }
    for (auto& argument : part.arguments)
      if (!says(argument.first) && !(amount && argument.first == "compression"))
        keep.arguments.push_back(std::move(argument));
  }
  out.insert(out.begin(), std::move(keep));
  return out;
}

}  // namespace detail
LESSKV_END_NAMESPACE
