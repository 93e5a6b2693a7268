// A number format as the kernels that make its codes need it.
#pragma once

#include "amct/core/float_format.h"
#include "amct/core/grid.h"

#include <array>
#include <cstddef>
#include <cstdint>

namespace amct::kernels {

/// A cell is what magnitudes share that agree in their exponent and the first four bits of the
/// mantissa. Formats have at most three, so the middle between two neighbours is the first value of
/// a cell, if it is in one at all.
inline constexpr int kCellBits = 19;

/// How the codes of a format go on from a power of two, where ties go away from zero. The powers
/// begin at a quarter of the smallest number.
struct StepTables {
  static constexpr std::uint8_t kNext = 0x80;

  std::array<std::uint8_t, 48> first;  ///< the code of a power
  std::array<std::uint8_t, 48> next;   ///< that just below the next one has
  std::array<std::uint8_t, 48> bits;   ///< 16 times the bits of mantissa between the two
  /// By bits of mantissa and the first four that a magnitude has: by how many codes it is beyond
  /// the power; kNext where that is the next one.
  std::array<std::uint8_t, 64> steps;
};

/// How the codes of a grid lie, and what they are.
struct CodeFormat {
  enum class Kind : std::uint8_t {
    kInt8,   ///< a two's complement byte
    kInt4,   ///< two two's complement nibbles a byte, the low one first
    kFp8,    ///< a byte of a FloatFormat with fields of fixed width, rounded to even
    kFloat,  ///< a byte of another FloatFormat, whose ties go away from zero
  };

  Kind kind = Kind::kInt8;
  float qmin = 0;                       ///< of an integer format
  float qmax = 0;                       ///< of an integer format
  const FloatFormat* format = nullptr;  ///< of a float format, and its tables:
  float max = 0;
  int mantissa_bits = 0;               ///< of FP8
  std::int32_t smallest_exponent = 0;  ///< pattern of the smallest normal number of FP8
  const StepTables* steps = nullptr;   ///< of other formats, with these cells:
  std::uint16_t smallest_cell = 0;     ///< of the first power
  std::uint16_t largest_cell = 0;      ///< of the largest number
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
