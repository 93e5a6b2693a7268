#include "amct/record/record_file.h"

#include "amct/core/decimal.h"
#include "amct/core/error.h"
#include "amct/core/file.h"
#include "amct/core/file_lock.h"
#include "amct/core/text.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <filesystem>
#include <mutex>
#include <string_view>
#include <system_error>
#include <unordered_map>
#include <unordered_set>
#include <utility>

#include "record/protobuf_text.h"
#include "scale_offset_record_pytorch.pb.h"

namespace amct {
namespace {

using AMCTPytorchProto::MapFiledEntry;
using AMCTPytorchProto::ScaleOffsetRecord;

constexpr std::chrono::seconds kPatience(10);  // with another process that writes the record

ScaleOffsetRecord parse_record(const std::string& path) {
  ScaleOffsetRecord record;
  parse_protobuf_text(read_text_file(path), path, record);
  return record;
}

/// What the file holds; nothing where it is not there.
ScaleOffsetRecord parse_existing_record(const std::string& path) {
  std::error_code failure;
  const bool exists = std::filesystem::exists(path, failure);
  if (failure) throw IoError(failure.value(), "read", path);
  return exists ? parse_record(path) : ScaleOffsetRecord();
}

void set_factors(MapFiledEntry& entry, const LayerRecord& layer) {
  auto& value = *entry.mutable_kv_cache_value();
  value.Clear();
  for (const QuantParams& params : layer.params) value.add_scale(params.scale);
  for (const QuantParams& params : layer.params) value.add_offset(params.offset);
  // Extensions stand where they say something: a plain record is that of the existing toolkit.
  if (layer.per_head) value.set_head_num(static_cast<std::uint32_t>(layer.params.size()));
  if (layer.grid != kInt8) value.set_dst_type(std::string(layer.grid.name));
  if (layer.tap == Tap::kCache) value.set_tap(AMCTPytorchProto::cache);
  if (layer.sink_tokens > 0) value.set_sink_tokens(static_cast<std::uint32_t>(layer.sink_tokens));
  if (layer.role && layer.role != role_in_name(layer.name)) {
    value.set_role(*layer.role == KVRole::kKey ? AMCTPytorchProto::key : AMCTPytorchProto::value);
  }
}

/// What an entry says beside its factors. `where` begins the message of a ValueError.
LayerRecord layer_of(const MapFiledEntry& entry, const std::string& where) {
  const auto& value = entry.kv_cache_value();
  LayerRecord layer;
  layer.name = entry.key();
  layer.per_head = value.has_head_num();
  layer.grid = grid_named(value.dst_type(), where + "dst_type");
  if (value.tap() == AMCTPytorchProto::cache) layer.tap = Tap::kCache;
  layer.sink_tokens = value.sink_tokens();
  if (value.has_role())
    layer.role = value.role() == AMCTPytorchProto::value ? KVRole::kValue : KVRole::kKey;
  return layer;
}

/// Puts the entries that `order` names into that order, among the places they hold together.
void put_in_order(ScaleOffsetRecord& record, std::span<const std::string> order) {
  std::unordered_map<std::string_view, std::size_t> rank;
  for (std::size_t i = 0; i < order.size(); ++i) rank.emplace(order[i], i);
  std::vector<int> places;
  std::vector<MapFiledEntry> entries;
  for (int i = 0; i < record.record_size(); ++i) {
    if (!rank.contains(record.record(i).key())) continue;
    places.push_back(i);
    entries.push_back(std::move(*record.mutable_record(i)));
  }
  std::ranges::stable_sort(
      entries, {}, [&](const MapFiledEntry& entry) { return rank.find(entry.key())->second; });
  for (std::size_t i = 0; i < places.size(); ++i) {
    *record.mutable_record(places[i]) = std::move(entries[i]);
  }
}

/// Where the entry of each key stands: the one with cache factors, where other features keep
/// another under the same key.
std::unordered_map<std::string, int> positions_of(const ScaleOffsetRecord& record) {
  std::unordered_map<std::string, int> positions;
  for (int i = 0; i < record.record_size(); ++i) {
    const MapFiledEntry& entry = record.record(i);
    const auto [found, first] = positions.emplace(entry.key(), i);
    if (!first && entry.has_kv_cache_value() &&
        !record.record(found->second).has_kv_cache_value()) {
      found->second = i;
    }
  }
  return positions;
}

}  // namespace

std::vector<LayerRecord> read_record(const std::string& path) {
  const ScaleOffsetRecord record = parse_record(path);
  std::vector<LayerRecord> layers;
  std::unordered_set<std::string_view> seen;
  for (const MapFiledEntry& entry : record.record()) {
    if (!entry.has_kv_cache_value()) continue;
    check_layer_name(entry.key(), path);
    const std::string where = path + ": layer '" + entry.key() + "': ";
    if (!seen.insert(entry.key()).second) throw ValueError(where + "stands twice in the record");
    const auto& value = entry.kv_cache_value();
    if (value.scale_size() == 0 || value.scale_size() != value.offset_size()) {
      throw ValueError(where + "has " + std::to_string(value.scale_size()) + " scales but " +
                       std::to_string(value.offset_size()) + " offsets; calibrate it again");
    }
    if (value.has_head_num() && std::cmp_not_equal(value.head_num(), value.scale_size())) {
      throw ValueError(where + "has " + std::to_string(value.scale_size()) + " scales but " +
                       std::to_string(value.head_num()) + " heads; calibrate it again");
    }
    LayerRecord layer = layer_of(entry, where);
    for (int i = 0; i < value.scale_size(); ++i) {
      if (!std::isfinite(value.scale(i)) || value.scale(i) <= 0) {
        throw ValueError(where + "scale " + shortest_decimal(value.scale(i)) +
                         " is not positive and finite; calibrate it again");
      }
      layer.params.push_back({value.scale(i), value.offset(i)});
    }
    check_layer_count(layers.size() + 1, path);
    layers.push_back(std::move(layer));
  }
  return layers;
}

void check_mergeable(const std::string& path) { parse_existing_record(path); }

void write_empty_record(const std::string& path) { write_file_atomically(path, ""); }

void write_record(const std::string& path, std::span<const LayerRecord> layers) {
  const FileLock file_lock(path, kPatience);
  check_layer_count(layers.size(), path);
  ScaleOffsetRecord record;
  for (const LayerRecord& layer : layers) {
    check_layer_name(layer.name, path);
    MapFiledEntry& entry = *record.add_record();
    entry.set_key(layer.name);
    set_factors(entry, layer);
  }
  write_file_atomically(path, to_protobuf_text(record));
}

std::vector<std::string> merge_into_record(const std::string& path,
                                           std::span<const LayerRecord> layers,
                                           std::span<const std::string> order) {
  const FileLock file_lock(path, kPatience);
  static std::mutex mutex;
  const std::lock_guard lock(mutex);
  check_output_path(path);
  ScaleOffsetRecord record = parse_existing_record(path);
  std::unordered_map<std::string, int> positions = positions_of(record);
  auto known = static_cast<std::size_t>(
      std::ranges::count_if(record.record(), &MapFiledEntry::has_kv_cache_value));
  std::vector<std::string> replaced;
  for (const LayerRecord& layer : layers) {
    check_layer_name(layer.name, path);
    const auto [found, added] = positions.emplace(layer.name, record.record_size());
    if (added) record.add_record()->set_key(layer.name);
    MapFiledEntry& entry = *record.mutable_record(found->second);
    if (entry.has_kv_cache_value()) {
      replaced.push_back(layer.name);
    } else {
      check_layer_count(++known, path);  // or it could not be read
    }
    set_factors(entry, layer);
  }
  put_in_order(record, order);
  write_file_atomically(path, to_protobuf_text(record));
  return replaced;
}

}  // namespace amct
