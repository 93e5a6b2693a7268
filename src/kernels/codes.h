// Values to the codes of a number format and back, row by row.
#pragma once

#include "amct/core/dtype.h"

#include <cstddef>
#include <cstdint>

#include "kernels/code_format.h"

namespace amct::kernels {

/// Factors that may be read beyond the last channel of a row.
inline constexpr std::size_t kFactorSlack = 64;

/// The factors of a row: of every channel, with kFactorSlack more, or one pair for all.
struct RowFactors {
  const float* scales;   ///< positive
  const float* offsets;  ///< whole numbers of at most kLargestOffset; not read for float formats
  bool per_channel;
};

/// Up to here float32 adds an offset to a rounded quotient exactly, wherever that is not clipped.
inline constexpr std::int32_t kLargestOffset = 1 << 22;

/// Rows that share their factors.
struct Rows {
  std::size_t count;
  std::size_t width;            ///< values of a row
  std::ptrdiff_t value_stride;  ///< bytes from a row of values to the next
  std::ptrdiff_t code_stride;   ///< bytes from a row of codes to the next
};

/// Integer formats: clamp(round(x / scale) + offset, qmin, qmax), halves to even. Float formats:
/// the code of the value nearest to x / scale. x is widened to float32, and the quotient that of
/// float32. NaN is stored as 0 is. The upper nibble behind an odd number of INT4 codes is zero.
void quantize_rows(const CodeFormat& format, const RowFactors& factors, const Rows& rows,
                   DType dtype, const std::byte* values, std::uint8_t* codes);

/// (code - offset) * scale, or the value of the code times scale, in float32, rounded to `dtype`.
void dequantize_rows(const CodeFormat& format, const RowFactors& factors, const Rows& rows,
                     DType dtype, const std::uint8_t* codes, std::byte* values);

/// The same in plain C++, for the tests.
void quantize_rows_scalar(const CodeFormat& format, const RowFactors& factors, const Rows& rows,
                          DType dtype, const std::byte* values, std::uint8_t* codes);
void dequantize_rows_scalar(const CodeFormat& format, const RowFactors& factors, const Rows& rows,
                            DType dtype, const std::uint8_t* codes, std::byte* values);

}  // namespace amct::kernels
