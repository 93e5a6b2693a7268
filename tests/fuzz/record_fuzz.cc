// Records: what is read is written and read again as the same, and exported to every runtime that
// takes it.
#include "amct/export/exporter.h"
#include "amct/record/record_file.h"

#include <cstdlib>
#include <vector>

#include "files.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace amct;
  const std::string path = fuzz::file("record.txt", fuzz::text(data, size));
  std::vector<LayerRecord> layers;
  fuzz::expect_no_crash([&] { layers = read_record(path); });
  if (layers.empty()) return 0;
  fuzz::expect_no_crash([&] {
    const std::string written = fuzz::folder() + "/written.txt";
    write_empty_record(written);
    merge_into_record(written, layers, {});
    const std::vector<LayerRecord> again = read_record(written);
    if (again.size() != layers.size()) std::abort();
    for (std::size_t i = 0; i < again.size(); ++i) {
      if (again[i].name != layers[i].name || again[i].params != layers[i].params) std::abort();
    }
  });
  for (const char* runtime : {"lmdeploy", "sglang", "json", "npz"}) {
    fuzz::expect_no_crash([&] {
      ExportOptions options;
      options.output = fuzz::folder() + "/exported";
      options.model_type = "llama";
      export_layers(layers, runtime, options);
      VerifyOptions with_record;
      with_record.record = layers;
      verify_export(options.output, runtime, with_record);
    });
  }
  return 0;
}
