// The safetensors format: 8 bytes with the length of a JSON header, the header, the tensors' bytes.
#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace amct {

/// A tensor in a file.
struct TensorInfo {
  std::string name;
  std::string dtype;  ///< "F32", "BF16", ...
  std::vector<std::int64_t> shape;
  std::uint64_t begin = 0;  ///< of its bytes, counted from the end of the header
  std::uint64_t end = 0;

  /// Elements; the format's checks exclude an overflow.
  std::int64_t size() const;
};

/// A file whose header was read and checked as the reference implementation checks it: the header
/// within 100 MB and the file, known types, byte ranges as long as shapes say that cover the file
/// without gap or overlap.
class SafetensorsFile {
 public:
  /// Throws IoError, and ValueError that names the file and the tensor.
  explicit SafetensorsFile(std::string path);

  const std::string& path() const { return path_; }
  /// In the order of their bytes.
  const std::vector<TensorInfo>& tensors() const { return tensors_; }
  std::uint64_t data_size() const { return tensors_.empty() ? 0 : tensors_.back().end; }

  /// The elements of one of them, exact but for 64-bit integers beyond 2^53. Throws ValueError for
  /// a type that is neither a float nor an integer and for more than 16 Mi elements; IoError.
  std::vector<double> read(const TensorInfo& tensor) const;

 private:
  std::string path_;
  std::uint64_t data_at_ = 0;
  std::vector<TensorInfo> tensors_;
};

/// A float32 tensor to write; a shape of no dimensions is a scalar's.
struct NewTensor {
  std::string name;
  std::vector<std::int64_t> shape;
  std::vector<float> values;
};

/// A whole file. Its metadata say "format": "pt", which older versions of transformers require.
std::string to_safetensors(std::span<const NewTensor> tensors);

}  // namespace amct
