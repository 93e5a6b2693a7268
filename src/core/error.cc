#include "amct/core/error.h"

#include "amct/core/limits.h"
#include "amct/core/text.h"

#include <string_view>
#include <system_error>

namespace amct {
namespace {

/// Printable, and not longer than kMaxMessage: a file may hold a name of any length.
std::string in_one_line(const std::string& text) {
  std::string line = printable(std::string_view(text).substr(0, kMaxMessage));
  if (text.size() > kMaxMessage)
    line += "... and " + std::to_string(text.size() - kMaxMessage) + " bytes more";
  return line;
}

}  // namespace

Error::Error(const std::string& what) : std::runtime_error(in_one_line(what)) {}

IoError::IoError(int code, const std::string& action, const std::string& path)
    : Error("cannot " + action + " '" + path + "': " + std::generic_category().message(code)),
      code_(code),
      path_(path) {}

}  // namespace amct
