#include "amct/core/error.h"

#include <system_error>

namespace amct {

IoError::IoError(int code, const std::string& action, const std::string& path)
    : Error("cannot " + action + " '" + path + "': " + std::generic_category().message(code)),
      code_(code),
      path_(path) {}

}  // namespace amct
