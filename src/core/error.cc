#include "amct/core/error.h"

#include <string_view>
#include <system_error>

namespace amct {
namespace {

std::string in_one_line(const std::string& text) {
  constexpr std::string_view kDigits = "0123456789ABCDEF";
  std::string result;
  result.reserve(text.size());
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte >= 0x20 && byte != 0x7F) {
      result += c;
    } else if (c == '\n') {
      result += "\\n";
    } else {
      result += "\\x";
      result += kDigits[byte >> 4];
      result += kDigits[byte & 0xF];
    }
  }
  return result;
}

}  // namespace

Error::Error(const std::string& what) : std::runtime_error(in_one_line(what)) {}

IoError::IoError(int code, const std::string& action, const std::string& path)
    : Error("cannot " + action + " '" + path + "': " + std::generic_category().message(code)),
      code_(code),
      path_(path) {}

}  // namespace amct
