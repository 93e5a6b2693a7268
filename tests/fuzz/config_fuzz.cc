// JSON configurations: what is read is written and read again as the same.
#include "amct/config/calibration_config.h"
#include "amct/search/search.h"

#include <cstdlib>

#include "files.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace amct;
  fuzz::expect_no_crash([&] {
    const CalibrationConfig config =
        parse_config(fuzz::text(data, size), "config", algorithm_catalog());
    const std::string written = to_json(config, algorithm_catalog());
    if (!(parse_config(written, "written", algorithm_catalog()) == config)) std::abort();
  });
  return 0;
}
