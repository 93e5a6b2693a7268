// Sums of twice the precision of double: an unevaluated pair hi + lo with |lo| <= ulp(hi) / 2.
// T. J. Dekker, "A floating-point technique for extending the available precision", 1971;
// D. E. Knuth, TAOCP vol. 2, 4.2.2. Needs strict IEEE arithmetic: no -ffast-math, no contraction.
#pragma once

#include <cmath>

namespace amct {

struct DoubleDouble {
  double hi = 0;
  double lo = 0;

  /// a + b exactly.
  static DoubleDouble sum(double a, double b) {
    const double s = a + b;
    const double t = s - a;
    return {s, (a - (s - t)) + (b - t)};
  }
  /// a * b exactly, where it does not underflow.
  static DoubleDouble product(double a, double b) {
    const double p = a * b;
    return {p, std::fma(a, b, -p)};
  }

  friend DoubleDouble operator+(DoubleDouble a, DoubleDouble b) {
    const DoubleDouble high = sum(a.hi, b.hi);
    const DoubleDouble low = sum(a.lo, b.lo);
    const DoubleDouble once = quick_sum(high.hi, high.lo + low.hi);
    return quick_sum(once.hi, once.lo + low.lo);
  }

  friend DoubleDouble operator-(DoubleDouble a, DoubleDouble b) {
    return a + DoubleDouble{-b.hi, -b.lo};
  }

  double value() const { return hi + lo; }

 private:
  /// a + b exactly, where |a| >= |b|.
  static DoubleDouble quick_sum(double a, double b) {
    const double s = a + b;
    return {s, b - (s - a)};
  }
};

}  // namespace amct
