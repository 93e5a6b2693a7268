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

std::string shortest_decimal(float value) { return shortest(value); }
std::string shortest_decimal(double value) { return shortest(value); }

}  // namespace amct
