// msModelSlim's own form: as vllm-ascend reads it, but with offsets.
#include <algorithm>
#include <cmath>

#include "export/modelslim.h"
#include "export/runtimes.h"
#include "export/verification.h"

namespace amct {
namespace {

ExportReport write(std::span<const LayerRecord> layers, const ExportOptions& options) {
  const Runtime runtime = msmodelslim_runtime();
  ExportReport report = write_modelslim(runtime, start_export(runtime, layers, options), options);
  report.notes.emplace_back(
      "readers differ: vllm-ascend leaves offsets off in reading (export for it refuses them), "
      "MindIE applies them");
  return report;
}

void read_half(Verification& v, const ModelSlimFolder& folder, const std::string& attention,
               std::int64_t layer, KVRole role) {
  const auto factors = factors_in(folder, attention, role, &v.report.findings);
  if (!factors || !folder.description) return;
  if (!check_scales(v, factors->scale_name, factors->scale)) return;
  if (member(*folder.description, factors->scale_name) != "C8") {
    v.wrong(factors->scale_name, "", "is not described as \"C8\"");
    return;
  }
  const auto is_code = [](double offset) {
    return std::floor(offset) == offset && offset >= kInt8.qmin && offset <= kInt8.qmax;
  };
  if (!std::ranges::all_of(factors->offset, is_code)) {
    v.wrong(factors->scale_name, range_text(factors->offset),
            "its offsets are no integers from -128 to 127");
  }
  EffectiveFactors effective;
  effective.layer = layer;
  effective.role = role;
  effective.source = factors->scale_name;
  effective.scale = factors->scale;
  effective.offset = factors->offset;
  v.used(factors->scale_name, range_text(effective.scale), "x' = (q - offset) * scale");
  v.report.layers.push_back(std::move(effective));
}

VerifyReport verify(const std::string& path, const VerifyOptions& options) {
  Verification v = start_verification(msmodelslim_runtime(), path, options);
  if (!folder_exists(path)) {
    v.fatal("", "msModelSlim writes a folder");
    return finish(std::move(v));
  }
  const ModelSlimFolder folder = read_modelslim(path, options.model_folder, &v.report.findings);
  if (!folder.description) return finish(std::move(v));
  if (member(*folder.description, "kv_cache_type") != "C8") {
    v.wrong("kv_cache_type", "", "is not \"C8\": the cache stays plain");
  }
  for (const std::string& attention : folder.attentions) {
    const LayerName name = parse_layer_name(attention);
    if (name.numbers.empty()) {
      v.fatal(attention, "holds no number of a layer");
      continue;
    }
    read_half(v, folder, attention, name.numbers.front(), KVRole::kKey);
    read_half(v, folder, attention, name.numbers.front(), KVRole::kValue);
  }
  if (folder.attentions.empty()) v.wrong("", "", "no tensor of factors is there");
  return finish(std::move(v));
}

}  // namespace

Runtime msmodelslim_runtime() {
  return {.name = "msmodelslim",
          .summary = "msModelSlim description and tensors: INT8, with offsets",
          .readers = "msmodelslim 3de0a3c",
          .output = OutputKind::kFolder,
          .capability = {.grids = {kInt8},
                         .granularities = {Granularity::kPerTensor, Granularity::kPerHead,
                                           Granularity::kPerChannel},
                         .with_offset = true},
          .write = write,
          .verify = verify};
}

}  // namespace amct
