// A NumPy archive of the factors: float32 `<layer>.scale`, int32 `<layer>.offset`, and `metadata`,
// a JSON text with what else a record says.
#include "amct/core/error.h"

#include <map>

#include "export/factors.h"
#include "export/npz.h"
#include "export/plain_layers.h"
#include "export/runtimes.h"

namespace amct {
namespace {

constexpr const char* kFormat = "amct-kv-factors";
constexpr const char* kMetadata = "metadata";

ExportReport write(std::span<const LayerRecord> layers, const ExportOptions& options) {
  const Runtime runtime = numpy_archive_runtime();
  require_output_file(runtime, options);
  ExportReport report;
  report.runtime = runtime.name;
  Json json = Json::object();
  json["format"] = kFormat;
  json["version"] = 1;
  json["convention"] = kPlainConvention;
  json["layers"] = Json::array();
  std::vector<NpyArray> arrays;
  for (const PlainLayer& layer : plain_layers(layers, &report)) {
    json["layers"].push_back(describe(layer));
    std::vector<float> scales;
    std::vector<std::int32_t> offsets;
    for (const QuantParams& params : layer.record.params) {
      scales.push_back(params.scale);
      offsets.push_back(params.offset);
    }
    arrays.push_back({layer.record.name + ".scale", std::move(scales)});
    arrays.push_back({layer.record.name + ".offset", std::move(offsets)});
  }
  arrays.push_back({kMetadata, json.dump()});
  write_reported(options.output, to_npz(arrays),
                 "factors of " + std::to_string(layers.size()) + " layers", &report);
  report.notes.emplace_back("json.loads(numpy.load(path)['metadata'].item()) describes the layers");
  return report;
}

/// The factors of one layer, or nothing and a finding.
std::optional<std::vector<QuantParams>> params_of(Verification& v, const std::string& name,
                                                  const std::map<std::string, NpyValues>& arrays) {
  const auto scale = arrays.find(name + ".scale");
  const auto offset = arrays.find(name + ".offset");
  const auto* scales =
      scale == arrays.end() ? nullptr : std::get_if<std::vector<float>>(&scale->second);
  const auto* offsets =
      offset == arrays.end() ? nullptr : std::get_if<std::vector<std::int32_t>>(&offset->second);
  if (scales == nullptr || offsets == nullptr || scales->empty() ||
      scales->size() != offsets->size()) {
    v.fatal(name, "needs a float32 array .scale and an int32 array .offset of the same length");
    return std::nullopt;
  }
  std::vector<QuantParams> params;
  for (std::size_t i = 0; i < scales->size(); ++i) params.push_back({(*scales)[i], (*offsets)[i]});
  return params;
}

VerifyReport verify(const std::string& path, const VerifyOptions& options) {
  PlainVerification plain = start_plain_verification(numpy_archive_runtime(), path, options);
  Verification& v = plain.v;
  try {
    std::map<std::string, NpyValues> arrays;
    for (NpyArray& array : read_npz(path)) arrays.emplace(array.name, std::move(array.values));
    const auto metadata = arrays.find(kMetadata);
    const auto* text =
        metadata == arrays.end() ? nullptr : std::get_if<std::string>(&metadata->second);
    if (text == nullptr) throw ValueError("there is no text named metadata");
    const Json json = parse_json(*text, kMetadata);
    if (member(json, "format") != kFormat || member(json, "version") != 1 ||
        member(json, "convention") != kPlainConvention) {
      throw ValueError("metadata are not of version 1 of " + std::string(kFormat));
    }
    for (const Json& entry : member(json, "layers")) {
      const std::string name = name_in(entry);
      if (const auto params = params_of(v, name, arrays)) read_plain_layer(plain, entry, *params);
    }
  } catch (const ValueError& error) {
    v.fatal("", error.what());
  }
  return finish_plain(std::move(plain));
}

}  // namespace

Runtime numpy_archive_runtime() {
  return {.name = "npz",
          .summary = "NumPy archive, everything a record says",
          .readers = "version 1",
          .output = OutputKind::kFile,
          .capability = plain_capability(),
          .write = write,
          .verify = verify};
}

}  // namespace amct
