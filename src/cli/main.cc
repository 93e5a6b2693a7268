#include <iostream>
#include <string>
#include <vector>

#include <unistd.h>

#include "cli/cli.h"

int main(int argc, char** argv) {
  const std::vector<std::string> arguments(argv + 1, argv + argc);
  const bool interactive = ::isatty(STDERR_FILENO) == 1;
  return amct::cli::run(arguments, std::cout, std::cerr, interactive);
}
