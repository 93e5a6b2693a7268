// How a text shows a byte that cannot stand in a line.
#pragma once

#include <string>
#include <string_view>

namespace amct {

inline bool is_control(unsigned char byte) { return byte < 0x20 || byte == 0x7F; }

/// "\x1b".
inline std::string escaped(unsigned char byte) {
  constexpr std::string_view kDigits = "0123456789abcdef";
  return {'\\', 'x', kDigits[byte >> 4], kDigits[byte & 0xFU]};
}

}  // namespace amct
