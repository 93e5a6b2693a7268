#include "amct/session/counts_file.h"

#include "amct/core/error.h"
#include "amct/core/file.h"
#include "amct/search/search.h"

#include <algorithm>
#include <array>
#include <cstddef>
#include <limits>
#include <string_view>
#include <utility>

#include <zlib.h>

#include "value_counts.pb.h"

namespace amct {
namespace {

using namespace std::string_view_literals;

constexpr std::string_view kMagic = "AMCTcnt"sv;
constexpr char kVersion = 1;
constexpr std::uint64_t kMaxBlock = std::numeric_limits<std::int32_t>::max();  // of protobuf

void append_number(std::string& to, std::uint64_t number, int bytes) {
  for (int i = 0; i < bytes; ++i) to += static_cast<char>((number >> (8 * i)) & 0xFF);
}

std::uint64_t number_at(std::string_view from, std::size_t at, int bytes) {
  std::uint64_t number = 0;
  for (int i = 0; i < bytes; ++i) {
    const auto byte = static_cast<std::uint8_t>(from[at + static_cast<std::size_t>(i)]);
    number |= std::uint64_t{byte} << (8 * i);
  }
  return number;
}

std::uint32_t crc_of(std::string_view content) {
  return static_cast<std::uint32_t>(
      ::crc32_z(0, reinterpret_cast<const Bytef*>(content.data()), content.size()));
}

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
  AtomicFile file;

  void append(const std::string& content) {
    std::string head;
    append_number(head, content.size(), 8);
    append_number(head, crc_of(content), 4);
    file.append(head);
    file.append(content);
  }
};

CountsWriter::CountsWriter(const std::string& path, const CountsHeader& header)
    : impl_(new Impl{AtomicFile(path)}) {
  impl_->file.append(std::string(kMagic) + kVersion);
  AMCTCounts::CountsHeader message;
  message.set_written_by("amct " AMCT_VERSION);
  message.set_batch_num(static_cast<std::uint64_t>(header.batch_num));
  message.set_activation_offset(header.activation_offset);
  impl_->append(message.SerializeAsString());
}
CountsWriter::CountsWriter(CountsWriter&&) noexcept = default;
CountsWriter& CountsWriter::operator=(CountsWriter&&) noexcept = default;
CountsWriter::~CountsWriter() = default;

void CountsWriter::add(const LayerConfig& config, std::uint64_t index, const Observer& observer) {
  AMCTCounts::LayerCounts message;
  message.set_index(index);
  message.set_config(json_of(config));
  message.set_observer(observer.serialize());
  const std::string content = message.SerializeAsString();
  if (content.empty()) {  // protobuf has a limit of 2 GiB
    throw StateError("layer '" + config.name +
                     "': its counts are too large to be saved: more than 2 GiB");
  }
  impl_->append(content);
}

void CountsWriter::commit() {
  impl_->append("");
  impl_->file.commit();
}

struct CountsReader::Impl {
  FileReader file;
  std::string path;
  CountsHeader header;
  bool at_end = false;

  explicit Impl(const std::string& name) : file(name), path(name) {}

  [[noreturn]] void damaged(const std::string& what) const {
    throw ValueError(path + ": the counts file is damaged: " + what + "; calibrate again");
  }

  /// The content of the next block; empty at the end of the file.
  std::string block() {
    const std::string head = file.read(12);
    if (head.size() < 12)
      damaged("it ends before its last block, so it was not written to its end");
    const std::uint64_t size = number_at(head, 0, 8);
    if (size > kMaxBlock || size > file.remaining()) damaged("a block is longer than the file");
    std::string content = file.read(static_cast<std::size_t>(size));
    if (content.size() != size || crc_of(content) != number_at(head, 8, 4))
      damaged("a checksum is wrong");
    return content;
  }
};

CountsReader::CountsReader(const std::string& path) : impl_(new Impl(path)) {
  const std::string magic = impl_->file.read(kMagic.size() + 1);
  if (magic.size() <= kMagic.size() || !magic.starts_with(kMagic))
    throw ValueError(path + ": this is not a counts file");
  if (magic.back() != kVersion) {
    throw ValueError(path + ": this counts file has version " +
                     std::to_string(static_cast<std::uint8_t>(magic.back())) +
                     " of its format, and this library reads version " + std::to_string(kVersion) +
                     "; install a newer one");
  }
  AMCTCounts::CountsHeader message;
  if (!message.ParseFromString(impl_->block())) impl_->damaged("its header cannot be read");
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
  if (impl_->at_end) return std::nullopt;
  const std::string content = impl_->block();
  if (content.empty()) {
    impl_->at_end = true;
    if (impl_->file.remaining() > 0) impl_->damaged("it goes on after its last block");
    return std::nullopt;
  }
  AMCTCounts::LayerCounts message;
  if (!message.ParseFromString(content)) impl_->damaged("a layer cannot be read");
  LayerConfig config = config_of(message.config(), impl_->path);
  try {
    Observer observer = Observer::deserialize(message.observer());
    return LayerCounts{std::move(config), message.index(), std::move(observer)};
  } catch (const ValueError& error) {
    throw ValueError(impl_->path + ": layer '" + config.name + "': " + error.what());
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

namespace {

/// Throws unless counts of both may be added.
void check_same_observation(const LayerConfig& a, const LayerConfig& b, const std::string& path) {
  const auto differ = [&](const char* setting) {
    throw ValueError(path + ": layer '" + a.name + "' was observed with another " + setting +
                     " than in the files before; counts of one way of observing can be merged");
  };
  if (a.granularity != b.granularity) differ("granularity");
  if (a.head_num != b.head_num) differ("head_num");
  if (a.tap != b.tap) differ("tap");
  if (a.role != b.role) differ("role");
  if (a.slice != b.slice) differ("slice");
  if (a.max_position != b.max_position) differ("max_position");
  if (a.sink_tokens != b.sink_tokens) differ("sink_tokens");
  if (a.query_weighted != b.query_weighted) differ("query_weighted");
}

}  // namespace

void merge_counts(std::span<const std::string> inputs, const std::string& output) {
  std::vector<LayerCounts> layers;
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
      const auto found = std::ranges::find(
          layers, layer->config.name, [](const LayerCounts& other) { return other.config.name; });
      if (found == layers.end()) {
        layers.push_back(std::move(*layer));
        continue;
      }
      check_same_observation(found->config, layer->config, path);
      found->observer.merge(layer->observer);
    }
    std::stable_sort(layers.begin() + static_cast<std::ptrdiff_t>(known), layers.end(),
                     [](const LayerCounts& a, const LayerCounts& b) { return a.index < b.index; });
    first = false;
  }
  CountsWriter writer(output, header);
  for (std::size_t i = 0; i < layers.size(); ++i)
    writer.add(layers[i].config, i, layers[i].observer);
  writer.commit();
}

}  // namespace amct
