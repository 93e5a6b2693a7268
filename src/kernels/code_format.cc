#include "kernels/code_format.h"

#include <algorithm>
#include <array>
#include <bit>
#include <mutex>
#include <string>

namespace amct::kernels {
namespace {

struct Tables {
  std::array<std::uint32_t, kCells> cells;
  std::array<std::uint8_t, 256> patterns;
  std::once_flag made;
};

constexpr std::uint8_t kSign = 0x80;

std::uint16_t pattern_of(const FloatFormat& format, std::uint8_t code) {
  return static_cast<std::uint16_t>(std::bit_cast<std::uint32_t>(format.decode(code)) >> 16);
}

void fill(Tables& tables, const FloatFormat& format) {
  for (std::uint8_t code = 0; code < kSign; ++code) {
    const std::uint16_t pattern = pattern_of(format, code);
    tables.patterns[code] = static_cast<std::uint8_t>(pattern & 0xFF);
    tables.patterns[code + std::size_t{kSign}] = static_cast<std::uint8_t>(pattern >> 8);
  }
  const auto code_of = [&](std::uint32_t bits) -> std::uint32_t {
    constexpr std::uint32_t kInfinity = 0x7F800000;  // beyond it are no numbers
    return format.encode(static_cast<double>(std::bit_cast<float>(std::min(bits, kInfinity))));
  };
  for (std::uint32_t cell = 0; cell < kCells; ++cell) {
    const std::uint32_t first = cell << kCellBits;
    tables.cells[cell] = code_of(first) | (code_of(first + 1) << 8);
  }
}

const Tables& tables_of(const Grid& grid) {
  static std::array<Tables, 16> tables;  // room for more grids than there are
  Tables& wanted = tables.at(static_cast<std::size_t>(&grid - grids().data()));
  std::call_once(wanted.made, [&] { fill(wanted, grid.format()); });
  return wanted;
}

}  // namespace

CodeFormat code_format(const Grid& grid) {
  const Grid& known = grid_named(grid.name, "a number format");
  CodeFormat format{.kind = known.bits == 4 ? CodeFormat::Kind::kInt4 : CodeFormat::Kind::kInt8,
                    .qmin = static_cast<float>(known.qmin),
                    .qmax = static_cast<float>(known.qmax)};
  if (known.is_float()) {
    const Tables& tables = tables_of(known);
    format.format = &known.format();
    format.kind =
        format.format->mantissa_bits() > 0 ? CodeFormat::Kind::kFp8 : CodeFormat::Kind::kFloat;
    format.max = format.format->max();
    format.mantissa_bits = format.format->mantissa_bits();
    format.smallest_exponent = std::bit_cast<std::int32_t>(
        format.format->magnitudes()[std::size_t{1} << format.mantissa_bits]);
    format.cells = tables.cells.data();
    format.patterns = tables.patterns.data();
    format.negative_zero = pattern_of(*format.format, kSign);
  }
  return format;
}

}  // namespace amct::kernels
