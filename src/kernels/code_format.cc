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
  std::array<float, 256> decoded;
  std::once_flag made;
};

void fill(Tables& tables, const FloatFormat& format) {
  for (std::size_t code = 0; code < tables.decoded.size(); ++code)
    tables.decoded[code] = format.decode(static_cast<std::uint8_t>(code));
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
    format.kind = CodeFormat::Kind::kFloat;
    format.format = &known.format();
    format.cells = tables.cells.data();
    format.decoded = tables.decoded.data();
  }
  return format;
}

}  // namespace amct::kernels
