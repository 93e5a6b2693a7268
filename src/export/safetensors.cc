#include "export/safetensors.h"

#include "amct/core/dtype.h"
#include "amct/core/error.h"
#include "amct/core/file.h"
#include "amct/core/limits.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cerrno>
#include <cstring>
#include <optional>
#include <utility>

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "export/json_file.h"

namespace amct {
namespace {

static_assert(std::endian::native == std::endian::little, "the format is little endian");

constexpr std::size_t kLengthBytes = 8;
constexpr const char* kMetadata = "__metadata__";

/// Bits of an element of each type of the format.
constexpr std::array<std::pair<std::string_view, std::uint64_t>, 22> kTypes{{
    {"BOOL", 8}, {"F4", 4},      {"F6_E2M3", 6}, {"F6_E3M2", 6},     {"U8", 8},
    {"I8", 8},   {"F8_E5M2", 8}, {"F8_E4M3", 8}, {"F8_E8M0", 8},     {"F8_E4M3FNUZ", 8},
    {"I16", 16}, {"U16", 16},    {"F16", 16},    {"BF16", 16},       {"I32", 32},
    {"U32", 32}, {"F32", 32},    {"C64", 64},    {"F8_E5M2FNUZ", 8}, {"F64", 64},
    {"I64", 64}, {"U64", 64},
}};

std::optional<std::uint64_t> bits_of(std::string_view dtype) {
  const auto* found = std::ranges::find(kTypes, dtype, [](const auto& type) { return type.first; });
  if (found == kTypes.end()) return std::nullopt;
  return found->second;
}

/// Reads parts of a file.
class File {
 public:
  explicit File(const std::string& path) : path_(path) {
    if (path.find('\0') != std::string::npos) {
      throw ValueError("the name of a file holds a NUL character");
    }
    // A pipe in the place of a file must not be waited for.
    fd_ = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd_ < 0) throw IoError(errno, "read", path);
    struct stat info{};
    const int failed = ::fstat(fd_, &info);
    if (failed != 0 || !S_ISREG(info.st_mode)) {
      const int code = failed != 0 ? errno : EISDIR;
      ::close(fd_);
      throw IoError(code, "read", path);
    }
    size_ = static_cast<std::uint64_t>(info.st_size);
  }
  File(const File&) = delete;
  File& operator=(const File&) = delete;
  ~File() { ::close(fd_); }

  std::uint64_t size() const { return size_; }

  /// Fills `bytes` from `at`; a file that became shorter is an IoError.
  void read(std::uint64_t at, std::span<char> bytes) const {
    while (!bytes.empty()) {
      const ssize_t got = ::pread(fd_, bytes.data(), bytes.size(), static_cast<off_t>(at));
      if (got < 0 && errno == EINTR) continue;
      if (got <= 0) throw IoError(got < 0 ? errno : EIO, "read", path_);
      bytes = bytes.subspan(static_cast<std::size_t>(got));
      at += static_cast<std::uint64_t>(got);
    }
  }

 private:
  const std::string& path_;
  int fd_ = -1;
  std::uint64_t size_ = 0;
};

/// A number of JSON as an unsigned one, or nothing.
std::optional<std::uint64_t> unsigned_of(const Json& json) {
  if (!json.is_number_unsigned()) return std::nullopt;
  return json.get<std::uint64_t>();
}

/// `where` begins the message of a ValueError.
TensorInfo tensor_of(const std::string& name, const Json& json, const std::string& where) {
  TensorInfo tensor;
  tensor.name = name;
  const Json& dtype = member(json, "dtype");
  const auto bits = dtype.is_string() ? bits_of(dtype.get_ref<const std::string&>()) : std::nullopt;
  if (!bits) throw ValueError(where + "its dtype is not known");
  tensor.dtype = dtype.get<std::string>();
  const Json& shape = member(json, "shape");
  if (!shape.is_array()) throw ValueError(where + "it has no shape");
  std::uint64_t size = *bits;
  for (const Json& extent : shape) {
    const auto value = unsigned_of(extent);
    if (!value || __builtin_mul_overflow(size, *value, &size) || *value > (1ULL << 62)) {
      throw ValueError(where + "its shape makes no sense");
    }
    tensor.shape.push_back(static_cast<std::int64_t>(*value));
  }
  const Json& range = member(json, "data_offsets");
  const auto begin = range.is_array() && range.size() == 2 ? unsigned_of(range[0]) : std::nullopt;
  const auto end = begin ? unsigned_of(range[1]) : std::nullopt;
  if (!begin || !end || *begin > *end) throw ValueError(where + "its data_offsets make no sense");
  if (size % 8 != 0 || *end - *begin != size / 8) {
    throw ValueError(where + "its data_offsets do not fit its shape");
  }
  tensor.begin = *begin;
  tensor.end = *end;
  return tensor;
}

template <typename T, typename Widen>
void widen(std::span<const char> bytes, std::vector<double>* values, Widen to_double) {
  for (std::size_t i = 0; i + sizeof(T) <= bytes.size(); i += sizeof(T)) {
    T element{};
    std::memcpy(&element, bytes.data() + i, sizeof(T));
    values->push_back(static_cast<double>(to_double(element)));
  }
}

template <typename T>
void widen(std::span<const char> bytes, std::vector<double>* values) {
  widen<T>(bytes, values, [](T element) { return element; });
}

}  // namespace

std::int64_t TensorInfo::size() const {
  std::int64_t size = 1;
  for (const std::int64_t extent : shape) size *= extent;
  return size;
}

SafetensorsFile::SafetensorsFile(std::string path) : path_(std::move(path)) {
  const File file(path_);
  const std::string where = path_ + ": ";
  if (file.size() < kLengthBytes) throw ValueError(where + "too short for a safetensors file");
  std::uint64_t length = 0;
  std::array<char, kLengthBytes> bytes{};
  file.read(0, bytes);
  std::memcpy(&length, bytes.data(), kLengthBytes);
  if (length > kMaxSafetensorsHeader || length > file.size() - kLengthBytes) {
    throw ValueError(where + "its header has " + std::to_string(length) +
                     " bytes, more than the file or the format has room for");
  }
  std::string text(length, '\0');
  file.read(kLengthBytes, text);
  if (text.empty() || text.front() != '{' || !is_utf8(text)) {
    throw ValueError(where + "its header is not a JSON object");
  }
  const Json header = parse_json(text, path_);
  for (const auto& [name, json] : header.items()) {
    if (name == kMetadata) continue;
    tensors_.push_back(tensor_of(name, json, where + "tensor " + Json(name).dump() + ": "));
  }
  std::ranges::sort(tensors_, {}, [](const TensorInfo& t) { return std::pair(t.begin, t.end); });
  data_at_ = kLengthBytes + length;
  std::uint64_t at = 0;
  for (const TensorInfo& tensor : tensors_) {
    if (tensor.begin != at) {
      throw ValueError(where + "tensor " + Json(tensor.name).dump() +
                       " overlaps another, or leaves a gap before it");
    }
    at = tensor.end;
  }
  if (at != file.size() - data_at_) {
    throw ValueError(where + "holds " + std::to_string(file.size() - data_at_) +
                     " bytes of tensors where the header says " + std::to_string(at));
  }
}

std::vector<double> SafetensorsFile::read(const TensorInfo& tensor) const {
  const std::string where = path_ + ": tensor " + Json(tensor.name).dump() + ": ";
  const std::uint64_t length = tensor.end - tensor.begin;
  if (length > static_cast<std::uint64_t>(kMaxFactors) * 8 || tensor.size() > kMaxFactors) {
    throw ValueError(where + "too large for factors");
  }
  std::string bytes(length, '\0');
  const File file(path_);
  file.read(data_at_ + tensor.begin, bytes);
  std::vector<double> values;
  if (tensor.dtype == "F32") {
    widen<float>(bytes, &values);
  } else if (tensor.dtype == "F64") {
    widen<double>(bytes, &values);
  } else if (tensor.dtype == "F16") {
    widen<std::uint16_t>(bytes, &values, float16_to_float);
  } else if (tensor.dtype == "BF16") {
    widen<std::uint16_t>(bytes, &values, bfloat16_to_float);
  } else if (tensor.dtype == "I8") {
    widen<std::int8_t>(bytes, &values);
  } else if (tensor.dtype == "U8") {
    widen<std::uint8_t>(bytes, &values);
  } else if (tensor.dtype == "I16") {
    widen<std::int16_t>(bytes, &values);
  } else if (tensor.dtype == "I32") {
    widen<std::int32_t>(bytes, &values);
  } else if (tensor.dtype == "I64") {
    widen<std::int64_t>(bytes, &values);
  } else {
    throw ValueError(where + "factors of type " + tensor.dtype + " are not known");
  }
  return values;
}

std::string to_safetensors(std::span<const NewTensor> tensors) {
  Json header = Json::object();
  header[kMetadata] = {{"format", "pt"}};
  std::size_t at = 0;
  for (const NewTensor& tensor : tensors) {
    const std::size_t end = at + tensor.values.size() * sizeof(float);
    header[tensor.name] = {{"dtype", "F32"}, {"shape", tensor.shape}, {"data_offsets", {at, end}}};
    at = end;
  }
  std::string text = header.dump();
  text.resize((text.size() + kLengthBytes - 1) / kLengthBytes * kLengthBytes, ' ');
  const std::uint64_t length = text.size();
  std::string file(kLengthBytes, '\0');
  std::memcpy(file.data(), &length, kLengthBytes);
  file += text;
  for (const NewTensor& tensor : tensors) {
    const auto bytes = std::as_bytes(std::span(tensor.values));
    file.append(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  }
  return file;
}

}  // namespace amct
