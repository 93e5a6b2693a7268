// The layers of a record as those of a model: numbered, key beside value.
#pragma once

#include "amct/core/granularity.h"
#include "amct/core/kv_layer.h"
#include "amct/record/record_file.h"

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace amct {

/// What the name of a layer says.
struct LayerName {
  std::vector<std::int64_t> numbers;  ///< the components that are numbers, in order
  std::optional<KVRole> role;         ///< by the projection's name
  std::string projection;  ///< the module that has the weight: without `.key` of a fused one
  std::string attention;   ///< the module around it: "model.layers.0.self_attn"
};

/// Takes "model.layers.0.self_attn.k_proj" apart, or "transformer.h.3.attn.c_attn.value".
LayerName parse_layer_name(std::string_view name);

/// One attention layer.
struct AttentionLayer {
  std::int64_t index = 0;
  std::string attention;         ///< path of its module
  std::string key_projection;    ///< path of the module with the weight
  std::string value_projection;  ///< the same as the key's where it is fused
  LayerRecord key;
  LayerRecord value;
};

/// The layers by number. The number is the first of a name's that tells all layers apart
/// ("block.3.layer.0.SelfAttention.k" is layer 3); the role is the record's, else the name's.
/// Throws ValueError where a number or role cannot be told, a layer is there twice or half, there
/// is none, or the layer is of multi-head latent attention, whose cache no static factors are read
/// for.
std::vector<AttentionLayer> model_layers(std::span<const LayerRecord> layers);

/// Where `model_layers` knows a layer's place: its number and role; nothing where it would throw.
struct LayerPlace {
  std::int64_t index;
  KVRole role;
};
/// Of each of `layers`; empty where they cannot be laid out. `reason` gets why.
std::vector<LayerPlace> layer_places(std::span<const LayerRecord> layers, std::string* reason);

/// How the factors of a layer are shared; a single pair is per tensor, or per head as it says.
Granularity granularity_of(const LayerRecord& layer);

/// The coarsest form of the same factors: per tensor where all are one value, per head where those
/// of each of `heads` heads are.
LayerRecord coarsened(LayerRecord layer, std::optional<std::int64_t> heads);

/// The factors of every one of `channels` channels, or of `heads` heads. Throws ValueError where
/// there are not so many.
std::vector<QuantParams> spread(const LayerRecord& layer, std::int64_t count);

}  // namespace amct
