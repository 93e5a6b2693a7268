// Turning tables of counters into values and counts.
#pragma once

#include "amct/core/dtype.h"

#include <cstddef>
#include <cstdint>

namespace amct::kernels {

/// Counters that are collected together: those of the patterns with one upper byte.
inline constexpr std::size_t kPageSize = 256;
/// Elements that collect_page may write beyond the last one it reports.
inline constexpr std::size_t kCollectSlack = 64;

/// Takes the counters of `dtype`'s patterns [page * 256, page * 256 + 256) from a table of
/// kPatterns, leaves zeros, and writes the values of those that occurred, ascending, with their
/// counts. Patterns of infinity and NaN are cleared and left out. Returns how many were written;
/// `values` and `counts` must have room for kPageSize + kCollectSlack.
std::size_t collect_page(DType dtype, std::size_t page, std::uint16_t* table, float* values,
                         std::uint32_t* counts);

/// The same in plain C++, for the tests.
std::size_t collect_page_scalar(DType dtype, std::size_t page, std::uint16_t* table, float* values,
                                std::uint32_t* counts);

/// values[i] = the float32 of the float16 pattern i, exactly, NaN and infinities included.
void widen_float16(const std::uint16_t* patterns, std::size_t count, float* values);

/// The same in plain C++, for the tests.
void widen_float16_scalar(const std::uint16_t* patterns, std::size_t count, float* values);

}  // namespace amct::kernels
