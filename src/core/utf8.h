// Characters of UTF-8 text (RFC 3629).
#pragma once

#include <cstddef>
#include <string_view>

namespace amct {

/// Bytes of the character at the front of `text`, which is not empty; 0 where it is malformed.
std::size_t utf8_length(std::string_view text);

/// The character that one well-formed sequence stands for.
char32_t utf8_code(std::string_view sequence);

}  // namespace amct
