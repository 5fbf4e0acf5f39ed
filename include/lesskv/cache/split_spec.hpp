// SPDX-License-Identifier: MIT
// The parts of a spec, "name(key=value,...)+name+...", before anything is made of them.
#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "../core/error.hpp"

LESSKV_BEGIN_NAMESPACE
namespace detail {

struct SpecPart {
  std::string name;
  std::vector<std::pair<std::string, std::string>> arguments;
};

inline std::vector<SpecPart> split_spec(std::string_view spec) {
  std::string text;
  for (const char c : spec)
    if (c != ' ' && c != '\t' && c != '\n') text += c;
  if (text.empty()) fail("spec: it is empty; 'exact' keeps everything");
  std::vector<SpecPart> parts;
  std::size_t at = 0;
  const auto word = [&](const char* what) {
    const std::size_t start = at;
    while (at < text.size() && std::string_view("+(),=").find(text[at]) == std::string_view::npos)
      ++at;
    if (at == start)
      fail("spec: ", what, " is missing at character ", start + 1, " of '", text, "'");
    return text.substr(start, at - start);
  };
  // A word with the parentheses that follow it, whatever is inside.
  const auto nested = [&](std::string begin) {
    if (at >= text.size() || text[at] != '(') return begin;
    const std::size_t start = at;
    for (int depth = 0; at < text.size();) {
      depth += text[at] == '(' ? 1 : text[at] == ')' ? -1 : 0;
      ++at;
      if (depth == 0) return begin + text.substr(start, at - start);
    }
    fail("spec: '", begin, "': ')' is missing");
  };
  while (at < text.size() || !parts.empty()) {
    SpecPart part{word("a name"), {}};
    if (at < text.size() && text[at] == '(') {
      ++at;
      while (at < text.size() && text[at] != ')') {
        std::string key = word("a parameter");
        if (at < text.size() && text[at] == '=') {
          ++at;
          part.arguments.emplace_back(std::move(key), nested(word("a value")));
        } else {
          part.arguments.emplace_back("", nested(std::move(key)));
        }
        if (at < text.size() && text[at] == ',')
          ++at;
        else
          break;
      }
      if (at >= text.size() || text[at] != ')') fail("spec: '", part.name, "': ')' is missing");
      ++at;
    }
    parts.push_back(std::move(part));
    if (at == text.size()) break;
    if (text[at] != '+') fail("spec: '+' is missing at character ", at + 1, " of '", text, "'");
    ++at;
  }
  return parts;
}

}  // namespace detail
LESSKV_END_NAMESPACE
