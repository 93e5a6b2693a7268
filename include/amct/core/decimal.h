// Floating-point numbers as text.
#pragma once

#include <string>

#pragma GCC visibility push(default)
namespace amct {

/// The shortest decimal that reads back as the same float32 or float64, as Python's repr writes it:
/// with a point or an exponent, and the exponent only below 1e-4 and from 1e16 on. "0.01", "1.0",
/// "9.5e-05".
std::string shortest_decimal(float value);
std::string shortest_decimal(double value);

}  // namespace amct
#pragma GCC visibility pop
