// SPDX-License-Identifier: MIT
// Results on file, one JSON object a line, appended as they come: what is there need not run again.
// A result is known by what it is of: unit of work, model, text, policy, compression and settings.
#pragma once

#include <mutex>
#include <nlohmann/json.hpp>
#include <string>
#include <unordered_map>

namespace compare {

class Records {
 public:
  using Json = nlohmann::ordered_json;

  struct Key {
    std::string unit, model, text, policy;
    double target = 0;
    Json settings = Json::object();

    Json json() const;
  };

  // Reads what is there. A line that is cut off (the program was stopped while it wrote) is dropped
  // from the file; any other line that is no record is an error that names it.
  // So is a second program that writes to the same file.
  explicit Records(std::string path);
  ~Records();
  Records(const Records&) = delete;
  Records& operator=(const Records&) = delete;

  bool has(const Key& key) const { return find(key) != nullptr; }
  // The newest record of this key; null if there is none. Valid until the next add().
  const Json* find(const Key& key) const;

  // Appends the fields of the key and those of the result. From any thread; the line is complete on
  // file when it returns.
  void add(const Key& key, const Json& result);

 private:
  void read();

  std::string path_;
  int lock_ = -1;  // file descriptor
  mutable std::mutex mutex_;
  std::unordered_map<std::string, Json> known_;  // by the text of the key
};

}  // namespace compare
