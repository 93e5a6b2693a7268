// A tensor that somebody else owns: a pointer, an element type, a shape and strides.
#pragma once

#include "amct/core/dtype.h"

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#pragma GCC visibility push(default)
namespace amct {

/// Non-owning, read-only view of a tensor in host memory. Any rank, any strides (also zero and
/// negative ones). The last dimension is the channel; a tensor of rank 0 has one channel.
struct TensorView {
  const void* data = nullptr;         ///< address of element [0, ..., 0]
  DType dtype = DType::kFloat32;      ///< type of the elements
  std::vector<std::int64_t> shape;    ///< sizes; none is negative
  std::vector<std::int64_t> strides;  ///< in elements, as many as shape has

  /// View of contiguous row-major memory. Throws ValueError where a size is negative or the number
  /// of elements does not fit 63 bits.
  static TensorView contiguous(const void* data, DType dtype, std::vector<std::int64_t> shape);

  /// Number of elements: the product of the shape, 1 for rank 0.
  std::int64_t size() const;
  /// Size of the last dimension, 1 for rank 0.
  std::int64_t channels() const { return shape.empty() ? 1 : shape.back(); }
  /// Product of all dimensions but the last, 1 for rank 0 and 1.
  std::int64_t rows() const;

  /// Throws ValueError where the fields contradict each other: another number of strides than of
  /// sizes, a negative size, a null pointer for a tensor that has elements, more than 2^63 - 1
  /// elements, strides that lead farther than memory can.
  void validate() const;
};

/// "[2, 64, 16]".
std::string to_string(const std::vector<std::int64_t>& shape);

/// A rectangle of a TensorView: `rows` x `channels` elements, both with a constant stride.
struct Block {
  const std::byte* data;        ///< address of the element at row 0, channel 0
  std::int64_t first_row;       ///< index of row 0 among the rows of the view
  std::int64_t rows;            ///< number of rows
  std::int64_t row_stride;      ///< in elements
  std::int64_t channels;        ///< number of channels
  std::int64_t channel_stride;  ///< in elements

  /// Whether the elements lie one after the other, row by row.
  bool is_contiguous() const {
    return (channel_stride == 1 || channels == 1) && (row_stride == channels || rows == 1);
  }
};

/// Cuts `view` into the fewest blocks: dimensions that can be walked with one stride are joined, so
/// a contiguous tensor of any rank is a single block. Blocks come in row order. No element is
/// copied. The view must be valid.
std::vector<Block> blocks_of(const TensorView& view);

}  // namespace amct
#pragma GCC visibility pop
