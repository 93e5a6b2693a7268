#include "session/snapshot.h"

#include "amct/core/error.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <set>
#include <string_view>
#include <utility>

#include <nlohmann/json.hpp>

#include "snapshot.pb.h"

namespace amct {
namespace {

constexpr BlockFormat kFormat{.magic = "AMCTsnp",
                              .version = 1,
                              .name = "snapshot",
                              .remedy = "remove it, and calibrate from the start"};

void add_layer(BlockWriter& file, const AMCTSnapshot::LayerSnapshot& message) {
  const std::string content = message.SerializeAsString();
  if (content.empty())  // protobuf has a limit of 2 GiB
    throw StateError("a layer is too large to be saved: more than 2 GiB");
  file.add(content);
}

/// Where two configurations differ: "/kv_cache/layers/3/act_algo".
std::string difference(const std::string& a, const std::string& b) {
  const auto patch = nlohmann::json::diff(nlohmann::json::parse(a, nullptr, false),
                                          nlohmann::json::parse(b, nullptr, false));
  return patch.empty() ? std::string() : patch.front().value("path", std::string());
}

void check_header(const BlockReader& file, const SnapshotHeader& header,
                  const SnapshotHeader& expected) {
  const std::string of_another = file.path() + ": the snapshot is of another calibration: ";
  const std::string remedy = "; go on with what it was made with, or remove it";
  if (header.config != expected.config) {
    throw ValueError(of_another + "the configuration differs at '" +
                     difference(header.config, expected.config) + "'" + remedy);
  }
  if (header.data != expected.data)
    throw ValueError(of_another + "other batches were shown, or to another model" + remedy);
  if (header.sample_bytes != expected.sample_bytes)
    throw ValueError(of_another + "its memory budget differs" + remedy);
  if (header.keeps_counts != expected.keeps_counts) {
    throw ValueError(of_another + "a counts file was " + (header.keeps_counts ? "" : "not ") +
                     "asked for" + remedy);
  }
}

LayerResult result_of(const BlockReader& file, const AMCTSnapshot::LayerResult& message) {
  LayerResult result;
  result.batches = message.batches();
  result.rows = message.rows();
  result.channels = message.channels();
  result.non_finite = message.non_finite();
  result.min = message.min();
  result.max = message.max();
  result.is_sketch = message.is_sketch();
  result.search_seconds = message.search_seconds();
  if (message.has_sqnr_db()) result.sqnr_db = message.sqnr_db();
  if (message.has_clipped_fraction()) result.clipped_fraction = message.clipped_fraction();
  if (message.scales_size() == 0 || message.scales_size() != message.offsets_size())
    file.damaged("factors are missing");
  for (int i = 0; i < message.scales_size(); ++i) {
    if (!std::isfinite(message.scales(i)) || message.scales(i) <= 0)
      file.damaged("a scale is not a positive number");
    result.params.push_back({message.scales(i), message.offsets(i)});
  }
  return result;
}

}  // namespace

SnapshotWriter::SnapshotWriter(const std::string& path, const SnapshotHeader& header)
    : file_(path, kFormat) {
  AMCTSnapshot::SnapshotHeader message;
  message.set_written_by("amct " AMCT_VERSION);
  message.set_config(header.config);
  message.set_data(header.data);
  message.set_batches_done(static_cast<std::uint64_t>(header.batches_done));
  message.set_sample_bytes(header.sample_bytes);
  message.set_keeps_counts(header.keeps_counts);
  file_.add(message.SerializeAsString());
}

void SnapshotWriter::add(std::size_t index, double observe_seconds, const Observer& observer) {
  AMCTSnapshot::LayerSnapshot message;
  message.set_index(index);
  message.set_observe_seconds(observe_seconds);
  message.set_observer(observer.serialize());
  add_layer(file_, message);
}

void SnapshotWriter::add(std::size_t index, const LayerResult& result, const std::string& counts) {
  AMCTSnapshot::LayerSnapshot message;
  message.set_index(index);
  message.set_observe_seconds(result.observe_seconds);
  message.set_counts(counts);
  AMCTSnapshot::LayerResult& seen = *message.mutable_result();
  seen.set_batches(result.batches);
  seen.set_rows(result.rows);
  seen.set_channels(result.channels);
  seen.set_non_finite(result.non_finite);
  seen.set_min(result.min);
  seen.set_max(result.max);
  for (const QuantParams& params : result.params) {
    seen.add_scales(params.scale);
    seen.add_offsets(params.offset);
  }
  if (result.sqnr_db) seen.set_sqnr_db(*result.sqnr_db);
  if (result.clipped_fraction) seen.set_clipped_fraction(*result.clipped_fraction);
  seen.set_is_sketch(result.is_sketch);
  seen.set_search_seconds(result.search_seconds);
  add_layer(file_, message);
}

Snapshot read_snapshot(const std::string& path, const SnapshotHeader& expected) {
  BlockReader file(path, kFormat);
  AMCTSnapshot::SnapshotHeader header;
  if (!header.ParseFromString(file.next())) file.damaged("its header cannot be read");
  if (std::cmp_greater(header.batches_done(), std::numeric_limits<std::int64_t>::max()))
    file.damaged("its header cannot be read");
  Snapshot result{.header = {.config = header.config(),
                             .data = header.data(),
                             .batches_done = static_cast<std::int64_t>(header.batches_done()),
                             .sample_bytes = header.sample_bytes(),
                             .keeps_counts = header.keeps_counts()},
                  .layers = {}};
  check_header(file, result.header, expected);
  std::set<std::uint64_t> seen;
  for (std::string content = file.next(); !content.empty(); content = file.next()) {
    AMCTSnapshot::LayerSnapshot message;
    if (!message.ParseFromString(content) || message.has_observer() == message.has_result())
      file.damaged("a layer cannot be read");
    if (!seen.insert(message.index()).second) file.damaged("a layer stands twice");
    LayerSnapshot layer{.index = message.index(),
                        .observe_seconds = message.observe_seconds(),
                        .observer = std::nullopt,
                        .result = std::nullopt,
                        .counts = message.counts()};
    try {
      if (message.has_observer()) layer.observer = Observer::deserialize(message.observer());
    } catch (const ValueError& error) {
      file.damaged(error.what());
    }
    if (message.has_result()) {
      layer.result = result_of(file, message.result());
      layer.result->observe_seconds = layer.observe_seconds;
      if (layer.counts.empty() == result.header.keeps_counts) file.damaged("counts are missing");
    }
    result.layers.push_back(std::move(layer));
  }
  return result;
}

}  // namespace amct
