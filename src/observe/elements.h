// Walking the elements of a view.
#pragma once

#include "amct/core/dtype.h"
#include "amct/core/tensor_view.h"

#include <bit>
#include <cstdint>
#include <cstring>

namespace amct {

/// Bit pattern of an element: std::uint32_t for float32, std::uint16_t for the 16-bit types.
/// Views may point at memory that is not aligned for the type, hence the copy (a plain load).
template <typename Bits>
Bits load_bits(const std::byte* address) {
  Bits bits;
  std::memcpy(&bits, address, sizeof bits);
  return bits;
}

/// Whether a bit pattern of `dtype` stands for a finite number.
inline bool is_finite(std::uint32_t bits) { return (bits & 0x7F800000U) != 0x7F800000U; }
inline bool is_finite(std::uint16_t bits, DType dtype) {
  return (bits & exponent_mask(dtype)) != exponent_mask(dtype);
}

/// Calls visit(row, channel, bits) for every element of `block`, in row-major order; rows are those
/// of the view the block was cut from.
template <typename Bits, typename Visit>
void for_each_element(const Block& block, Visit visit) {
  constexpr auto kSize = static_cast<std::int64_t>(sizeof(Bits));
  for (std::int64_t row = 0; row < block.rows; ++row) {
    const std::byte* start = block.data + row * block.row_stride * kSize;
    for (std::int64_t channel = 0; channel < block.channels; ++channel) {
      visit(block.first_row + row, channel,
            load_bits<Bits>(start + channel * block.channel_stride * kSize));
    }
  }
}

/// The same for every element of `view`.
template <typename Bits, typename Visit>
void for_each_element(const TensorView& view, Visit visit) {
  for (const Block& block : blocks_of(view)) for_each_element<Bits>(block, visit);
}

}  // namespace amct
