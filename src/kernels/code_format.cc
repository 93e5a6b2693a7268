#include "kernels/code_format.h"

#include <algorithm>
#include <array>
#include <bit>
#include <mutex>
#include <string>

namespace amct::kernels {
namespace {

struct Tables {
  StepTables steps;
  std::array<std::uint8_t, 256> patterns;
  std::once_flag made;
};

constexpr std::uint8_t kSign = 0x80;

std::uint16_t pattern_of(const FloatFormat& format, std::uint8_t code) {
  return static_cast<std::uint16_t>(std::bit_cast<std::uint32_t>(format.decode(code)) >> 16);
}

std::uint16_t cell_of(float value) {
  return static_cast<std::uint16_t>(std::bit_cast<std::uint32_t>(value) >> kCellBits);
}

float first_power(const FloatFormat& format) { return format.magnitudes()[1] / 4; }

void fill(StepTables& tables, const FloatFormat& format) {
  double power = first_power(format);
  for (std::size_t i = 0; i < tables.first.size(); ++i, power *= 2) {
    tables.first[i] = format.encode(power);
    tables.next[i] = format.encode(1.99 * power);
    const auto between = std::ranges::count_if(
        format.magnitudes(), [&](float value) { return value >= power && value < 2 * power; });
    const auto bits =
        std::bit_width(static_cast<std::size_t>(std::max<std::ptrdiff_t>(between, 1)));
    tables.bits[i] = static_cast<std::uint8_t>(16 * (bits - 1));
  }
  for (unsigned i = 0; i < tables.steps.size(); ++i) {
    const unsigned bits = i / 16;
    const unsigned steps = (i % 16 + (8U >> bits)) >> (4 - bits);
    tables.steps[i] = steps >> bits != 0 ? StepTables::kNext : static_cast<std::uint8_t>(steps);
  }
}

void fill(Tables& tables, const FloatFormat& format) {
  for (std::uint8_t code = 0; code < kSign; ++code) {
    const std::uint16_t pattern = pattern_of(format, code);
    tables.patterns[code] = static_cast<std::uint8_t>(pattern & 0xFF);
    tables.patterns[code + std::size_t{kSign}] = static_cast<std::uint8_t>(pattern >> 8);
  }
  if (format.mantissa_bits() == 0) fill(tables.steps, format);
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
    format.steps = &tables.steps;
    format.smallest_cell = cell_of(first_power(*format.format));
    format.largest_cell = cell_of(format.max);
    format.patterns = tables.patterns.data();
    format.negative_zero = pattern_of(*format.format, kSign);
  }
  return format;
}

}  // namespace amct::kernels
