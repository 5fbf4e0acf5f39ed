// SPDX-License-Identifier: MIT
#include "gguf.hpp"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <bit>
#include <cerrno>
#include <cstring>
#include <limits>
#include <utility>

namespace engine {
namespace {

static_assert(std::endian::native == std::endian::little,
              "GGUF files are read in place, which needs little-endian");

// gguf_metadata_value_type
enum ValueType : std::uint32_t {
  value_u8,
  value_i8,
  value_u16,
  value_i16,
  value_u32,
  value_i32,
  value_f32,
  value_bool,
  value_string,
  value_array,
  value_u64,
  value_i64,
  value_f64,
  value_types
};

// Bytes of a scalar; 0 for strings and arrays.
std::uint64_t size_of_value(std::uint32_t type) {
  constexpr std::uint64_t sizes[value_types] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};
  return sizes[type];
}

template <class T>
T load(const std::byte* from) {
  T value;
  std::memcpy(&value, from, sizeof(T));
  return value;
}

// Takes bytes from the front and refuses to pass the end.
class Reader {
 public:
  explicit Reader(std::span<const std::byte> bytes) : bytes_(bytes) {}

  std::uint64_t left() const { return bytes_.size() - at_; }
  std::uint64_t at() const { return at_; }

  std::span<const std::byte> take(std::uint64_t count, const std::string& what) {
    if (count > left())
      throw Error("gguf: " + what + " at byte " + std::to_string(at_) +
                  " goes past the end of the file");
    const auto part = bytes_.subspan(at_, count);
    at_ += count;
    return part;
  }
  template <class T>
  T number(const std::string& what) {
    return load<T>(take(sizeof(T), what).data());
  }
  std::string_view string(const std::string& what) {
    const auto length = number<std::uint64_t>("the length of " + what);
    const auto text = take(length, what);
    return {reinterpret_cast<const char*>(text.data()), text.size()};
  }

 private:
  std::span<const std::byte> bytes_;
  std::uint64_t at_ = 0;
};

TensorType known_type(std::uint32_t type, std::string_view tensor) {
  switch (static_cast<TensorType>(type)) {
    case TensorType::f32:
    case TensorType::f16:
    case TensorType::q4_0:
    case TensorType::q4_1:
    case TensorType::q8_0:
    case TensorType::bf16:
      return static_cast<TensorType>(type);
  }
  // Names of the common types, so that the message says what to convert.
  static const std::map<std::uint32_t, const char*> names = {
      {6, "Q5_0"},    {7, "Q5_1"},     {9, "Q8_1"},   {10, "Q2_K"},   {11, "Q3_K"},
      {12, "Q4_K"},   {13, "Q5_K"},    {14, "Q6_K"},  {15, "Q8_K"},   {16, "IQ2_XXS"},
      {17, "IQ2_XS"}, {18, "IQ3_XXS"}, {19, "IQ1_S"}, {20, "IQ4_NL"}, {21, "IQ3_S"},
      {22, "IQ2_S"},  {23, "IQ4_XS"},  {24, "I8"},    {25, "I16"},    {26, "I32"},
      {27, "I64"},    {28, "F64"},     {29, "IQ1_M"}, {34, "TQ1_0"},  {35, "TQ2_0"},
      {39, "MXFP4"}};
  const auto found = names.find(type);
  throw Error(
      "gguf: tensor '" + std::string(tensor) + "' has type " +
      (found != names.end() ? std::string(found->second) : "number " + std::to_string(type)) +
      "; this engine reads F32, F16, BF16, Q8_0, Q4_0 and Q4_1");
}

// The product of two counts, or an error.
std::uint64_t times(std::uint64_t a, std::uint64_t b, const std::string& what) {
  constexpr std::uint64_t limit = std::numeric_limits<std::int64_t>::max();
  if (a != 0 && b > limit / a) throw Error("gguf: " + what + " is too large");
  return a * b;
}

std::string quoted(std::string_view text) {
  std::string out(1, '\'');
  out.append(text);
  out.push_back('\'');
  return out;
}

}  // namespace

TensorLayout layout_of(TensorType type) {
  switch (type) {
    case TensorType::f32:
      return {"F32", 1, 4};
    case TensorType::f16:
      return {"F16", 1, 2};
    case TensorType::bf16:
      return {"BF16", 1, 2};
    case TensorType::q4_0:
      return {"Q4_0", 32, 18};
    case TensorType::q4_1:
      return {"Q4_1", 32, 20};
    case TensorType::q8_0:
      return {"Q8_0", 32, 34};
  }
  throw Error("gguf: unknown tensor type");
}

Gguf Gguf::open(const std::string& path) {
  const auto failed = [&](const char* what) -> Error {
    return Error(path + ": " + what + ": " + std::strerror(errno));
  };
  const int file = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (file < 0) throw failed("cannot be opened");
  struct stat status {};
  if (::fstat(file, &status) != 0 || !S_ISREG(status.st_mode)) {
    ::close(file);
    throw Error(path + ": is not a regular file");
  }
  const auto size = static_cast<std::size_t>(status.st_size);
  if (size == 0) {
    ::close(file);
    throw Error(path + ": is empty");
  }
  void* const address = ::mmap(nullptr, size, PROT_READ, MAP_PRIVATE, file, 0);
  ::close(file);
  if (address == MAP_FAILED) throw failed("cannot be mapped");

  Gguf out;
  out.mapping_ = std::shared_ptr<const void>(
      address, [size](const void* at) { ::munmap(const_cast<void*>(at), size); });
  try {
    out.read({static_cast<const std::byte*>(address), size});
  } catch (const Error& error) {
    throw Error(path + ": " + error.what());
  }
  return out;
}

Gguf Gguf::parse(std::span<const std::byte> bytes) {
  Gguf out;
  out.read(bytes);
  return out;
}

void Gguf::read(std::span<const std::byte> bytes) {
  Reader in(bytes);
  const auto magic = in.take(4, "the magic number");
  if (std::memcmp(magic.data(), "GGUF", 4) != 0)
    throw Error("gguf: the file does not start with 'GGUF'");
  const auto version = in.number<std::uint32_t>("the version");
  if (version != 2 && version != 3)
    throw Error("gguf: version " + std::to_string(version) + " is not supported (2 and 3 are)");
  const auto tensor_count = in.number<std::uint64_t>("the number of tensors");
  const auto value_count = in.number<std::uint64_t>("the number of metadata entries");

  for (std::uint64_t i = 0; i < value_count; ++i) {
    const std::string_view key = in.string("metadata key " + std::to_string(i));
    const std::string what = "metadata " + quoted(key);
    Value value;
    value.type = in.number<std::uint32_t>("the type of " + what);
    if (value.type >= value_types)
      throw Error("gguf: " + what + " has unknown type " + std::to_string(value.type));
    if (value.type == value_string) {
      const std::string_view text = in.string(what);
      value.bytes = std::as_bytes(std::span(text));
    } else if (value.type == value_array) {
      value.element_type = in.number<std::uint32_t>("the element type of " + what);
      if (value.element_type >= value_types || value.element_type == value_array)
        throw Error("gguf: " + what + " is an array of unsupported type " +
                    std::to_string(value.element_type));
      value.count = in.number<std::uint64_t>("the length of " + what);
      if (value.element_type == value_string) {
        const std::uint64_t start = in.at();
        for (std::uint64_t k = 0; k < value.count; ++k) in.string(what);
        value.bytes = bytes.subspan(start, in.at() - start);
      } else {
        value.bytes = in.take(times(value.count, size_of_value(value.element_type), what), what);
      }
    } else {
      value.bytes = in.take(size_of_value(value.type), what);
    }
    if (!values_.emplace(key, value).second) throw Error("gguf: " + what + " occurs twice");
  }

  std::vector<std::uint64_t> offsets;
  for (std::uint64_t i = 0; i < tensor_count; ++i) {
    Tensor tensor;
    tensor.name = in.string("the name of tensor " + std::to_string(i));
    const std::string what = "tensor " + quoted(tensor.name);
    const auto axes = in.number<std::uint32_t>("the axes of " + what);
    if (axes < 1 || axes > 4)
      throw Error("gguf: " + what + " has " + std::to_string(axes) + " axes; 1 to 4 are allowed");
    std::uint64_t columns = 0, rows = 1;
    for (std::uint32_t axis = 0; axis < axes; ++axis) {
      const auto length = in.number<std::uint64_t>("the shape of " + what);
      if (length == 0) throw Error("gguf: " + what + " has an axis of length 0");
      if (axis == 0)
        columns = length;
      else
        rows = times(rows, length, "the shape of " + what);
    }
    tensor.type = known_type(in.number<std::uint32_t>("the type of " + what), tensor.name);
    const TensorLayout layout = layout_of(tensor.type);
    const auto block = static_cast<std::uint64_t>(layout.block_numbers);
    if (columns % block != 0)
      throw Error("gguf: " + what + " has rows of " + std::to_string(columns) +
                  " numbers, not a multiple of " + std::to_string(block) + " as " + layout.name +
                  " needs");
    const std::uint64_t row_bytes =
        times(columns / block, static_cast<std::uint64_t>(layout.block_bytes), what);
    times(times(rows, columns, what), 4,
          what);  // so that any count of numbers or bytes fits an Index
    times(rows, row_bytes, what);
    tensor.rows = static_cast<Index>(rows);
    tensor.columns = static_cast<Index>(columns);
    tensor.row_bytes = static_cast<Index>(row_bytes);
    offsets.push_back(in.number<std::uint64_t>("the offset of " + what));
    if (!by_name_.emplace(tensor.name, tensors_.size()).second)
      throw Error("gguf: " + what + " occurs twice");
    tensors_.push_back(tensor);
  }

  const std::uint64_t alignment = unsigned_number("general.alignment", 32);
  if (alignment == 0 || alignment % 8 != 0 || alignment > bytes.size())
    throw Error("gguf: general.alignment is " + std::to_string(alignment) +
                "; it must be a multiple of 8 and smaller than the file");
  const std::uint64_t start = (in.at() + alignment - 1) / alignment * alignment;
  for (std::size_t i = 0; i < tensors_.size(); ++i) {
    Tensor& tensor = tensors_[i];
    const std::string what = "tensor " + quoted(tensor.name);
    if (offsets[i] % alignment != 0)
      throw Error("gguf: " + what + " starts at offset " + std::to_string(offsets[i]) +
                  ", which is not aligned");
    const auto size =
        static_cast<std::uint64_t>(tensor.rows) * static_cast<std::uint64_t>(tensor.row_bytes);
    if (start > bytes.size() || offsets[i] > bytes.size() - start ||
        size > bytes.size() - start - offsets[i])
      throw Error("gguf: " + what + " goes past the end of the file (offset " +
                  std::to_string(offsets[i]) + ", " + std::to_string(size) + " bytes)");
    tensor.data = bytes.data() + start + offsets[i];
  }
}

const Gguf::Value* Gguf::find_value(std::string_view key) const {
  const auto found = values_.find(key);
  return found == values_.end() ? nullptr : &found->second;
}

const Gguf::Value& Gguf::value(std::string_view key) const {
  const Value* const found = find_value(key);
  if (!found) throw Error("gguf: metadata " + quoted(key) + " is missing");
  return *found;
}

namespace {

// A scalar of any integer type as T; an error if it is no integer or does not fit.
template <class T>
T integer(std::uint32_t type, const std::byte* at, std::string_view key) {
  const auto fit = [&](auto number) {
    if (!std::in_range<T>(number))
      throw Error("gguf: metadata " + quoted(key) + " is " + std::to_string(number) +
                  ", out of range");
    return static_cast<T>(number);
  };
  switch (type) {
    case value_u8:
      return fit(std::uint32_t{load<std::uint8_t>(at)});
    case value_i8:
      return fit(std::int32_t{load<std::int8_t>(at)});
    case value_u16:
      return fit(load<std::uint16_t>(at));
    case value_i16:
      return fit(load<std::int16_t>(at));
    case value_u32:
      return fit(load<std::uint32_t>(at));
    case value_i32:
      return fit(load<std::int32_t>(at));
    case value_u64:
      return fit(load<std::uint64_t>(at));
    case value_i64:
      return fit(load<std::int64_t>(at));
    default:
      throw Error("gguf: metadata " + quoted(key) + " is not an integer");
  }
}

}  // namespace

std::uint64_t Gguf::unsigned_number(std::string_view key) const {
  const Value& found = value(key);
  return integer<std::uint64_t>(found.type, found.bytes.data(), key);
}

std::uint64_t Gguf::unsigned_number(std::string_view key, std::uint64_t otherwise) const {
  return has(key) ? unsigned_number(key) : otherwise;
}

double Gguf::real(std::string_view key) const {
  const Value& found = value(key);
  if (found.type == value_f32) return double{load<float>(found.bytes.data())};
  if (found.type == value_f64) return load<double>(found.bytes.data());
  throw Error("gguf: metadata " + quoted(key) + " is not a floating-point number");
}

double Gguf::real(std::string_view key, double otherwise) const {
  return has(key) ? real(key) : otherwise;
}

bool Gguf::boolean(std::string_view key, bool otherwise) const {
  if (!has(key)) return otherwise;
  const Value& found = value(key);
  if (found.type != value_bool) throw Error("gguf: metadata " + quoted(key) + " is not a boolean");
  return load<std::uint8_t>(found.bytes.data()) != 0;
}

std::string_view Gguf::string(std::string_view key) const {
  const Value& found = value(key);
  if (found.type != value_string) throw Error("gguf: metadata " + quoted(key) + " is not a string");
  return {reinterpret_cast<const char*>(found.bytes.data()), found.bytes.size()};
}

std::string_view Gguf::string(std::string_view key, std::string_view otherwise) const {
  return has(key) ? string(key) : otherwise;
}

std::vector<std::string_view> Gguf::strings(std::string_view key) const {
  const Value& found = value(key);
  if (found.type != value_array || found.element_type != value_string)
    throw Error("gguf: metadata " + quoted(key) + " is not an array of strings");
  std::vector<std::string_view> out;
  Reader in(found.bytes);
  for (std::uint64_t i = 0; i < found.count; ++i) out.push_back(in.string(std::string(key)));
  return out;
}

std::vector<std::int64_t> Gguf::integers(std::string_view key) const {
  const Value& found = value(key);
  if (found.type != value_array) throw Error("gguf: metadata " + quoted(key) + " is not an array");
  std::vector<std::int64_t> out;
  const std::uint64_t size = size_of_value(found.element_type);
  for (std::uint64_t i = 0; i < found.count; ++i)
    out.push_back(integer<std::int64_t>(found.element_type, found.bytes.data() + i * size, key));
  return out;
}

const Tensor* Gguf::find(std::string_view name) const {
  const auto found = by_name_.find(name);
  return found == by_name_.end() ? nullptr : &tensors_[found->second];
}

const Tensor& Gguf::tensor(std::string_view name) const {
  const Tensor* const found = find(name);
  if (!found) throw Error("gguf: tensor " + quoted(name) + " is missing");
  return *found;
}

}  // namespace engine
