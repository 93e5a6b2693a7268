#include "export/plain_layers.h"

#include <algorithm>
#include <map>
#include <set>
#include <utility>

namespace amct {

namespace {

/// Factors that are equal may be of other values.
void compare_what_they_are_of(Verification& v, const LayerRecord& layer,
                              const LayerRecord& expected) {
  if (layer.tap != expected.tap) {
    v.wrong(layer.name, std::string(name_of(layer.tap)),
            "the record's tap is '" + std::string(name_of(expected.tap)) + "'");
  }
  if (layer.sink_tokens != expected.sink_tokens) {
    v.wrong(layer.name, std::to_string(layer.sink_tokens),
            "sink_tokens is " + std::to_string(expected.sink_tokens) + " in the record");
  }
}

}  // namespace

Capability plain_capability() {
  const auto all = grids();
  return {
      .grids = {all.begin(), all.end()},
      .granularities = {Granularity::kPerTensor, Granularity::kPerHead, Granularity::kPerChannel},
      .with_offset = true,
      .quantizes_what_is_stored = false};
}

std::vector<PlainLayer> plain_layers(std::span<const LayerRecord> layers, ExportReport* report) {
  std::string reason;
  const std::vector<LayerPlace> places = layer_places(layers, &reason);
  std::vector<PlainLayer> result;
  for (std::size_t i = 0; i < layers.size(); ++i) {
    result.push_back({layers[i], std::nullopt});
    if (!places.empty()) result.back().place = places[i];
  }
  if (places.empty()) {
    report->notes.push_back("layers are in the record's order: " + reason);
    return result;
  }
  std::ranges::stable_sort(result, {}, [](const PlainLayer& layer) {
    return std::pair(layer.place->index, layer.place->role);
  });
  return result;
}

Json describe(const PlainLayer& layer) {
  Json entry = Json::object();
  entry["name"] = layer.record.name;
  entry["index"] = nullptr;
  entry["role"] = nullptr;
  if (layer.place) {
    entry["index"] = layer.place->index;
    entry["role"] = name_of(layer.place->role);
  }
  entry["dst_type"] = layer.record.grid.name;
  entry["granularity"] = name_of(granularity_of(layer.record));
  entry["tap"] = name_of(layer.record.tap);
  if (layer.record.sink_tokens > 0) entry["sink_tokens"] = layer.record.sink_tokens;
  return entry;
}

std::string name_in(const Json& entry) {
  const Json& name = member(entry, "name");
  return name.is_string() ? name.get<std::string>() : std::string();
}

PlainVerification start_plain_verification(const Runtime& runtime, const std::string& path,
                                           const VerifyOptions& options) {
  VerifyOptions without_record = options;
  without_record.record.reset();
  return {start_verification(runtime, path, without_record), options.record, {}};
}

void read_plain_layer(PlainVerification& plain, const Json& entry,
                      std::vector<QuantParams> params) {
  LayerRecord layer;
  layer.name = name_in(entry);
  Verification& v = plain.v;
  const Json& dst_type = member(entry, "dst_type");
  const Grid* grid = dst_type.is_string() ? find_grid(dst_type.get<std::string>()) : nullptr;
  if (grid == nullptr) {
    v.fatal(layer.name, "dst_type is not known: " + dst_type.dump());
    return;
  }
  layer.grid = *grid;
  layer.params = std::move(params);
  layer.per_head = member(entry, "granularity") == "per_head";
  if (member(entry, "granularity") != name_of(granularity_of(layer))) {
    v.fatal(layer.name, "granularity does not fit " + std::to_string(layer.params.size()) +
                            " factors: " + member(entry, "granularity").dump());
    return;
  }
  const Json& sinks = member(entry, "sink_tokens");
  if (!sinks.is_null() && !sinks.is_number_unsigned()) {
    v.fatal(layer.name, "sink_tokens must be a number of tokens, not " + sinks.dump());
    return;
  }
  if (!sinks.is_null()) layer.sink_tokens = sinks.get<std::int64_t>();
  if (member(entry, "tap") == "cache") layer.tap = Tap::kCache;
  if (member(entry, "role") == "key") layer.role = KVRole::kKey;
  if (member(entry, "role") == "value") layer.role = KVRole::kValue;
  std::vector<double> scales;
  for (const QuantParams& p : layer.params) scales.push_back(static_cast<double>(p.scale));
  if (!check_scales(v, layer.name, scales)) return;
  v.used(layer.name, range_text(scales), "as it stands");
  plain.layers.push_back(std::move(layer));
}

VerifyReport finish_plain(PlainVerification&& plain) {
  std::string reason;
  const std::vector<LayerPlace> places = layer_places(plain.layers, &reason);
  std::map<std::string, const LayerRecord*> expected;
  std::set<std::string> found;
  if (plain.record) {
    for (const LayerRecord& layer : *plain.record) expected.emplace(layer.name, &layer);
  }
  for (std::size_t i = 0; i < plain.layers.size(); ++i) {
    const LayerRecord& layer = plain.layers[i];
    EffectiveFactors factors;
    factors.layer = places.empty() ? static_cast<std::int64_t>(i) : places[i].index;
    factors.role = places.empty() ? layer.role.value_or(KVRole::kKey) : places[i].role;
    factors.source = layer.name;
    factors.grid = layer.grid;
    for (const QuantParams& params : layer.params) {
      factors.scale.push_back(static_cast<double>(params.scale));
      factors.offset.push_back(params.offset);
    }
    found.insert(layer.name);
    if (plain.record) {
      const auto same = expected.find(layer.name);
      factors.match = Match::kMissing;
      factors.difference = "the record has no such layer";
      if (same != expected.end()) {
        compare_to(&factors, *same->second);
        compare_what_they_are_of(plain.v, layer, *same->second);
      }
    }
    plain.v.report.layers.push_back(std::move(factors));
  }
  for (const auto& [name, layer] : expected) {
    if (!found.contains(name)) plain.v.wrong(name, "", "is in the record, and not here");
  }
  return finish(std::move(plain.v));
}

}  // namespace amct
