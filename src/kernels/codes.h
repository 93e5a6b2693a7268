// Values to the codes of a number format and back, row by row.
#pragma once

#include "amct/core/dtype.h"

#include <cstddef>
#include <cstdint>

#include "kernels/code_format.h"
#include "kernels/factor_table.h"

namespace amct::kernels {

/// The factors of a row: those from `first` on for its channels, or that one for all of them.
struct RowFactors {
  const FactorTable* table;
  std::size_t first;
  bool per_channel;
};

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
