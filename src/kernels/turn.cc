#include "kernels/turn.h"

#include "kernels/targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/turn.cc"
#include <hwy/foreach_target.h>  // IWYU pragma: keep
#include <hwy/highway.h>

HWY_BEFORE_NAMESPACE();
namespace amct::kernels {
namespace HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

#if HWY_TARGET != HWY_SCALAR
/// Interleaves rows in pairs, pairs in quads, quads in columns.
HWY_INLINE void TurnSquare16(const std::uint16_t* HWY_RESTRICT from, std::size_t width,
                             std::uint16_t* HWY_RESTRICT to, std::size_t pitch) {
  const hn::Full128<std::uint16_t> d16;
  const hn::Full128<std::uint32_t> d32;
  const hn::Full128<std::uint64_t> d64;
  hn::Vec<decltype(d32)> pairs[8];
  for (std::size_t i = 0; i < 4; ++i) {
    const auto a = hn::LoadU(d16, from + (2 * i) * width);
    const auto b = hn::LoadU(d16, from + (2 * i + 1) * width);
    pairs[2 * i] = hn::BitCast(d32, hn::InterleaveLower(d16, a, b));
    pairs[2 * i + 1] = hn::BitCast(d32, hn::InterleaveUpper(d16, a, b));
  }
  for (std::size_t half = 0; half < 2; ++half) {  // columns 0..3, then 4..7
    const auto low_a = hn::BitCast(d64, hn::InterleaveLower(d32, pairs[half], pairs[2 + half]));
    const auto high_a = hn::BitCast(d64, hn::InterleaveUpper(d32, pairs[half], pairs[2 + half]));
    const auto low_b = hn::BitCast(d64, hn::InterleaveLower(d32, pairs[4 + half], pairs[6 + half]));
    const auto high_b =
        hn::BitCast(d64, hn::InterleaveUpper(d32, pairs[4 + half], pairs[6 + half]));
    std::uint16_t* column = to + 4 * half * pitch;
    hn::StoreU(hn::BitCast(d16, hn::InterleaveLower(d64, low_a, low_b)), d16, column);
    hn::StoreU(hn::BitCast(d16, hn::InterleaveUpper(d64, low_a, low_b)), d16, column + pitch);
    hn::StoreU(hn::BitCast(d16, hn::InterleaveLower(d64, high_a, high_b)), d16, column + 2 * pitch);
    hn::StoreU(hn::BitCast(d16, hn::InterleaveUpper(d64, high_a, high_b)), d16, column + 3 * pitch);
  }
}

HWY_INLINE void TurnSquare32(const std::uint32_t* HWY_RESTRICT from, std::size_t width,
                             std::uint32_t* HWY_RESTRICT to, std::size_t pitch) {
  const hn::Full128<std::uint32_t> d32;
  const hn::Full128<std::uint64_t> d64;
  const auto a = hn::LoadU(d32, from);
  const auto b = hn::LoadU(d32, from + width);
  const auto c = hn::LoadU(d32, from + 2 * width);
  const auto d = hn::LoadU(d32, from + 3 * width);
  const auto low_ab = hn::BitCast(d64, hn::InterleaveLower(d32, a, b));
  const auto high_ab = hn::BitCast(d64, hn::InterleaveUpper(d32, a, b));
  const auto low_cd = hn::BitCast(d64, hn::InterleaveLower(d32, c, d));
  const auto high_cd = hn::BitCast(d64, hn::InterleaveUpper(d32, c, d));
  hn::StoreU(hn::BitCast(d32, hn::InterleaveLower(d64, low_ab, low_cd)), d32, to);
  hn::StoreU(hn::BitCast(d32, hn::InterleaveUpper(d64, low_ab, low_cd)), d32, to + pitch);
  hn::StoreU(hn::BitCast(d32, hn::InterleaveLower(d64, high_ab, high_cd)), d32, to + 2 * pitch);
  hn::StoreU(hn::BitCast(d32, hn::InterleaveUpper(d64, high_ab, high_cd)), d32, to + 3 * pitch);
}
#endif

/// Turns a multiple of a square's rows; returns how many.
std::size_t Turn16(const std::uint16_t* strip, std::size_t rows, std::uint16_t* columns,
                   std::size_t pitch) {
#if HWY_TARGET == HWY_SCALAR
  static_cast<void>(strip), static_cast<void>(rows), static_cast<void>(columns);
  static_cast<void>(pitch);
  return 0;
#else
  constexpr std::size_t kWidth = kStripWidth<std::uint16_t>;
  std::size_t row = 0;
  for (; row + 8 <= rows; row += 8) {
    for (std::size_t c = 0; c < kWidth; c += 8)
      TurnSquare16(strip + row * kWidth + c, kWidth, columns + c * pitch + row, pitch);
  }
  return row;
#endif
}

std::size_t Turn32(const std::uint32_t* strip, std::size_t rows, std::uint32_t* columns,
                   std::size_t pitch) {
#if HWY_TARGET == HWY_SCALAR
  static_cast<void>(strip), static_cast<void>(rows), static_cast<void>(columns);
  static_cast<void>(pitch);
  return 0;
#else
  constexpr std::size_t kWidth = kStripWidth<std::uint32_t>;
  std::size_t row = 0;
  for (; row + 4 <= rows; row += 4) {
    for (std::size_t c = 0; c < kWidth; c += 4)
      TurnSquare32(strip + row * kWidth + c, kWidth, columns + c * pitch + row, pitch);
  }
  return row;
#endif
}

}  // namespace HWY_NAMESPACE
}  // namespace amct::kernels
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace amct::kernels {
namespace {

HWY_EXPORT(Turn16);
HWY_EXPORT(Turn32);

template <typename Bits>
void turn_rows(const Bits* strip, std::size_t first, std::size_t rows, Bits* columns,
               std::size_t pitch) {
  for (std::size_t row = first; row < rows; ++row) {
    for (std::size_t c = 0; c < kStripWidth<Bits>; ++c)
      columns[c * pitch + row] = strip[row * kStripWidth<Bits> + c];
  }
}

}  // namespace

void turn(const std::uint16_t* strip, std::size_t rows, std::uint16_t* columns, std::size_t pitch) {
  turn_rows(strip, HWY_DYNAMIC_DISPATCH(Turn16)(strip, rows, columns, pitch), rows, columns, pitch);
}

void turn(const std::uint32_t* strip, std::size_t rows, std::uint32_t* columns, std::size_t pitch) {
  turn_rows(strip, HWY_DYNAMIC_DISPATCH(Turn32)(strip, rows, columns, pitch), rows, columns, pitch);
}

void turn_scalar(const std::uint16_t* strip, std::size_t rows, std::uint16_t* columns,
                 std::size_t pitch) {
  turn_rows(strip, 0, rows, columns, pitch);
}

void turn_scalar(const std::uint32_t* strip, std::size_t rows, std::uint32_t* columns,
                 std::size_t pitch) {
  turn_rows(strip, 0, rows, columns, pitch);
}

}  // namespace amct::kernels
#endif  // HWY_ONCE
