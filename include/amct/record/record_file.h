// The record file: the factors of every calibrated layer, as protobuf text of a ScaleOffsetRecord
// (scale_offset_record_pytorch.proto).
#pragma once

#include "amct/core/grid.h"
#include "amct/core/kv_layer.h"
#include "amct/core/quant_params.h"

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#pragma GCC visibility push(default)
namespace amct {

/// The factors of one layer: one pair per tensor, or one pair a channel, in channel order, or one
/// pair a head, of as many neighbouring channels each.
struct LayerRecord {
  std::string name;
  std::vector<QuantParams> params;
  bool per_head = false;
  Grid grid = kInt8;
  Tap tap = Tap::kLinear;                     ///< where the values were observed
  std::optional<KVRole> role = std::nullopt;  ///< where the record says it; see known_role()
  std::int64_t sink_tokens = 0;  ///< first tokens of each sequence that the factors are not for

  /// What the record or, where it does not say it, the name says the layer is.
  std::optional<KVRole> known_role() const { return role ? role : role_in_name(name); }

  friend bool operator==(const LayerRecord&, const LayerRecord&) = default;
};

/// The layers with cache factors, in file order; entries of other features are passed over.
/// Throws IoError where the file cannot be read; ValueError where it is not a record, names a layer
/// twice, or holds a layer whose numbers of scales, offsets and (where given) heads differ, whose
/// scale is not positive and finite, or whose dst_type is unknown.
std::vector<LayerRecord> read_record(const std::string& path);

/// Writes an empty record, replacing what the file held. Throws as write_file_atomically does.
void write_empty_record(const std::string& path);

/// Writes a record of `layers` alone, in their order, which replaces what the file held at once:
/// until then it is as it was. Throws as merge_into_record does, but for what the file held.
void write_record(const std::string& path, std::span<const LayerRecord> layers);

/// Throws as merge_into_record does where the file is there and cannot be read or is not a record.
void check_mergeable(const std::string& path);

/// Puts the factors of `layers` into the file, which is created where missing, and leaves
/// everything else in it as it is: other layers, other features' fields, prune records. Layers
/// named in `order` stand in that order; others keep their places, new ones come last. Within this
/// process, calls on all files exclude each other. Returns the names of layers whose factors were
/// replaced. Throws IoError; ValueError where the file is there and is not a record, for a name
/// that no layer can have, and where there would be more layers than kMaxLayers; or StateError
/// where another process goes on writing it (see FileLock) for longer than 10 seconds; the file is
/// then as it was.
std::vector<std::string> merge_into_record(const std::string& path,
                                           std::span<const LayerRecord> layers,
                                           std::span<const std::string> order);

}  // namespace amct
#pragma GCC visibility pop
