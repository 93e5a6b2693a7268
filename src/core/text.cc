#include "amct/core/text.h"

#include "amct/core/error.h"
#include "amct/core/limits.h"

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <utility>

#include "core/utf8.h"

namespace amct {
namespace {

/// First and last of the characters beyond ASCII that cannot be shown.
constexpr std::array<std::pair<char32_t, char32_t>, 9> kUnseen{{
    {0x80, 0x9F},        // controls; 0x9B begins a terminal's command
    {0xAD, 0xAD},        // soft hyphen
    {0x61C, 0x61C},      // Arabic letter mark
    {0x200B, 0x200F},    // no width, and marks of direction
    {0x2028, 0x202E},    // separators of lines and paragraphs, embedding and override
    {0x2060, 0x206F},    // no width, isolates
    {0xFEFF, 0xFEFF},    // byte order mark
    {0xFFF9, 0xFFFB},    // annotations
    {0xE0000, 0xE007F},  // tags
}};

bool is_unseen(char32_t code) {
  if (code < 0x80) return code < 0x20 || code == 0x7F;
  return std::ranges::any_of(
      kUnseen, [&](const auto& range) { return code >= range.first && code <= range.second; });
}

void append_hex(std::string& to, std::uint32_t number, int digits) {
  constexpr std::string_view kDigits = "0123456789abcdef";
  while (digits-- > 0) to += kDigits[(number >> (4 * digits)) & 0xFU];
}

void append_escape(std::string& to, char32_t code) {
  if (code < 0x80) {
    append_hex(to += "\\x", code, 2);
  } else if (code < 0x10000) {
    append_hex(to += "\\u", code, 4);
  } else {
    append_hex(to += "\\U", code, 8);
  }
}

}  // namespace

bool is_utf8(std::string_view text) {
  while (!text.empty()) {
    const std::size_t length = utf8_length(text);
    if (length == 0) return false;
    text.remove_prefix(length);
  }
  return true;
}

std::string printable(std::string_view text) {
  std::string result;
  result.reserve(text.size());
  while (!text.empty()) {
    const std::size_t length = utf8_length(text);
    if (length == 0) {
      append_hex(result += "\\x", static_cast<std::uint8_t>(text.front()), 2);
      text.remove_prefix(1);
      continue;
    }
    const std::string_view sequence = text.substr(0, length);
    const char32_t code = utf8_code(sequence);
    if (is_unseen(code)) {
      append_escape(result, code);
    } else {
      result += sequence;
    }
    text.remove_prefix(length);
  }
  return result;
}

void check_layer_name(std::string_view name, const std::string& where) {
  if (name.size() > kMaxLayerName) {
    throw ValueError(where + ": the name of a layer, '" + std::string(name.substr(0, 32)) +
                     "...', is longer than " + std::to_string(kMaxLayerName) + " bytes");
  }
  if (!is_utf8(name)) {
    throw ValueError(where + ": the name of a layer, '" + std::string(name) +
                     "', is not UTF-8 text");
  }
}

void check_layer_count(std::size_t layers, const std::string& where) {
  if (layers > kMaxLayers)
    throw ValueError(where + ": there are more than " + std::to_string(kMaxLayers) + " layers");
}

}  // namespace amct
