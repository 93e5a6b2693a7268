#include "kernels/factor_table.h"

#include <algorithm>
#include <cmath>

namespace amct::kernels {

FactorTable::FactorTable(std::span<const float> scales, std::span<const float> offsets)
    : scales_(scales.begin(), scales.end()), offsets_(offsets.begin(), offsets.end()) {
  for (std::size_t i = 0; i < scales.size(); ++i) {
    inverses_.push_back(1 / scales[i]);
    biases_.push_back(0x4B400000 - static_cast<std::int32_t>(offsets[i]));
    // With u = 2^-24, x * inverse is off by 2u of the quotient, relatively, and the quotient of
    // float32 by u. That matters up to where codes are clipped for certain, at 128 + |offset| and
    // then as much again for the error. Beyond these scales inverses are not that exact; inverses
    // of powers of two are exact.
    float distance = 0.5F - (258 + std::fabs(offsets[i])) * 0x1p-22F;
    std::int32_t margin = 4;  // 3u is 3 steps of a pattern at most
    int exponent = 0;
    if (std::frexp(scales[i], &exponent) == 0.5F) {
      distance = 0.5F;
      margin = 0;
    }
    if (exponent < -100 || exponent > 100) {
      distance = -1;
      margin = 1 << 18;
    }
    sure_distance_ = std::min(sure_distance_, distance);
    sure_margin_ = std::max(sure_margin_, margin);
  }
  constexpr std::size_t kSlack = 64;
  scales_.resize(scales_.size() + kSlack, 1.0F);
  offsets_.resize(scales_.size());
  inverses_.resize(scales_.size(), 1.0F);
  biases_.resize(scales_.size(), 0x4B400000);
}

}  // namespace amct::kernels
