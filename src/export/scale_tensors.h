// Checkpoints with one scale tensor for keys and one for values of each attention module: what
// vLLM, SGLang and their relatives make of the names.
#pragma once

#include <functional>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "export/checkpoint.h"
#include "export/verification.h"

namespace amct {

/// The parameter that vLLM from 0.27.1 on loads a tensor of the checkpoint into:
/// "model.layers.0.self_attn.k_scale" goes to "model.layers.0.self_attn.attn.k_scale".
std::string vllm_parameter(const std::string& name);
/// The same for vLLM up to 0.18.1, and for models of later versions that load their own weights.
std::string old_vllm_parameter(const std::string& name);
/// The same for SGLang.
std::string sglang_parameter(const std::string& name);

/// A tensor that became one of an attention module's scales.
struct ScaleTensor {
  std::string name;
  std::vector<std::int64_t> shape;
  std::vector<double> values;
  double precision = 0;  ///< relative, of the type that it is stored in
};

struct AttentionScales {
  std::optional<ScaleTensor> key;
  std::optional<ScaleTensor> value;
};

/// How a runtime names parameters, and what it does with tensors that have none.
struct NameRule {
  std::string (*parameter)(const std::string& name) = nullptr;
  bool unknown_is_fatal = false;  ///< else it is passed over with a warning
};

/// The scales by attention module, those of layers without any among them where the weights of the
/// folder show them. What is not loaded becomes a finding.
std::map<std::string, AttentionScales> scales_in(Verification& v, const FolderTensors& tensors,
                                                 const NameRule& rule);

/// Adds the factors of an attention module's half; nothing where its name holds no number.
void add_factors(Verification& v, const std::string& attention, KVRole role, const Grid& grid,
                 std::vector<double> scale, const std::string& source, double precision);

/// What vLLM's and SGLang's common rule for FP8 makes of a pair of scalars: one alone serves both,
/// none means 1. Adds the factors of both halves.
void add_scalar_pair(Verification& v, const std::string& attention, const AttentionScales& scales);

}  // namespace amct
