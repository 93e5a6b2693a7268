// Turning a strip of rows into columns.
#pragma once

#include <cstddef>
#include <cstdint>

namespace amct::kernels {

/// Channels in a strip: a row of them is one cache line.
template <typename Bits>
inline constexpr std::size_t kStripWidth = 64 / sizeof(Bits);

/// columns[c * pitch + r] = strip[r * kStripWidth + c] for r < rows, c < kStripWidth: rows that lie
/// one after the other.
void turn(const std::uint16_t* strip, std::size_t rows, std::uint16_t* columns, std::size_t pitch);
void turn(const std::uint32_t* strip, std::size_t rows, std::uint32_t* columns, std::size_t pitch);

/// The same in plain C++, for the tests.
void turn_scalar(const std::uint16_t* strip, std::size_t rows, std::uint16_t* columns,
                 std::size_t pitch);
void turn_scalar(const std::uint32_t* strip, std::size_t rows, std::uint32_t* columns,
                 std::size_t pitch);

}  // namespace amct::kernels
