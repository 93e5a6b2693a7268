// Checkpoints: what a session knew, as a file.
#pragma once

#include "amct/observe/observer.h"
#include "amct/session/solve.h"

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "session/block_file.h"

namespace amct {

/// What holds for the whole run.
struct CheckpointHeader {
  std::string config;  ///< the configuration file, as JSON
  std::int64_t batches_done = 0;
  std::size_t sample_bytes = 0;
  bool keeps_counts = false;
};

/// A layer that has seen batches: `observer` where it needs more, else `result`.
struct LayerCheckpoint {
  std::size_t index = 0;  ///< its place in the configuration
  double observe_seconds = 0;
  std::optional<Observer> observer;
  std::optional<LayerResult> result;
  std::string counts;  ///< its block of the counts file
};

/// Writes a checkpoint, which is there, whole, once it is committed.
class CheckpointWriter {
 public:
  /// Throws as AtomicFile does.
  CheckpointWriter(const std::string& path, const CheckpointHeader& header);

  /// Throw IoError, and StateError for a layer of more than 2 GiB.
  void add(std::size_t index, double observe_seconds, const Observer& observer);
  void add(std::size_t index, const LayerResult& result, const std::string& counts);
  /// Throws IoError; the file that was there is then as it was.
  void commit() { file_.commit(); }

 private:
  BlockWriter file_;
};

struct Checkpoint {
  CheckpointHeader header;
  std::vector<LayerCheckpoint> layers;
};

/// Reads a checkpoint of a session that has this configuration, whose layers' results then say what
/// it says. Throws IoError; ValueError where the file is no checkpoint, is damaged, or is of
/// another configuration.
Checkpoint read_checkpoint(const std::string& path, const CheckpointHeader& expected);

}  // namespace amct
