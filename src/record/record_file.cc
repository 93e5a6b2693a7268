#include "amct/record/record_file.h"

#include "amct/core/decimal.h"
#include "amct/core/error.h"
#include "amct/core/file.h"

#include <cmath>
#include <filesystem>
#include <mutex>
#include <string_view>
#include <unordered_map>
#include <unordered_set>

#include "record/protobuf_text.h"
#include "scale_offset_record_pytorch.pb.h"

namespace amct {
namespace {

using AMCTPytorchProto::MapFiledEntry;
using AMCTPytorchProto::ScaleOffsetRecord;

ScaleOffsetRecord parse_record(const std::string& path) {
  ScaleOffsetRecord record;
  parse_protobuf_text(read_text_file(path), path, record);
  return record;
}

void set_factors(MapFiledEntry& entry, const LayerRecord& layer) {
  auto& value = *entry.mutable_kv_cache_value();
  value.Clear();
  for (const QuantParams& params : layer.params) value.add_scale(params.scale);
  for (const QuantParams& params : layer.params) value.add_offset(params.offset);
}

/// Moves the last entry in front of the first one that `rank` puts after it.
void place_last_entry(ScaleOffsetRecord& record,
                      const std::unordered_map<std::string_view, std::size_t>& rank) {
  auto& entries = *record.mutable_record();
  const auto own = rank.find(entries[entries.size() - 1].key());
  if (own == rank.end()) return;
  int target = 0;
  for (; target < entries.size() - 1; ++target) {
    const auto other = rank.find(entries[target].key());
    if (other != rank.end() && other->second > own->second) break;
  }
  for (int i = entries.size() - 1; i > target; --i) entries.SwapElements(i, i - 1);
}

}  // namespace

std::vector<LayerRecord> read_record(const std::string& path) {
  const ScaleOffsetRecord record = parse_record(path);
  std::vector<LayerRecord> layers;
  std::unordered_set<std::string_view> seen;
  for (const MapFiledEntry& entry : record.record()) {
    if (!entry.has_kv_cache_value()) continue;
    const std::string where = path + ": layer '" + entry.key() + "': ";
    if (!seen.insert(entry.key()).second) throw ValueError(where + "stands twice in the record");
    const auto& value = entry.kv_cache_value();
    if (value.scale_size() == 0 || value.scale_size() != value.offset_size()) {
      throw ValueError(where + "has " + std::to_string(value.scale_size()) + " scales but " +
                       std::to_string(value.offset_size()) + " offsets; calibrate it again");
    }
    LayerRecord layer{entry.key(), {}};
    for (int i = 0; i < value.scale_size(); ++i) {
      if (!std::isfinite(value.scale(i)) || value.scale(i) <= 0) {
        throw ValueError(where + "scale " + shortest_decimal(value.scale(i)) +
                         " is not positive and finite; calibrate it again");
      }
      layer.params.push_back({value.scale(i), value.offset(i)});
    }
    layers.push_back(std::move(layer));
  }
  return layers;
}

void write_empty_record(const std::string& path) { write_file_atomically(path, ""); }

std::vector<std::string> merge_into_record(const std::string& path,
                                           std::span<const LayerRecord> layers,
                                           std::span<const std::string> order) {
  static std::mutex mutex;
  const std::lock_guard lock(mutex);
  check_output_path(path);
  ScaleOffsetRecord record;
  if (std::filesystem::exists(path)) record = parse_record(path);

  std::unordered_map<std::string_view, std::size_t> rank;
  for (std::size_t i = 0; i < order.size(); ++i) rank.emplace(order[i], i);
  std::unordered_map<std::string, int> position;
  for (int i = 0; i < record.record_size(); ++i) position.emplace(record.record(i).key(), i);

  std::vector<std::string> replaced;
  std::vector<const LayerRecord*> added;
  for (const LayerRecord& layer : layers) {
    const auto found = position.find(layer.name);
    if (found == position.end()) {
      added.push_back(&layer);
      continue;
    }
    MapFiledEntry& entry = *record.mutable_record(found->second);
    if (entry.has_kv_cache_value()) replaced.push_back(layer.name);
    set_factors(entry, layer);
  }
  for (const LayerRecord* layer : added) {
    MapFiledEntry& entry = *record.add_record();
    entry.set_key(layer->name);
    set_factors(entry, *layer);
    place_last_entry(record, rank);
  }
  write_file_atomically(path, to_protobuf_text(record));
  return replaced;
}

}  // namespace amct
