// Counts files: what layers were seen to hold, to search factors again without the model.
#pragma once

#include "amct/config/calibration_config.h"
#include "amct/observe/observer.h"
#include "amct/session/solve.h"

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#pragma GCC visibility push(default)
namespace amct {

/// What one layer was seen to hold.
struct LayerCounts {
  LayerConfig config;       ///< how it was calibrated
  std::uint64_t index = 0;  ///< its place in the configuration
  Observer observer;
};

/// What holds for all layers of a file.
struct CountsHeader {
  std::int64_t batch_num = 1;  ///< batches that were asked for
  bool activation_offset = true;
  std::string written_by;  ///< name and version of the program
};

/// Writes a counts file layer by layer; it is there, whole, once it is committed. Not thread-safe.
class CountsWriter {
 public:
  /// Throws as AtomicFile does; header.written_by is ignored.
  CountsWriter(const std::string& path, const CountsHeader& header);
  CountsWriter(CountsWriter&&) noexcept;
  CountsWriter& operator=(CountsWriter&&) noexcept;
  ~CountsWriter();

  /// Throws IoError; StateError for a layer of more than 2 GiB, ValueError for one more than
  /// kMaxLayers.
  void add(const LayerConfig& config, std::uint64_t index, const Observer& observer);

  std::size_t layers() const;  ///< that were added
  /// The `number`th layer that was added as bytes, and what adds it to another file. Throw IoError.
  std::string layer(std::size_t number) const;
  void add(std::string_view layer);

  /// Throws IoError; the file that was there is then as it was.
  void commit();

 private:
  struct [[gnu::visibility("hidden")]] Impl;
  std::unique_ptr<Impl> impl_;
};

/// Reads a counts file layer by layer, each of which is checked against its checksum.
class CountsReader {
 public:
  /// Throws IoError; ValueError where the file is no counts file, or of a later version.
  explicit CountsReader(const std::string& path);
  CountsReader(CountsReader&&) noexcept;
  CountsReader& operator=(CountsReader&&) noexcept;
  ~CountsReader();

  const CountsHeader& header() const;
  /// The next layer; nothing at the end. Throws ValueError where the file was damaged or is not
  /// whole.
  std::optional<LayerCounts> next();

 private:
  struct [[gnu::visibility("hidden")]] Impl;
  std::unique_ptr<Impl> impl_;
};

/// Searches the factors of every layer in a counts file again, with some settings of its
/// configuration replaced (see with_settings), or as it was. Results stand in the order of the
/// configuration. Throws as CountsReader, with_settings and solve do, the layer named.
std::vector<LayerResult> solve_counts(
    const std::string& path, std::span<const std::pair<std::string, OptionValue>> changes = {});

/// Writes the sum of counts files, layer by layer: as if one run had seen what all of them have.
/// Layers stand in the order of the first file that has them, and with its search and format. Holds
/// all layers in memory. Throws as CountsReader and CountsWriter do; ValueError where a file is
/// given twice, or is the output, and where a layer was observed in different ways (tap, slice,
/// granularity, heads, max_position, sink_tokens, query_weighted); StateError as Observer::merge
/// does.
void merge_counts(std::span<const std::string> inputs, const std::string& output);

/// A layer of a model whose parts several processes have (tensor parallelism). 0: not known.
struct WholeLayer {
  std::int64_t channels = 0;          ///< channels of the whole layer
  std::int64_t head_channels = 0;     ///< channels of a head
  std::optional<ChannelSlice> slice;  ///< where it lies in the whole fused projection
};

/// Writes counts files of processes that saw the same tokens, each its channels of every layer, as
/// one of a process that has whole layers: per channel and per head what they saw stands side by
/// side in the order of the inputs, per tensor it is added up, and batches and rows are those of
/// one. Reads layer by layer, and holds those of all inputs of one at a time.
///
/// Where all inputs together have a multiple of a layer's channels, neighbouring ones are copies of
/// each other, as processes are that share a head: they must have seen the same values, which count
/// once, and the weights of their channels are added, since each has other queries. Of layers that
/// are not among `whole` all inputs stand side by side.
///
/// Throws as CountsReader and CountsWriter do; ValueError without inputs, where they have other
/// layers or observed one in different ways, where channels make no whole layer or heads are not
/// those of the model, and where copies saw different values; StateError as Observer::side_by_side
/// does. The layer is named.
void join_counts(std::span<const std::string> inputs, const std::string& output,
                 const std::map<std::string, WholeLayer>& whole = {});

}  // namespace amct
#pragma GCC visibility pop
