#include "amct/config/definition.h"

#include "amct/config/layer_patterns.h"
#include "amct/core/decimal.h"
#include "amct/core/error.h"
#include "amct/core/file.h"
#include "amct/core/limits.h"
#include "amct/core/text.h"

#include <algorithm>
#include <cstdlib>
#include <unordered_map>
#include <unordered_set>
#include <utility>

#include <google/protobuf/descriptor.h>
#include <google/protobuf/message.h>

#include "config/layer_settings.h"
#include "quant_calibration_config_pytorch.pb.h"
#include "record/protobuf_text.h"

namespace amct {
namespace {

namespace pb = google::protobuf;
using AMCTPytorchQuantCaliProto::AMCTQuantCaliConfig;
using ProtoCalibration = AMCTPytorchQuantCaliProto::CalibrationConfig;

constexpr std::string_view kFieldSuffix = "_quantize";

/// A number of a message. A float32 becomes the float64 nearest to its shortest decimal, so that
/// 0.999 is written back as 0.999.
OptionValue number(const pb::Message& message, const pb::FieldDescriptor& field) {
  const pb::Reflection& reflection = *message.GetReflection();
  switch (field.cpp_type()) {
    case pb::FieldDescriptor::CPPTYPE_FLOAT:
      return std::strtod(shortest_decimal(reflection.GetFloat(message, &field)).c_str(), nullptr);
    case pb::FieldDescriptor::CPPTYPE_UINT32:
      return static_cast<std::int64_t>(reflection.GetUInt32(message, &field));
    case pb::FieldDescriptor::CPPTYPE_BOOL:
      return reflection.GetBool(message, &field);
    default:
      throw Error("field " + field.full_name() + " has a type no setting has");
  }
}

/// The field of `message` that is called `name`; the schema and the algorithms' specs must agree.
const pb::FieldDescriptor& field_of(const pb::Message& message, std::string_view name) {
  const std::string text(name);
  const pb::FieldDescriptor* field = message.GetDescriptor()->FindFieldByName(text);
  if (field == nullptr) throw Error(message.GetDescriptor()->full_name() + " has no field " + text);
  return *field;
}

/// One source of settings: the message of the chosen algorithm inside a CalibrationConfig.
class Source {
 public:
  Source(const ProtoCalibration& calibration, const AlgorithmCatalog& catalog) {
    const pb::OneofDescriptor* oneof =
        ProtoCalibration::descriptor()->FindOneofByName("acts_quant_algo");
    const pb::FieldDescriptor* field =
        ProtoCalibration::GetReflection()->GetOneofFieldDescriptor(calibration, oneof);
    if (field == nullptr) return;
    const std::string& name = field->name();
    spec_ = find_spec(catalog, name.substr(0, name.size() - kFieldSuffix.size()));
    if (spec_ == nullptr) throw Error("field " + field->full_name() + " has no algorithm");
    message_ = &ProtoCalibration::GetReflection()->GetMessage(calibration, field);
  }

  /// nullptr where no algorithm is chosen.
  const AlgorithmSpec* spec() const { return spec_; }

  bool gives(const std::string& field) const {
    return message_ != nullptr &&
           message_->GetReflection()->HasField(*message_, &field_of(*message_, field));
  }

  /// The value of `field`, given or by default.
  OptionValue get(const std::string& field) const {
    return number(*message_, field_of(*message_, field));
  }

  Granularity granularity() const {
    const pb::FieldDescriptor& field = field_of(*message_, "quant_granularity");
    return static_cast<Granularity>(message_->GetReflection()->GetEnumValue(*message_, &field));
  }

 private:
  const AlgorithmSpec* spec_ = nullptr;
  const pb::Message* message_ = nullptr;
};

/// The setting `option` from the first of `sources` that gives all or part of it.
OptionValue option_value(const OptionSpec& option, const std::vector<Source>& sources) {
  std::vector<OptionValue> parts;
  for (const std::string& field : option.proto_fields) {
    const Source* giver = &sources.front();  // its default, where nobody gives the field
    for (const Source& source : sources) {
      if (source.gives(field)) {
        giver = &source;
        break;
      }
    }
    parts.push_back(giver->get(field));
  }
  if (parts.size() == 1) return parts.front();
  std::vector<double> list;
  for (const OptionValue& part : parts) list.push_back(std::get<double>(part));
  return list;
}

/// The layers in quant_layers, then overridden ones not among them.
std::vector<std::string> names_in(const AMCTQuantCaliConfig& message) {
  const auto& common = message.kv_cache_quant_config().quant_layers();
  std::vector<std::string> names(common.begin(), common.end());
  const std::unordered_set<std::string> listed(common.begin(), common.end());
  for (const auto& layers : message.override_layers_configs()) {
    for (const std::string& name : layers.layer_name()) {
      if (!listed.contains(name)) names.push_back(name);
    }
  }
  return names;
}

}  // namespace

struct Definition::Impl {
  AMCTQuantCaliConfig message;
  std::string source;
  const AlgorithmCatalog* catalog = nullptr;
  std::unordered_map<std::string, const ProtoCalibration*> overrides;
  std::vector<std::pair<std::string, const ProtoCalibration*>> pattern_overrides;

  /// What overrides a layer: an entry with its name, else the first pattern that matches it.
  const ProtoCalibration* override_of(const std::string& name) const {
    if (const auto found = overrides.find(name); found != overrides.end()) return found->second;
    for (const auto& [pattern, calibration] : pattern_overrides) {
      if (matches_layer(pattern, name)) return calibration;
    }
    return nullptr;
  }

  /// Settings that do not belong to an algorithm, each from the first of `messages` that has it.
  static void set_common(const std::vector<const ProtoCalibration*>& messages, LayerConfig& layer) {
    const auto first = [&](bool (ProtoCalibration::*has)() const) {
      const auto found = std::ranges::find_if(messages, has);
      return found == messages.end() ? nullptr : *found;
    };
    if (const auto* given = first(&ProtoCalibration::has_tap))
      layer.tap = given->tap() == AMCTPytorchQuantCaliProto::cache ? Tap::kCache : Tap::kLinear;
    if (const auto* given = first(&ProtoCalibration::has_dst_type))
      layer.grid = grid_named(DstType_Name(given->dst_type()), "dst_type");
    if (const auto* given = first(&ProtoCalibration::has_max_position))
      layer.max_position = given->max_position();
    if (const auto* given = first(&ProtoCalibration::has_sink_tokens))
      layer.sink_tokens = given->sink_tokens();
    if (const auto* given = first(&ProtoCalibration::has_query_weighted))
      layer.query_weighted = given->query_weighted();
    if (layer.granularity != Granularity::kPerHead) return;
    if (const auto* given = first(&ProtoCalibration::has_head_num))
      layer.head_num = given->head_num();
  }

  LayerConfig configure(const std::string& name) const {
    // Sources in order of priority.
    std::vector<const ProtoCalibration*> messages;
    if (const ProtoCalibration* own = override_of(name)) messages.push_back(own);
    messages.push_back(&message.kv_cache_quant_config().calibration_config());
    std::vector<Source> all;
    for (const ProtoCalibration* given : messages) all.emplace_back(*given, *catalog);
    std::erase_if(all, [](const Source& source) { return source.spec() == nullptr; });

    const AlgorithmSpec& spec = all.empty() ? catalog->front() : *all.front().spec();
    LayerConfig layer;
    layer.name = name;
    layer.algorithm = spec.name;
    layer.options = spec.defaults();
    const SettingsFailure fail = [&](SettingsProblem, const std::string& text) {
      throw ValueError(source + ": layer '" + name + "': " + text);
    };
    for (const Source& from : all) {
      if (!layer.asymmetric && from.gives("asymmetric")) {
        layer.asymmetric = std::get<bool>(from.get("asymmetric"));
      }
    }
    for (const Source& from : all) {
      if (from.gives("quant_granularity")) {
        layer.granularity = from.granularity();
        break;
      }
    }
    std::erase_if(all, [&](const Source& from) { return from.spec() != &spec; });
    if (!all.empty()) {
      for (const OptionSpec& option : spec.options) {
        set_option(layer, option, option_value(option, all), fail);
      }
    }
    set_common(messages, layer);
    check_conflicts(layer, spec, fail);
    return layer;
  }
};

Definition::Definition(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Definition::Definition(Definition&&) noexcept = default;
Definition& Definition::operator=(Definition&&) noexcept = default;
Definition::~Definition() = default;

Definition Definition::parse(std::string_view text, const std::string& source,
                             const AlgorithmCatalog& catalog) {
  auto impl = std::make_unique<Impl>();
  impl->source = source;
  impl->catalog = &catalog;
  parse_protobuf_text(text, source, impl->message);
  if (impl->message.batch_num() == 0) throw ValueError(source + ": batch_num must be > 0");

  const std::vector<std::string> names = names_in(impl->message);
  check_layer_count(names.size(), source);
  for (const std::string& name : names) check_layer_name(name, source);
  if (std::cmp_greater(std::ranges::count_if(names, is_layer_pattern), kMaxPatterns)) {
    throw ValueError(source + ": there are more than " + std::to_string(kMaxPatterns) +
                     " patterns of layers");
  }
  std::unordered_set<std::string_view> listed;
  for (const std::string& name : impl->message.kv_cache_quant_config().quant_layers()) {
    if (!listed.insert(name).second) {
      throw ValueError(source + ": layer '" + name + "' is listed twice in quant_layers");
    }
  }
  for (const auto& layers : impl->message.override_layers_configs()) {
    for (const std::string& name : layers.layer_name()) {
      if (!impl->overrides.emplace(name, &layers.kv_data_quant_config()).second) {
        throw ValueError(source + ": layer '" + name + "' is overridden twice");
      }
      if (is_layer_pattern(name))
        impl->pattern_overrides.emplace_back(name, &layers.kv_data_quant_config());
    }
  }
  return Definition(std::move(impl));
}

Definition Definition::read(const std::string& path, const AlgorithmCatalog& catalog) {
  return parse(read_text_file(path, kMaxConfigFileSize), path, catalog);
}

std::vector<std::string> Definition::layers() const { return names_in(impl_->message); }

CalibrationConfig Definition::configure(std::span<const std::string> names) const {
  CalibrationConfig config;
  config.batch_num = impl_->message.batch_num();
  config.activation_offset = impl_->message.activation_offset();
  for (const std::string& name : names) config.layers.push_back(impl_->configure(name));
  return config;
}

}  // namespace amct
