// Adding factors to a checkpoint, or beside it.
#pragma once

#include "amct/export/exporter.h"

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "export/checkpoint.h"
#include "export/factors.h"

namespace amct {

/// What an export adds to a checkpoint.
struct CheckpointUpdate {
  std::vector<NewTensor> tensors;
  /// Further JSON files and what they are, written before config.json.
  std::vector<std::pair<std::string, Json>> files;
  /// The `quantization_config` to set in config.json.
  std::optional<Json> quantization_config;
};

/// A folder's files of quantization settings.
enum class Marker : std::uint8_t { kQuantizationConfig, kHfQuantConfig, kDescription };

/// The folder that the update goes to. Throws ValueError where there is none, or it holds another
/// checkpoint than the job's.
std::string output_folder(const Runtime& runtime, const ExportJob& job,
                          const ExportOptions& options);

/// Throws ValueError, with the reason, where the checkpoint is quantized by other means than those
/// in `own`, or holds tensors by the names that the update has in a file of others. `is_ours` says
/// whether what is there in the own marker was written by this exporter, and may be replaced.
void require_unquantized(const Runtime& runtime, const ExportJob& job, Marker own,
                         const CheckpointUpdate& update, bool (*is_ours)(const Json& settings));

/// Writes it: the shard, the index, the further files, config.json; each whole. Where a folder
/// gets it that is not the checkpoint's, index and config.json are copies with the additions.
void write_update(const Runtime& runtime, ExportJob* job, const ExportOptions& options,
                  const CheckpointUpdate& update);

}  // namespace amct
