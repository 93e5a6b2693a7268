// The calibration configuration: which layers, how each, over how many batches.
#pragma once

#include "amct/core/granularity.h"
#include "amct/core/grid.h"
#include "amct/core/kv_layer.h"
#include "amct/core/non_finite_policy.h"
#include "amct/core/options.h"

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#pragma GCC visibility push(default)
namespace amct {

/// The part of a fused projection's output that is one layer: of `groups` equal groups of
/// neighbouring channels, channels [begin, end) of each. One group for query, key and value in
/// blocks; one a head, or a group of query heads, where they take turns.
struct ChannelSlice {
  std::int64_t begin = 0;
  std::int64_t end = 0;
  std::int64_t groups = 1;

  friend bool operator==(const ChannelSlice&, const ChannelSlice&) = default;
};

/// How one layer is calibrated.
struct LayerConfig {
  std::string name;       ///< the module's path in the model
  std::string algorithm;  ///< act_algo: a name of the catalog
  OptionMap options;      ///< the algorithm's settings, complete
  std::optional<bool>
      asymmetric;     ///< whether factors have an offset; unset: activation_offset decides
  Grid grid = kInt8;  ///< what the cache stores (dst_type)
  Granularity granularity = Granularity::kPerTensor;
  std::int64_t head_num = 0;  ///< heads, > 0 where the granularity is per head, else 0
  NonFinitePolicy nonfinite = NonFinitePolicy::kRaise;
  Tap tap = Tap::kLinear;
  std::optional<KVRole> role;         ///< what the layer is; tap cache and slices need it
  std::optional<ChannelSlice> slice;  ///< the layer is `<module>.key` or `<module>.value`
  /// Keys per channel at tap cache: factors hold up to this position (exclusive); 0: the positions
  /// observed alone; unset: those that the model is made for.
  std::optional<std::int64_t> max_position;
  /// First tokens of each sequence that are left out: a cache keeps them as they are (attention
  /// sinks; Xiao et al., "Efficient Streaming Language Models with Attention Sinks", 2023).
  std::int64_t sink_tokens = 0;
  /// Keys at tap cache whose channels share factors: the values of a channel count as much as the
  /// mean square of the queries on it, since what must be kept is the product of the two.
  bool query_weighted = false;

  /// Whether channels are observed one by one whatever the granularity, and weighed.
  bool weighs_channels() const { return query_weighted && role == KVRole::kKey; }

  friend bool operator==(const LayerConfig&, const LayerConfig&) = default;
};

/// A whole configuration. Layer names are unique.
struct CalibrationConfig {
  std::int64_t batch_num = 1;  ///< batches to observe before a layer is finished, > 0
  /// Whether factors have an offset where the layer does not say and its grid has offsets.
  bool activation_offset = true;
  std::vector<LayerConfig> layers;

  bool with_offset(const LayerConfig& layer) const {
    return layer.asymmetric.value_or(activation_offset && !layer.grid.is_float());
  }

  friend bool operator==(const CalibrationConfig&, const CalibrationConfig&) = default;
};

/// `layers`, each calibrated by the catalog's first algorithm at its defaults, per tensor.
CalibrationConfig default_config(std::span<const std::string> layers,
                                 const AlgorithmCatalog& catalog);

/// Reads the JSON text of a configuration file. `source` (the file's name) begins every message.
/// Absent settings take their defaults. Throws ValueError for text that is not JSON, for duplicate
/// or unknown keys, and for values of a wrong type or out of range.
CalibrationConfig parse_config(std::string_view text, const std::string& source,
                               const AlgorithmCatalog& catalog);

/// Reads a configuration file: as parse_config, and IoError where the file cannot be read.
CalibrationConfig read_config(const std::string& path, const AlgorithmCatalog& catalog);

/// The JSON text: indent 4, separators ',' and ':', ASCII only, no newline at the end. Settings
/// that are extensions appear only where they differ from the default. Throws ValueError for a
/// layer whose name is not UTF-8, is longer than kMaxLayerName or is that of a setting, and for
/// more than kMaxLayers of them.
std::string to_json(const CalibrationConfig& config, const AlgorithmCatalog& catalog);

/// The layer with some settings of the configuration file replaced, as if the file had said so. A
/// new act_algo starts from its defaults; what belongs to factors per head goes where they are not.
/// Throws ValueError as parse_config does.
LayerConfig with_settings(const LayerConfig& layer,
                          std::span<const std::pair<std::string, OptionValue>> changes,
                          const AlgorithmCatalog& catalog);

/// A layer that a model has.
struct ModelLayer {
  std::string name;
  std::string type;        ///< class name, for messages
  bool supported = false;  ///< whether it can be calibrated
};

/// Throws ValueError where a name is listed twice, is not in the model, or is a layer that cannot
/// be calibrated. `source` begins the message.
void check_layers(std::span<const std::string> names, std::span<const ModelLayer> model,
                  const std::string& source);

}  // namespace amct
#pragma GCC visibility pop
