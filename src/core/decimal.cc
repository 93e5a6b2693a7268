#include "amct/core/decimal.h"

#include <array>
#include <charconv>
#include <cmath>

namespace amct {
namespace {

template <typename Float>
std::string shortest(Float value) {
  const double magnitude = std::fabs(static_cast<double>(value));
  // The comparison is on the value, not on its digits, which only round up to 1e16 from far below.
  const bool fixed = magnitude == 0 || (magnitude >= 1e-4 && magnitude < 1e16);
  std::array<char, 64> buffer{};
  const auto result = std::to_chars(
      buffer.data(), buffer.data() + buffer.size(), value,
      fixed || !std::isfinite(value) ? std::chars_format::fixed : std::chars_format::scientific);
  std::string text(buffer.data(), result.ptr);
  if (text.find_first_of(".einf") == std::string::npos) text += ".0";
  return text;
}

}  // namespace

std::string shortest_decimal(float value) {
  if (std::fabs(value) < 0x1p24F || !std::isfinite(value)) return shortest(value);
  // Fixed notation spells large integers out, which a float needs fewer digits for. The double
  // nearest to the shortest decimal has no others.
  std::array<char, 64> buffer{};
  const auto digits = std::to_chars(buffer.data(), buffer.data() + buffer.size(), value,
                                    std::chars_format::scientific);
  double nearest = 0;
  std::from_chars(buffer.data(), digits.ptr, nearest);
  return shortest(nearest);
}
std::string shortest_decimal(double value) { return shortest(value); }

}  // namespace amct
