// What calibration is for: the scale and offset of a group of values.
#pragma once

#include <cstdint>

#pragma GCC visibility push(default)
namespace amct {

/// Factors of one group. A code q stands for x' = (q - offset) * scale: the offset is subtracted,
/// as in AMCT and msModelSlim (Ascend's antiquant operators add theirs, with the sign turned).
struct QuantParams {
  float scale = 1.0F;       ///< finite and positive
  std::int32_t offset = 0;  ///< the code of x = 0

  friend bool operator==(const QuantParams&, const QuantParams&) = default;
};

}  // namespace amct
#pragma GCC visibility pop
