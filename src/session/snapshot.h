// Snapshots: what a session knew, as a file.
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
struct SnapshotHeader {
  std::string config;  ///< the configuration file, as JSON
  std::string data;    ///< what names the batches; or empty
  std::int64_t batches_done = 0;
  std::size_t sample_bytes = 0;
  bool keeps_counts = false;
};

/// A layer that has seen batches: `observer` where it needs more, else `result`.
struct LayerSnapshot {
  std::size_t index = 0;  ///< its place in the configuration
  double observe_seconds = 0;
  std::optional<Observer> observer;
  std::optional<LayerResult> result;
  std::string counts;  ///< its block of the counts file
};

/// Writes a snapshot, which is there, whole, once it is committed.
class SnapshotWriter {
 public:
  /// Throws as AtomicFile does.
  SnapshotWriter(const std::string& path, const SnapshotHeader& header);

  /// Throw IoError, and StateError for a layer of more than 2 GiB.
  void add(std::size_t index, double observe_seconds, const Observer& observer);
  void add(std::size_t index, const LayerResult& result, const std::string& counts);
  /// Throws IoError; the file that was there is then as it was.
  void commit() { file_.commit(); }

 private:
  BlockWriter file_;
};

struct Snapshot {
  SnapshotHeader header;
  std::vector<LayerSnapshot> layers;
};

/// Reads a snapshot of a session that has this configuration, whose layers' results then say what
/// it says. Throws IoError; ValueError where the file is no snapshot, is damaged, or is of
/// another configuration.
Snapshot read_snapshot(const std::string& path, const SnapshotHeader& expected);

}  // namespace amct
