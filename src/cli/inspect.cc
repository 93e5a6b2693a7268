// amct inspect: what a record or a counts file holds.
#include "amct/core/decimal.h"
#include "amct/core/file.h"
#include "amct/record/record_file.h"
#include "amct/session/counts_file.h"

#include <algorithm>
#include <cstdint>
#include <limits>
#include <map>
#include <memory>
#include <optional>
#include <ostream>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "cli/command.h"

namespace amct::cli {
namespace {

using Json = nlohmann::ordered_json;

bool is_counts_file(const std::string& path) { return FileReader(path).read(7) == "AMCTcnt"; }

std::string_view granularity_of(const LayerRecord& layer) {
  if (layer.per_head) return "per_head";
  return layer.params.size() == 1 ? "per_tensor" : "per_channel";
}

std::string role_of(const std::optional<KVRole>& role) {
  return role ? std::string(name_of(*role)) : "-";
}

std::string number(double value) { return fmt::format("{:.6g}", value); }

/// "0.01" or "0.01 to 0.05".
template <typename Values, typename Format>
std::string span_of(const Values& values, Format format) {
  const auto [low, high] = std::ranges::minmax(values);
  return low == high ? format(low) : format(low) + " to " + format(high);
}

Exit inspect_record(const std::string& path, const Context& context) {
  const std::vector<LayerRecord> layers = read_record(path);
  std::vector<std::vector<std::string>> rows{
      {"layer", "role", "tap", "format", "granularity", "factors", "scale", "offset"}};
  const bool has_sinks =
      std::ranges::any_of(layers, [](const LayerRecord& layer) { return layer.sink_tokens > 0; });
  if (has_sinks) rows.front().emplace_back("sink_tokens");
  Json json{{"file", path}, {"kind", "record"}, {"layers", Json::array()}};
  for (const LayerRecord& layer : layers) {
    std::vector<float> scales;
    std::vector<std::int32_t> offsets;
    for (const QuantParams& params : layer.params) {
      scales.push_back(params.scale);
      offsets.push_back(params.offset);
    }
    rows.push_back({layer.name, role_of(layer.known_role()), std::string(name_of(layer.tap)),
                    std::string(layer.grid.name), std::string(granularity_of(layer)),
                    std::to_string(scales.size()),
                    span_of(scales, [](float scale) { return shortest_decimal(scale); }),
                    span_of(offsets, [](std::int32_t offset) { return std::to_string(offset); })});
    if (has_sinks) rows.back().push_back(std::to_string(layer.sink_tokens));
    Json entry{{"layer", layer.name},
               {"role", nullptr},
               {"tap", name_of(layer.tap)},
               {"sink_tokens", layer.sink_tokens},
               {"dst_type", layer.grid.name},
               {"granularity", granularity_of(layer)},
               {"scale", scales},
               {"offset", offsets}};
    if (const auto role = layer.known_role()) entry["role"] = name_of(*role);
    json["layers"].push_back(std::move(entry));
  }
  if (context.json) {
    context.write(json);
  } else {
    context.out << table(rows) << '\n'
                << printable(path) << ": a record of " << layers.size() << " layers\n";
  }
  return Exit::kOk;
}

/// Smallest and largest value of all groups.
ValueRange range_of(const Observer& observer) {
  ValueRange whole{std::numeric_limits<float>::infinity(), -std::numeric_limits<float>::infinity()};
  for (std::size_t group = 0; group < observer.groups(); ++group) {
    ValueRange range{};
    if (observer.is_range_only()) {
      range = observer.range(group);
    } else {
      const ValueCounts values = observer.value_counts(group);
      if (values.empty()) continue;
      range = {values.min(), values.max()};
    }
    whole = {std::min(whole.min, range.min), std::max(whole.max, range.max)};
  }
  return whole;
}

/// What is known of the values: their range, a sketch of them, or their exact counts.
std::string_view how_kept(const Observer& seen) {
  if (seen.is_range_only()) return "range";
  return seen.is_sketch() ? "sketch" : "exact";
}

Exit inspect_counts(const std::string& path, const Context& context) {
  CountsReader reader(path);
  std::map<std::uint64_t, std::pair<std::vector<std::string>, Json>> layers;
  bool has_sinks = false;
  while (const std::optional<LayerCounts> layer = reader.next()) {
    context.progress(layer->config.name);
    const Observer& seen = layer->observer;
    const std::optional<KVRole> role =
        layer->config.role ? layer->config.role : role_in_name(layer->config.name);
    const ValueRange range = range_of(seen);
    const std::string kept(how_kept(seen));
    layers[layer->index] = {
        {layer->config.name, role_of(role), std::string(name_of(layer->config.tap)),
         std::string(name_of(seen.granularity())), std::to_string(seen.batches()),
         std::to_string(seen.rows()), std::to_string(seen.channels()), number(range.min),
         number(range.max), std::to_string(seen.non_finite_count()), kept,
         std::to_string(layer->config.sink_tokens)},
        Json{{"layer", layer->config.name},
             {"tap", name_of(layer->config.tap)},
             {"sink_tokens", layer->config.sink_tokens},
             {"query_weighted", layer->config.query_weighted},
             {"granularity", name_of(seen.granularity())},
             {"act_algo", layer->config.algorithm},
             {"dst_type", layer->config.grid.name},
             {"batches", seen.batches()},
             {"rows", seen.rows()},
             {"channels", seen.channels()},
             {"min", range.min},
             {"max", range.max},
             {"non_finite", seen.non_finite_count()},
             {"kept", kept}}};
    has_sinks = has_sinks || layer->config.sink_tokens > 0;
  }
  context.end_progress();
  std::vector<std::vector<std::string>> rows{{"layer", "role", "tap", "granularity", "batches",
                                              "rows", "channels", "min", "max", "non-finite",
                                              "kept", "sink_tokens"}};
  Json json{{"file", path},
            {"kind", "counts"},
            {"written_by", reader.header().written_by},
            {"batch_num", reader.header().batch_num},
            {"layers", Json::array()}};
  for (auto& [index, layer] : layers) {
    rows.push_back(std::move(layer.first));
    json["layers"].push_back(std::move(layer.second));
  }
  if (!has_sinks) {
    for (std::vector<std::string>& row : rows) row.pop_back();
  }
  if (context.json) {
    context.write(json);
  } else {
    context.out << table(rows) << '\n'
                << printable(path) << ": counts of " << layers.size() << " layers, written by "
                << printable(reader.header().written_by) << '\n';
  }
  return Exit::kOk;
}

}  // namespace

void add_inspect(CLI::App& program, const OnParsed& on_parsed) {
  CLI::App& command =
      *program.add_subcommand("inspect", "Show what a record or a counts file holds.");
  command.footer("\nExample: amct inspect record.txt");
  const auto path = std::make_shared<std::string>();
  command.add_option("FILE", *path, "A record or a counts file.")->required();
  command.callback([path, on_parsed] {
    on_parsed([path = *path](const Context& context) {
      return is_counts_file(path) ? inspect_counts(path, context) : inspect_record(path, context);
    });
  });
}

}  // namespace amct::cli
