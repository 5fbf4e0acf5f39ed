// SPDX-License-Identifier: MIT
#include "records.hpp"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <stdexcept>

namespace compare {
namespace {

constexpr const char* key_fields[] = {"unit", "model", "text", "policy", "target", "settings"};

}  // namespace

Records::Json Records::Key::json() const {
  return {{"unit", unit},     {"model", model},   {"text", text},
          {"policy", policy}, {"target", target}, {"settings", settings}};
}

Records::Records(std::string path) : path_(std::move(path)) {
  lock_ = ::open(path_.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
  if (lock_ < 0) throw std::runtime_error(path_ + ": cannot be written");
  try {
    if (::flock(lock_, LOCK_EX | LOCK_NB) != 0)
      throw std::runtime_error(path_ + ": another sweep is writing to it");
    read();
  } catch (...) {
    ::close(lock_);
    throw;
  }
}

Records::~Records() { ::close(lock_); }

void Records::read() {
  std::ifstream file(path_, std::ios::binary);
  std::string line;
  std::uintmax_t complete = 0;  // bytes of complete lines
  for (int number = 1; std::getline(file, line) && !file.eof(); ++number) {
    complete += line.size() + 1;
    const Json record = Json::parse(line, nullptr, false);
    Json key;
    for (const char* field : key_fields)
      if (record.is_object() && record.contains(field)) key[field] = record[field];
    if (key.size() != std::size(key_fields))
      throw std::runtime_error(path_ + ": line " + std::to_string(number) +
                               " is no record of a comparison");
    known_[key.dump()] = record;
  }
  file.close();
  std::filesystem::resize_file(path_, complete);
}

const Records::Json* Records::find(const Key& key) const {
  const std::lock_guard lock(mutex_);
  const auto found = known_.find(key.json().dump());
  return found == known_.end() ? nullptr : &found->second;
}

void Records::add(const Key& key, const Json& result) {
  const Json name = key.json();
  Json record = name;
  record.update(result);
  const std::string line = record.dump() + "\n";
  const std::lock_guard lock(mutex_);
  std::ofstream file(path_, std::ios::app | std::ios::binary);
  file << line << std::flush;
  if (!file) throw std::runtime_error(path_ + ": cannot be written");
  known_[name.dump()] = std::move(record);
}

}  // namespace compare
