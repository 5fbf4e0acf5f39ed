// SPDX-License-Identifier: MIT
// Reading GGUF, the file format of llama.cpp (specification: ggml/docs/gguf.md in its repository),
// versions 2 and 3, little-endian. The file is mapped, not read: tensors and strings point into it.
// Every count, length and offset is checked against the file before it is used, so a cut or altered
// file is an error and never a wild read.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

namespace engine {

using Index = std::ptrdiff_t;

// Every error of the engine; what() names the file part, tensor or argument.
class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// How the numbers of a tensor are stored; the values are those of ggml's enum ggml_type.
enum class TensorType : std::uint32_t { f32 = 0, f16 = 1, q4_0 = 2, q4_1 = 3, q8_0 = 8, bf16 = 30 };

struct TensorLayout {
  const char* name;
  Index block_numbers;  // numbers in a block
  Index block_bytes;
};
TensorLayout layout_of(TensorType type);

// A matrix of `rows` rows of `columns` numbers (a vector is one row). Higher axes are counted as
// rows.
struct Tensor {
  std::string_view name;
  TensorType type = TensorType::f32;
  Index rows = 0, columns = 0;
  Index row_bytes = 0;
  const std::byte* data = nullptr;
};

class Gguf {
 public:
  // Maps the file. Throws Error naming the path.
  static Gguf open(const std::string& path);
  // Reads a file image that the caller keeps alive.
  static Gguf parse(std::span<const std::byte> bytes);

  // Metadata. The forms without a default throw Error if the key is missing or has another type.
  bool has(std::string_view key) const { return values_.contains(key); }
  std::uint64_t unsigned_number(std::string_view key) const;
  std::uint64_t unsigned_number(std::string_view key, std::uint64_t otherwise) const;
  double real(std::string_view key) const;
  double real(std::string_view key, double otherwise) const;
  bool boolean(std::string_view key, bool otherwise) const;
  std::string_view string(std::string_view key) const;
  std::string_view string(std::string_view key, std::string_view otherwise) const;
  std::vector<std::string_view> strings(std::string_view key) const;
  std::vector<std::int64_t> integers(std::string_view key) const;

  const std::vector<Tensor>& tensors() const { return tensors_; }
  const Tensor* find(std::string_view name) const;    // null if there is none
  const Tensor& tensor(std::string_view name) const;  // Error if there is none

 private:
  struct Value {
    std::uint32_t type = 0;          // gguf_metadata_value_type
    std::uint32_t element_type = 0;  // of an array
    std::uint64_t count = 1;
    std::span<const std::byte>
        bytes;  // a scalar, the text of a string, or the elements of an array
  };

  const Value& value(std::string_view key) const;
  const Value* find_value(std::string_view key) const;
  void read(std::span<const std::byte> bytes);

  std::shared_ptr<const void> mapping_;
  std::map<std::string_view, Value, std::less<>> values_;
  std::vector<Tensor> tensors_;
  std::map<std::string_view, std::size_t, std::less<>> by_name_;
};

}  // namespace engine
