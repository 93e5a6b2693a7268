// What the plain formats share: they take any layer, numbered or not, and say everything of it.
#pragma once

#include "amct/export/exporter.h"

#include <optional>
#include <span>
#include <string>
#include <vector>

#include "export/json_file.h"
#include "export/model_layers.h"
#include "export/verification.h"

namespace amct {

inline constexpr const char* kPlainConvention =
    "q = clamp(round(x / scale) + offset, qmin, qmax) and x' = (q - offset) * scale; the codes of "
    "a "
    "float format are values themselves, the nearest to x / scale";

/// Every grid, granularity, offset and tap.
Capability plain_capability();

struct PlainLayer {
  LayerRecord record;
  std::optional<LayerPlace> place;
};

/// By number, the key before the value, where all layers have a number and a role; else as they
/// come, with a note why.
std::vector<PlainLayer> plain_layers(std::span<const LayerRecord> layers, ExportReport* report);

/// {"name", "index", "role", "dst_type", "granularity", "tap"}; index and role may be null.
Json describe(const PlainLayer& layer);

/// The name of an entry as `describe` makes them; empty where it has none.
std::string name_in(const Json& entry);

/// Layers that were read, to compare with the record by name.
struct PlainVerification {
  Verification v;
  std::optional<std::vector<LayerRecord>> record;
  std::vector<LayerRecord> layers;
};
PlainVerification start_plain_verification(const Runtime& runtime, const std::string& path,
                                           const VerifyOptions& options);
/// Checks an entry and its factors, and adds the layer.
void read_plain_layer(PlainVerification& plain, const Json& entry, std::vector<QuantParams> params);
VerifyReport finish_plain(PlainVerification&& plain);

}  // namespace amct
