// Counting 16-bit patterns.
#pragma once

#include <cstddef>
#include <cstdint>

namespace amct::kernels {

/// Entries of a table that has a counter for every 16-bit pattern.
inline constexpr std::size_t kPatterns = 65536;

/// Adds the patterns to `table` and `second`, kPatterns counters each, in turn: a counter that was
/// just written is not read back at once, which stalls where neighbouring values are equal. The
/// counters of a pattern are its count together. Counters wrap at 2^32.
void count_patterns(const std::uint16_t* patterns, std::size_t count, std::uint32_t* table,
                    std::uint32_t* second);

/// The same in one table of counters that wrap at 2^16, half as large: for few patterns of many
/// values.
void count_patterns(const std::uint16_t* patterns, std::size_t count, std::uint16_t* table);

/// The same one by one, in one table.
void count_patterns_scalar(const std::uint16_t* patterns, std::size_t count, std::uint32_t* table);

}  // namespace amct::kernels
