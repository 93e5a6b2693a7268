#include "kernels/count.h"

#include <cstring>

namespace amct::kernels {

void count_patterns(const std::uint16_t* patterns, std::size_t count, std::uint32_t* table,
                    std::uint32_t* second) {
  std::size_t i = 0;
  for (; i + 4 <= count; i += 4) {
    std::uint64_t four;  // one load serves four patterns
    std::memcpy(&four, patterns + i, sizeof four);
    ++table[four & 0xFFFF];
    ++second[(four >> 16) & 0xFFFF];
    ++table[(four >> 32) & 0xFFFF];
    ++second[four >> 48];
  }
  count_patterns_scalar(patterns + i, count - i, table);
}

void count_patterns(const std::uint16_t* patterns, std::size_t count, std::uint16_t* table) {
  for (std::size_t i = 0; i < count; ++i) ++table[patterns[i]];
}

void count_patterns_scalar(const std::uint16_t* patterns, std::size_t count, std::uint32_t* table) {
  for (std::size_t i = 0; i < count; ++i) ++table[patterns[i]];
}

}  // namespace amct::kernels
