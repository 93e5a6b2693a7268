// The command `amct`: what can be done with files, without a model and without Python.
#pragma once

#include <iosfwd>
#include <string>
#include <vector>

namespace amct::cli {

/// Exit codes.
enum class Exit : int {  // NOLINT(performance-enum-size): main returns an int
  kOk = 0,
  kError = 1,  ///< a file cannot be read, written or used
  kUsage = 2,  ///< the command line is wrong
  kDiffers =
      3  ///< the command worked, and its answer is no: diff found differences, verify a fault
};

/// Runs a command line (without the program's name) and returns its exit code. What was asked for
/// goes to `out`, messages and progress to `err`; progress only where `interactive`.
int run(const std::vector<std::string>& arguments, std::ostream& out, std::ostream& err,
        bool interactive = false);

}  // namespace amct::cli
