// Simplified definitions, and the configuration of some layers by them.
#include "amct/config/definition.h"
#include "amct/search/search.h"

#include <string>
#include <vector>

#include "files.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace amct;
  fuzz::expect_no_crash([&] {
    const Definition definition =
        Definition::parse(fuzz::text(data, size), "definition", algorithm_catalog());
    definition.layers();
    const CalibrationConfig config = definition.configure(
        std::vector<std::string>{"model.layers.0.self_attn.k_proj", "layers.1.v_proj"});
    parse_config(to_json(config, algorithm_catalog()), "written", algorithm_catalog());
  });
  return 0;
}
