// Counts files of processes that each have a part of every layer.
#include "amct/core/error.h"
#include "amct/core/file.h"
#include "amct/session/counts_file.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "session/same_observation.h"

namespace amct {
namespace {

/// The next layer of every input, which is one and the same; none at their end.
std::vector<LayerCounts> next_layer(std::vector<CountsReader>& readers) {
  std::vector<LayerCounts> shards;
  for (std::size_t i = 0; i < readers.size(); ++i) {
    std::optional<LayerCounts> shard = readers[i].next();
    const bool is_same =
        i == 0 ||
        (shard ? !shards.empty() && shards[0].config.name == shard->config.name : shards.empty());
    if (!is_same) {
      const auto named = [](bool any, const std::string& name) {
        return any ? "layer '" + name + "'" : "no further layer";
      };
      throw ValueError("shard " + std::to_string(i) + " has " +
                       named(shard.has_value(), shard ? shard->config.name : "") +
                       " where shard 0 has " +
                       named(!shards.empty(), shards.empty() ? "" : shards[0].config.name) +
                       "; processes that hold shards must have the same layers, and see the same "
                       "batches");
    }
    if (shard) shards.push_back(std::move(*shard));
  }
  return shards;
}

/// How many neighbouring shards are copies of one. Throws ValueError where that cannot be.
std::size_t copies_among(const std::vector<LayerCounts>& shards, std::int64_t whole) {
  const std::int64_t each = shards[0].observer.channels();
  std::int64_t sum = 0;
  bool are_equal = true;
  for (const LayerCounts& shard : shards) {
    sum += shard.observer.channels();
    are_equal = are_equal && shard.observer.channels() == each;
  }
  if (whole == 0 || sum == whole) return 1;
  if (are_equal && each > 0 && sum % whole == 0 && whole % each == 0)
    return static_cast<std::size_t>(sum / whole);
  std::string channels;
  for (const LayerCounts& shard : shards)
    channels += (channels.empty() ? "" : ", ") + std::to_string(shard.observer.channels());
  throw ValueError("its shards have " + channels + " channels, which are neither the " +
                   std::to_string(whole) +
                   " channels that it has by the model's numbers nor copies of them");
}

/// The first of some copies, with the weights of all.
Observer one_of(std::span<LayerCounts> copies, std::size_t first) {
  Observer one = std::move(copies[0].observer);
  for (std::size_t i = 1; i < copies.size(); ++i) {
    if (!one.same_values(copies[i].observer)) {
      throw ValueError(
          "shards " + std::to_string(first) + " and " + std::to_string(first + i) +
          " should be copies, since each has " + std::to_string(one.channels()) +
          " channels, but saw different values; give the attention module total_num_kv_heads, the "
          "heads of all processes, where the model's configuration has those of one");
    }
    one.take_weights_of(copies[i].observer);
    copies[i].observer = Observer(one.granularity());  // its memory is not needed any more
  }
  return one;
}

/// One layer of its shards, which are emptied.
LayerCounts join(std::vector<LayerCounts>& shards, const WholeLayer& whole) {
  LayerConfig config = shards[0].config;
  const std::size_t copies = copies_among(shards, whole.channels);
  std::vector<Observer> distinct;
  config.head_num = 0;
  for (std::size_t i = 0; i < shards.size(); i += copies) {
    config.head_num += shards[i].config.head_num;
    distinct.push_back(one_of(std::span(shards).subspan(i, copies), i));
  }
  Observer joined = Observer::side_by_side(distinct);
  if (config.head_num > 0 && whole.head_channels > 0 &&
      joined.channels() != config.head_num * whole.head_channels) {
    throw ValueError("head_num makes " + std::to_string(config.head_num) + " heads of its " +
                     std::to_string(joined.channels()) + " channels, and a head of the model has " +
                     std::to_string(whole.head_channels) +
                     "; head_num must be the heads of one process's shard, as "
                     "create_quant_cali_config gives it for the model that the process has");
  }
  if (whole.slice) config.slice = whole.slice;
  return {.config = std::move(config), .index = shards[0].index, .observer = std::move(joined)};
}

}  // namespace

void join_counts(std::span<const std::string> inputs, const std::string& output,
                 const std::map<std::string, WholeLayer>& whole) {
  if (inputs.empty()) throw ValueError("there are no shards to put side by side");
  std::vector<std::string> files(inputs.begin(), inputs.end());
  files.push_back(output);
  check_different_files(files);
  std::vector<CountsReader> readers;
  for (const std::string& path : inputs) readers.emplace_back(path);
  CountsWriter writer(output, readers[0].header());
  for (std::vector<LayerCounts> shards = next_layer(readers); !shards.empty();
       shards = next_layer(readers)) {
    for (std::size_t i = 1; i < shards.size(); ++i) {
      check_same_observation(shards[0].config, shards[i].config, "shard " + std::to_string(i),
                             true);
    }
    const auto known = whole.find(shards[0].config.name);
    const std::string where = "layer '" + shards[0].config.name + "': ";
    try {
      const LayerCounts layer = join(shards, known == whole.end() ? WholeLayer{} : known->second);
      writer.add(layer.config, layer.index, layer.observer);
    } catch (const StateError& error) {
      throw StateError(where + error.what());
    } catch (const ValueError& error) {
      throw ValueError(where + error.what());
    }
  }
  writer.commit();
}

}  // namespace amct
