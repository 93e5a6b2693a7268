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
    kFloat,  ///< a byte of a FloatFormat
  };

  Kind kind = Kind::kInt8;
  float qmin = 0;                       ///< of an integer format
  float qmax = 0;                       ///< of an integer format
  const FloatFormat* format = nullptr;  ///< of a float format, with its tables:
  /// kCells entries: the code of a cell's first value, and above bit 8 that of all its others.
  const std::uint32_t* cells = nullptr;
  const float* decoded = nullptr;  ///< the value of each of 256 codes
};

/// The format of one of grids(); its tables are made once and stay.
CodeFormat code_format(const Grid& grid);

/// Bytes that the codes of `width` neighbouring values take: rows begin at a byte.
constexpr std::size_t code_bytes(CodeFormat::Kind kind, std::size_t width) {
  return kind == CodeFormat::Kind::kInt4 ? (width + 1) / 2 : width;
}

}  // namespace amct::kernels
