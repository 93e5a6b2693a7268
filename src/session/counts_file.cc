#include "amct/session/counts_file.h"

#include "amct/core/error.h"
#include "amct/core/file.h"
#include "amct/core/text.h"
#include "amct/search/search.h"

#include <algorithm>
#include <cstddef>
#include <limits>
#include <string_view>
#include <unordered_map>
#include <unordered_set>
#include <utility>

#include "session/block_file.h"
#include "session/same_observation.h"
#include "value_counts.pb.h"

namespace amct {
namespace {

constexpr BlockFormat kFormat{
    .magic = "AMCTcnt", .version = 1, .name = "counts file", .remedy = "calibrate again"};

/// A layer's configuration as a file of it alone, and back.
std::string json_of(const LayerConfig& config) {
  CalibrationConfig whole;
  whole.layers.push_back(config);
  return to_json(whole, algorithm_catalog());
}
LayerConfig config_of(const std::string& json, const std::string& source) {
  CalibrationConfig whole = parse_config(json, source, algorithm_catalog());
  if (whole.layers.size() != 1) throw ValueError(source + ": a block holds not one layer");
  return std::move(whole.layers.front());
}

}  // namespace

struct CountsWriter::Impl {
  BlockWriter file;
};

CountsWriter::CountsWriter(const std::string& path, const CountsHeader& header)
    : impl_(new Impl{BlockWriter(path, kFormat)}) {
  AMCTCounts::CountsHeader message;
  message.set_written_by("amct " AMCT_VERSION);
  message.set_batch_num(static_cast<std::uint64_t>(header.batch_num));
  message.set_activation_offset(header.activation_offset);
  impl_->file.add(message.SerializeAsString());
}
CountsWriter::CountsWriter(CountsWriter&&) noexcept = default;
CountsWriter& CountsWriter::operator=(CountsWriter&&) noexcept = default;
CountsWriter::~CountsWriter() = default;

void CountsWriter::add(const LayerConfig& config, std::uint64_t index, const Observer& observer) {
  check_layer_count(layers() + 1, impl_->file.path());
  AMCTCounts::LayerCounts message;
  message.set_index(index);
  message.set_config(json_of(config));
  message.set_observer(observer.serialize());
  const std::string content = message.SerializeAsString();
  if (content.empty()) {  // protobuf has a limit of 2 GiB
    throw StateError("layer '" + config.name +
                     "': its counts are too large to be saved: more than 2 GiB");
  }
  impl_->file.add(content);
}

std::size_t CountsWriter::layers() const { return impl_->file.blocks() - 1; }
std::string CountsWriter::layer(std::size_t number) const {
  return impl_->file.read_back(number + 1);
}
void CountsWriter::add(std::string_view layer) { impl_->file.add(layer); }

void CountsWriter::commit() { impl_->file.commit(); }

struct CountsReader::Impl {
  explicit Impl(const std::string& path) : file(path, kFormat) {}

  BlockReader file;
  CountsHeader header;
  std::unordered_set<std::string> names;
  std::unordered_set<std::uint64_t> indexes;
};

CountsReader::CountsReader(const std::string& path) : impl_(new Impl(path)) {
  AMCTCounts::CountsHeader message;
  if (!message.ParseFromString(impl_->file.next()))
    impl_->file.damaged("its header cannot be read");
  if (!is_utf8(message.written_by())) impl_->file.damaged("its header is not text");
  constexpr std::uint64_t kMost = std::numeric_limits<std::int64_t>::max();
  impl_->header = {.batch_num = static_cast<std::int64_t>(std::min(message.batch_num(), kMost)),
                   .activation_offset = message.activation_offset(),
                   .written_by = message.written_by()};
}
CountsReader::CountsReader(CountsReader&&) noexcept = default;
CountsReader& CountsReader::operator=(CountsReader&&) noexcept = default;
CountsReader::~CountsReader() = default;

const CountsHeader& CountsReader::header() const { return impl_->header; }

std::optional<LayerCounts> CountsReader::next() {
  const std::string& path = impl_->file.path();
  const std::string content = impl_->file.next();
  if (content.empty()) return std::nullopt;
  AMCTCounts::LayerCounts message;
  if (!message.ParseFromString(content)) impl_->file.damaged("a layer cannot be read");
  LayerConfig config = config_of(message.config(), path);
  check_layer_count(impl_->names.size() + 1, path);
  if (!impl_->names.insert(config.name).second || !impl_->indexes.insert(message.index()).second)
    impl_->file.damaged("layer '" + config.name + "', or its place, is in it twice");
  try {
    Observer observer = Observer::deserialize(message.observer());
    return LayerCounts{std::move(config), message.index(), std::move(observer)};
  } catch (const ValueError& error) {
    throw ValueError(path + ": layer '" + config.name + "': " + error.what());
  }
}

std::vector<LayerResult> solve_counts(
    const std::string& path, std::span<const std::pair<std::string, OptionValue>> changes) {
  CountsReader reader(path);
  std::vector<std::pair<std::uint64_t, LayerResult>> results;
  while (const std::optional<LayerCounts> layer = reader.next()) {
    const LayerConfig config = with_settings(layer->config, changes, algorithm_catalog());
    CalibrationConfig whole;
    whole.activation_offset = reader.header().activation_offset;
    const std::string where = path + ": layer '" + config.name + "': ";
    try {
      results.emplace_back(layer->index, solve(config, whole.with_offset(config), layer->observer));
    } catch (const StateError& error) {
      throw StateError(where + error.what());
    } catch (const ValueError& error) {
      throw ValueError(where + error.what());
    }
  }
  std::ranges::stable_sort(results, {}, &std::pair<std::uint64_t, LayerResult>::first);
  std::vector<LayerResult> sorted;
  sorted.reserve(results.size());
  for (auto& [index, result] : results) sorted.push_back(std::move(result));
  return sorted;
}

void check_same_observation(const LayerConfig& a, const LayerConfig& b, const std::string& source,
                            bool are_shards) {
  const auto differ = [&](const char* setting) {
    throw ValueError(source + ": layer '" + a.name + "' was observed with another " + setting +
                     " than in the files before; counts of one way of observing can be merged");
  };
  if (a.granularity != b.granularity) differ("granularity");
  if (!are_shards && a.head_num != b.head_num) differ("head_num");
  if (a.tap != b.tap) differ("tap");
  if (a.role != b.role) differ("role");
  if (!are_shards && a.slice != b.slice) differ("slice");
  if (a.max_position != b.max_position) differ("max_position");
  if (a.sink_tokens != b.sink_tokens) differ("sink_tokens");
  if (a.query_weighted != b.query_weighted) differ("query_weighted");
}

void merge_counts(std::span<const std::string> inputs, const std::string& output) {
  std::vector<std::string> files(inputs.begin(), inputs.end());
  files.push_back(output);
  check_different_files(files);
  std::vector<LayerCounts> layers;
  std::unordered_map<std::string, std::size_t> places;
  CountsHeader header;
  bool first = true;
  for (const std::string& path : inputs) {
    CountsReader reader(path);
    header.batch_num =
        first ? reader.header().batch_num
              : header.batch_num +
                    std::min(reader.header().batch_num,
                             std::numeric_limits<std::int64_t>::max() - header.batch_num);
    if (first) header.activation_offset = reader.header().activation_offset;
    const auto known = layers.size();
    while (std::optional<LayerCounts> layer = reader.next()) {
      const auto found = places.find(layer->config.name);
      if (found == places.end()) {
        layers.push_back(std::move(*layer));
        continue;
      }
      LayerCounts& sum = layers[found->second];
      check_same_observation(sum.config, layer->config, path);
      sum.observer.merge(layer->observer);
    }
    std::stable_sort(layers.begin() + static_cast<std::ptrdiff_t>(known), layers.end(),
                     [](const LayerCounts& a, const LayerCounts& b) { return a.index < b.index; });
    for (std::size_t i = known; i < layers.size(); ++i) places.emplace(layers[i].config.name, i);
    first = false;
  }
  CountsWriter writer(output, header);
  for (std::size_t i = 0; i < layers.size(); ++i)
    writer.add(layers[i].config, i, layers[i].observer);
  writer.commit();
}

}  // namespace amct
