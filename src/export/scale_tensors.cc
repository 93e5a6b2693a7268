#include "export/scale_tensors.h"

#include "amct/core/error.h"

#include <algorithm>
#include <array>
#include <set>
#include <utility>

#include "export/factors.h"

namespace amct {
namespace {

std::string_view last_part(std::string_view path) { return path.substr(path.rfind('.') + 1); }

/// `path` without its last component and the point before it.
std::string_view parent(std::string_view path) {
  const std::size_t dot = path.rfind('.');
  return path.substr(0, dot == std::string_view::npos ? 0 : dot);
}

template <typename List>
bool holds(const List& list, std::string_view item) {
  return std::ranges::find(list, item) != std::ranges::end(list);
}

constexpr std::array<std::string_view, 3> kScales{"k_scale", "v_scale", "q_scale"};
constexpr std::array<std::string_view, 3> kZeroPoints{"k_zero_point", "v_zero_point",
                                                      "q_zero_point"};

bool is_pair_scale(std::string_view last) { return last == "k_scale" || last == "v_scale"; }

std::string join(std::string_view module, std::string_view last) {
  return std::string(module) + ".attn." + std::string(last);
}

/// What both versions of vLLM do to names under "self_attn" and "mixer": the projection's name is
/// left out. Nothing where the name is none of these.
std::optional<std::string> without_projection(std::string_view name) {
  const std::string_view last = last_part(name);
  const std::string_view module = parent(name);
  const std::string_view around = parent(module);
  if (!is_pair_scale(last)) return std::nullopt;
  const std::string_view projection = last_part(module);
  const bool separate = projection == "k_proj" || projection == "v_proj";
  const bool fused = projection == "qkv_proj" || projection == "qkqkv_proj";
  if (last_part(around) == "self_attn" && (separate || fused)) return join(around, last);
  if (last_part(around) == "mixer" && separate) return join(around, last);
  return std::nullopt;
}

/// Whether a tensor's name is one that factors of a cache have somewhere.
bool looks_like_factor(std::string_view name) {
  const std::string_view last = last_part(name);
  const std::string_view module = last_part(parent(name));
  constexpr std::array<std::string_view, 6> kOthers{"kv_scale",
                                                    "kv_cache_scale",
                                                    "kv_cache_offset",
                                                    "kv_cache_scaling_factor",
                                                    "k_cache_scaling_factor",
                                                    "v_cache_scaling_factor"};
  if (last == "scale") return holds(std::array{"k_cache", "v_cache", "q"}, module);
  if (last == "output_scale") return module == "k_proj" || module == "v_proj";
  return holds(kScales, last) || holds(kZeroPoints, last) || holds(kOthers, last);
}

/// Whether `module` is an attention module: among those the weights show, or, where there are no
/// weights, the component behind the layer's number.
bool is_attention(const std::set<std::string>& modules, std::string_view module) {
  if (!modules.empty()) return modules.contains(std::string(module));
  return !parse_layer_name(last_part(parent(module))).numbers.empty();
}

/// What stands before the number of a layer, and behind: modules alike in both are of one model.
std::pair<std::string, std::string> family_of(const std::string& module) {
  std::string before;
  for (std::size_t at = 0; at < module.size();) {
    const std::size_t end = std::min(module.find('.', at), module.size());
    if (!parse_layer_name(module.substr(at, end - at)).numbers.empty()) {
      return {before, module.substr(end)};
    }
    before = module.substr(0, end);
    at = end + 1;
  }
  return {before, ""};
}

void add_layers_without(const std::set<std::string>& modules,
                        std::map<std::string, AttentionScales>* scales) {
  std::set<std::pair<std::string, std::string>> families;
  for (const auto& [module, pair] : *scales) families.insert(family_of(module));
  for (const std::string& module : modules) {
    if (families.contains(family_of(module))) scales->try_emplace(module);
  }
}

double precision_of_type(const std::string& dtype) {
  if (dtype == "BF16") return precision_of(DType::kBFloat16);
  return dtype == "F16" ? precision_of(DType::kFloat16) : 0;
}

/// What is not loaded into a scale.
void report_unused(Verification& v, const std::string& name, const std::string& parameter,
                   const NameRule& rule) {
  const std::string_view last = last_part(parameter);
  if (holds(kZeroPoints, last)) {
    v.ignored(name, "zero points are loaded and not used");
    return;
  }
  if (last == "q_scale") {
    v.ignored(name, "of queries, which are not in the cache");
    return;
  }
  if (is_pair_scale(last) || !rule.unknown_is_fatal) {
    v.wrong(name, "",
            "becomes '" + parameter + "', which no attention module has: it is passed over");
    return;
  }
  v.fatal(name, "there is no parameter of that name: loading fails");
}

}  // namespace

std::string vllm_parameter(const std::string& name) {
  const std::string_view last = last_part(name);
  const std::string_view module = parent(name);
  if (last == "kv_scale") return join(module, "k_scale");
  if (const auto found = without_projection(name)) return *found;
  if (last == "scale" && last_part(parent(module)) == "self_attn") {
    if (last_part(module) == "k_cache") return join(parent(module), "k_scale");
    if (last_part(module) == "v_cache") return join(parent(module), "v_scale");
    if (last_part(module) == "q") return join(parent(module), "q_scale");
  }
  if ((holds(kScales, last) || holds(kZeroPoints, last)) && last_part(module) != "attn") {
    return join(module, last);
  }
  return name;
}

std::string old_vllm_parameter(const std::string& name) {
  const std::string_view last = last_part(name);
  if (last == "kv_scale") return join(parent(name), "k_scale");
  if (const auto found = without_projection(name)) return *found;
  return holds(kScales, last) || holds(kZeroPoints, last) ? join(parent(name), last) : name;
}

std::string sglang_parameter(const std::string& name) {
  const std::string_view last = last_part(name);
  const std::string_view module = parent(name);
  if (last == "kv_scale") return join(module, "k_scale");
  if (last == "output_scale") {
    for (const char* which : {"q", "k", "v"}) {
      const bool is_one = last_part(module) == std::string(which) + "_proj";
      if (is_one) return join(parent(module), std::string(which) + "_scale");
    }
  }
  if (!is_pair_scale(last)) return name;
  const std::string_view around = last_part(parent(module));
  const bool matching = last_part(module) == (last == "k_scale" ? "k_proj" : "v_proj");
  if ((around == "self_attn" || around == "mixer") && matching) return join(parent(module), last);
  return join(module, last);
}

std::map<std::string, AttentionScales> scales_in(Verification& v, const FolderTensors& tensors,
                                                 const NameRule& rule) {
  const std::set<std::string> modules = attention_modules(tensors.names());
  std::map<std::string, AttentionScales> result;
  for (const auto& [name, place] : tensors.tensors()) {
    if (!looks_like_factor(name)) continue;
    const std::string parameter = rule.parameter(name);
    const std::string_view last = last_part(parameter);
    const std::string_view owner = parent(parameter);
    const std::string module(parent(owner));
    if (!is_pair_scale(last) || last_part(owner) != "attn" || !is_attention(modules, module)) {
      report_unused(v, name, parameter, rule);
      continue;
    }
    const auto values = tensors.read(name, &v.report.findings);
    if (!values) continue;
    const TensorInfo& info = place.second;
    auto& scale = last == "k_scale" ? result[module].key : result[module].value;
    if (scale) v.wrong(name, "", "and '" + scale->name + "' are both for one scale");
    if (last_part(name) == "kv_scale") {
      v.wrong(name, range_text(*values), "a deprecated name, which gives the keys' scale alone");
    }
    scale = ScaleTensor{name, info.shape, *values, precision_of_type(info.dtype)};
  }
  add_layers_without(modules, &result);
  if (result.empty()) v.wrong("", "", "no scale is loaded: every layer has 1");
  return result;
}

void add_factors(Verification& v, const std::string& attention, KVRole role, const Grid& grid,
                 std::vector<double> scale, const std::string& source, double precision) {
  const LayerName name = parse_layer_name(attention);
  if (name.numbers.empty()) return;
  EffectiveFactors factors;
  factors.layer = name.numbers.front();
  factors.role = role;
  factors.source = source;
  factors.grid = grid;
  factors.offset.assign(scale.size(), 0.0);
  factors.scale = std::move(scale);
  factors.precision = precision;
  v.report.layers.push_back(std::move(factors));
}

void add_scalar_pair(Verification& v, const std::string& attention, const AttentionScales& scales) {
  for (const auto* scale : {&scales.key, &scales.value}) {
    if (!*scale) continue;
    if ((*scale)->values.size() != 1) {
      v.fatal((*scale)->name, "has " + std::to_string((*scale)->values.size()) +
                                  " elements, and one is expected: ValueError");
      return;
    }
    if (!check_scales(v, (*scale)->name, (*scale)->values)) return;
  }
  if (!scales.key && !scales.value) {
    v.wrong(attention, "1.0", "has no scales: 1 is used");
  } else if (!scales.key) {
    v.fatal(attention, "has a scale of values and none of keys: an assertion fails");
    return;
  } else if (!scales.value) {
    v.wrong(attention, range_text(scales.key->values),
            "has no scale of values: that of keys is used for both");
  }
  const auto add = [&](KVRole role, const std::optional<ScaleTensor>& scale) {
    if (!scale) {
      add_factors(v, attention, role, kFp8E4M3, {1.0}, "default", 0);
      return;
    }
    add_factors(v, attention, role, kFp8E4M3, scale->values, scale->name, scale->precision);
  };
  if (scales.key) v.used(scales.key->name, range_text(scales.key->values), "x' = q * scale");
  if (scales.value) v.used(scales.value->name, range_text(scales.value->values), "x' = q * scale");
  add(KVRole::kKey, scales.key);
  add(KVRole::kValue, scales.value ? scales.value : scales.key);
}

}  // namespace amct
