#include "amct/core/error.h"

#include <system_error>

#include "core/escape.h"

namespace amct {
namespace {

std::string in_one_line(const std::string& text) {
  std::string result;
  result.reserve(text.size());
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    result += is_control(byte) ? escaped(byte) : std::string(1, c);
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
