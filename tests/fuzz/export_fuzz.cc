// Files that runtimes are given, as `verify` reads them: the first byte says which runtime, and
// what the rest is: a file, or a folder (see folder.h), to which factors are exported as well.
#include "amct/export/exporter.h"
#include "amct/export/verify.h"

#include <string>
#include <vector>

#include "files.h"
#include "folder.h"

namespace {

using namespace amct;

/// Factors as the runtime takes them, of a model of one layer.
std::vector<LayerRecord> factors_for(const Runtime& runtime) {
  std::vector<LayerRecord> layers;
  for (const char* name : {"model.layers.0.self_attn.k_proj", "model.layers.0.self_attn.v_proj"})
    layers.push_back({.name = name,
                      .params = {{0.5F, 0}},
                      .grid = runtime.capability.grids.front(),
                      .tap = Tap::kCache});
  return layers;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size == 0) return 0;
  const auto all = runtimes();
  const Runtime& runtime = all[data[0] % all.size()];
  const std::string_view rest = fuzz::text(data + 1, size - 1);
  VerifyOptions with_record;
  with_record.record = factors_for(runtime);
  if (runtime.output == OutputKind::kFile) {
    const std::string path = fuzz::file("file", rest);
    fuzz::expect_no_crash([&] { verify_export(path, runtime.name, with_record); });
    return 0;
  }
  const std::string path = fuzz::folder() + "/model";
  fuzz::unpack(rest, path);
  fuzz::expect_no_crash([&] {
    const VerifyReport report = verify_export(path, runtime.name, with_record);
    static_cast<void>(report.to_text() + report.to_json());
  });
  fuzz::expect_no_crash([&] {
    ExportOptions options;
    options.model_folder = path;
    options.output = fuzz::folder() + "/exported-model";
    std::filesystem::remove_all(options.output);
    export_layers(factors_for(runtime), runtime.name, options);
    verify_export(options.output, runtime.name, with_record);
  });
  return 0;
}
