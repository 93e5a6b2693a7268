// A number format as the kernels that make its codes need it.
#pragma once

#include "amct/core/float_format.h"
#include "amct/core/grid.h"

#include <cstddef>
#include <cstdint>

namespace amct::kernels {

/// A cell is what magnitudes share that agree in their exponent and the first four bits of the
/// mantissa. Formats have at most three, so the middle between two neighbours is the first value of
/// a cell, if it is in one at all.
inline constexpr int kCellBits = 19;
inline constexpr std::size_t kCells = std::size_t{1} << (31 - kCellBits);

/// How the codes of a grid lie, and what they are.
struct CodeFormat {
  enum class Kind : std::uint8_t {
    kInt8,   ///< a two's complement byte
    kInt4,   ///< two two's complement nibbles a byte, the low one first
    kFp8,    ///< a byte of a FloatFormat with fields of fixed width, rounded to even
    kFloat,  ///< a byte of any other FloatFormat
  };

  Kind kind = Kind::kInt8;
  float qmin = 0;                       ///< of an integer format
  float qmax = 0;                       ///< of an integer format
  const FloatFormat* format = nullptr;  ///< of a float format, and its tables:
  float max = 0;
  int mantissa_bits = 0;               ///< of FP8
  std::int32_t smallest_exponent = 0;  ///< pattern of the smallest normal number of FP8
  /// kCells entries: the code of a cell's first value, and above bit 8 that of all its others.
  const std::uint32_t* cells = nullptr;
  /// What the codes 0x00 to 0x7F stand for as patterns of bfloat16, which has all of these values:
  /// their low bytes, then their high ones.
  const std::uint8_t* patterns = nullptr;
  std::uint16_t negative_zero = 0;  ///< the pattern of the code 0x80
};

constexpr bool is_float(CodeFormat::Kind kind) {
  return kind == CodeFormat::Kind::kFp8 || kind == CodeFormat::Kind::kFloat;
}

/// The format of one of grids(); its tables are made once and stay.
CodeFormat code_format(const Grid& grid);

/// Bytes that the codes of `width` neighbouring values take: rows begin at a byte.
constexpr std::size_t code_bytes(CodeFormat::Kind kind, std::size_t width) {
  return kind == CodeFormat::Kind::kInt4 ? (width + 1) / 2 : width;
}

}  // namespace amct::kernels
