// What to do with NaN and infinite values in a batch.
#pragma once

#include <cstdint>

#pragma GCC visibility push(default)
namespace amct {

enum class NonFinitePolicy : std::uint8_t {
  kRaise,  ///< refuse the whole batch: NonFiniteError
  kSkip,   ///< leave them out and count them
};

}  // namespace amct
#pragma GCC visibility pop
