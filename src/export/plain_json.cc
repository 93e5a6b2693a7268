// Our own plain JSON: all that a record says, for programs that read it themselves.
#include "amct/core/error.h"

#include <utility>

#include "export/factors.h"
#include "export/json_file.h"
#include "export/plain_layers.h"
#include "export/runtimes.h"
#include "export/verification.h"

namespace amct {
namespace {

constexpr const char* kFormat = "amct-kv-factors";

ExportReport write(std::span<const LayerRecord> layers, const ExportOptions& options) {
  const Runtime runtime = plain_json_runtime();
  require_output_file(runtime, options);
  ExportReport report;
  report.runtime = runtime.name;
  Json json = Json::object();
  json["format"] = kFormat;
  json["version"] = 1;
  json["convention"] = kPlainConvention;
  json["layers"] = Json::array();
  for (const PlainLayer& layer : plain_layers(layers, &report)) {
    Json entry = describe(layer);
    Json scales = Json::array();
    Json offsets = Json::array();
    for (const QuantParams& params : layer.record.params) {
      scales.push_back(json_number(params.scale));
      offsets.push_back(params.offset);
    }
    entry["scale"] = std::move(scales);
    entry["offset"] = std::move(offsets);
    json["layers"].push_back(std::move(entry));
  }
  write_reported(options.output, to_json_text(json),
                 "factors of " + std::to_string(layers.size()) + " layers", &report);
  return report;
}

/// The factors of one entry, or nothing and a finding.
std::optional<std::vector<QuantParams>> params_of(Verification& v, const std::string& name,
                                                  const Json& entry) {
  const Json& scales = member(entry, "scale");
  const Json& offsets = member(entry, "offset");
  if (!scales.is_array() || !offsets.is_array() || scales.empty() ||
      scales.size() != offsets.size()) {
    v.fatal(name, "scale and offset must be lists of the same length");
    return std::nullopt;
  }
  std::vector<QuantParams> params;
  for (std::size_t i = 0; i < scales.size(); ++i) {
    if (!scales[i].is_number() || !offsets[i].is_number_integer() ||
        !std::in_range<std::int32_t>(offsets[i].get<std::int64_t>())) {
      v.fatal(name, "a scale must be a number and an offset an integer of 32 bits");
      return std::nullopt;
    }
    params.push_back({static_cast<float>(scales[i].get<double>()), offsets[i].get<std::int32_t>()});
  }
  return params;
}

VerifyReport verify(const std::string& path, const VerifyOptions& options) {
  PlainVerification plain = start_plain_verification(plain_json_runtime(), path, options);
  Verification& v = plain.v;
  Json json;
  try {
    json = read_json_object(path);
  } catch (const ValueError& error) {
    v.fatal("", error.what());
    return finish(std::move(v));
  }
  if (member(json, "format") != kFormat || member(json, "version") != 1) {
    v.fatal("format", "is not version 1 of " + std::string(kFormat));
  } else if (member(json, "convention") != kPlainConvention) {
    v.fatal("convention", "is not known: " + member(json, "convention").dump());
  } else {
    for (const Json& entry : member(json, "layers")) {
      const std::string name = name_in(entry);
      if (const auto params = params_of(v, name, entry)) read_plain_layer(plain, entry, *params);
    }
  }
  return finish_plain(std::move(plain));
}

}  // namespace

Runtime plain_json_runtime() {
  return {.name = "json",
          .summary = "plain JSON, everything a record says",
          .readers = "version 1",
          .output = OutputKind::kFile,
          .capability = plain_capability(),
          .write = write,
          .verify = verify};
}

}  // namespace amct
