#include "export/verification.h"

#include "amct/core/decimal.h"
#include "amct/core/error.h"
#include "amct/core/file.h"

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <map>
#include <numeric>
#include <utility>

#include "export/factors.h"

namespace amct {
namespace {

std::string number_text(double value) {
  const auto narrow = static_cast<float>(value);
  // The digits of a float32 are those of the record.
  std::string text =
      static_cast<double>(narrow) == value ? shortest_decimal(narrow) : shortest_decimal(value);
  if (text.ends_with(".0")) text.resize(text.size() - 2);  // offsets are whole
  return text;
}

/// Element i of n of a list that stands for n in equal groups.
double element(const std::vector<double>& values, std::size_t i, std::size_t n) {
  return values[i * values.size() / n];
}

/// Where factors differ, or "". `precision` is what scales may differ by.
std::string difference(const std::vector<double>& scale, const std::vector<double>& offset,
                       const LayerRecord& record, double precision) {
  const std::size_t n = std::max(scale.size(), record.params.size());
  if (scale.empty() || n % scale.size() != 0 || n % record.params.size() != 0) {
    return std::to_string(scale.size()) + " factors, the record has " +
           std::to_string(record.params.size());
  }
  std::size_t turned = 0;
  std::string text;
  for (std::size_t i = 0; i < n; ++i) {
    const QuantParams& params = record.params[i * record.params.size() / n];
    const auto expected = static_cast<double>(params.scale);
    const double got = element(scale, i, n);
    if (!(std::fabs(got - expected) <= precision * expected) && text.empty()) {
      text = "scale " + number_text(got) + ", the record has " + number_text(expected);
    }
    const double got_offset = element(offset, i, n);
    if (got_offset == params.offset) continue;
    if (got_offset == -static_cast<double>(params.offset)) ++turned;
    if (text.empty()) {
      text =
          "offset " + number_text(got_offset) + ", the record has " + std::to_string(params.offset);
    }
  }
  if (turned > 0) text += "; the sign of the offset is turned";
  return text;
}

/// Whether the factors are those of the layer's other half, which are larger.
bool is_merged(const EffectiveFactors& factors, const LayerRecord& record,
               const LayerRecord& larger) {
  return factors.grid == record.grid && record.params.size() == 1 && larger.params.size() == 1 &&
         larger.params.front().scale > record.params.front().scale &&
         difference(factors.scale, factors.offset, larger, factors.precision).empty();
}

}  // namespace

void Verification::used(const std::string& key, const std::string& value, const std::string& why) {
  report.findings.push_back({Verdict::kUsed, key, value, why});
}
void Verification::ignored(const std::string& key, const std::string& why) {
  report.findings.push_back({Verdict::kIgnored, key, "", why});
}
void Verification::wrong(const std::string& key, const std::string& value, const std::string& why) {
  report.findings.push_back({Verdict::kWrong, key, value, why});
}
void Verification::fatal(const std::string& key, const std::string& why) {
  report.findings.push_back({Verdict::kFatal, key, "", why});
}
bool Verification::failed() const {
  return std::ranges::any_of(report.findings,
                             [](const Finding& f) { return f.verdict == Verdict::kFatal; });
}

Verification start_verification(const Runtime& runtime, const std::string& path,
                                const VerifyOptions& options) {
  Verification verification;
  verification.report.runtime = runtime.name;
  verification.report.readers = runtime.readers;
  verification.report.path = path;
  if (path.empty() || path.find('\0') != std::string::npos) {
    throw ValueError("the name of what to verify is empty or holds a NUL character");
  }
  if (!file_exists(path) && !folder_exists(path)) throw IoError(ENOENT, "read", path);
  if (options.record) verification.record = model_layers(*options.record);
  ModelConfig& model = verification.model;
  for (const std::string& folder : {options.model_folder, path}) {
    if (folder.empty() || !folder_exists(folder)) continue;
    const std::string config = path_in(folder, kConfigName);
    if (!file_exists(config)) continue;
    try {
      model = model_config(read_json_object(config));
      break;
    } catch (const ValueError& error) {
      verification.fatal(kConfigName, error.what());
    }
  }
  if (options.layers) model.layers = options.layers;
  if (options.heads) model.heads = options.heads;
  if (options.head_dim) model.head_dim = options.head_dim;
  if (options.model_dtype) model.dtype = options.model_dtype;
  verification.dtype = model.dtype.value_or(DType::kBFloat16);
  return verification;
}

VerifyReport finish(Verification&& verification, bool may_merge) {
  VerifyReport report = std::move(verification.report);
  std::ranges::stable_sort(report.layers, {}, [](const EffectiveFactors& factors) {
    return std::pair(factors.layer, factors.role);
  });
  std::map<std::pair<std::int64_t, KVRole>, EffectiveFactors*> by_place;
  for (EffectiveFactors& factors : report.layers) {
    by_place.emplace(std::pair(factors.layer, factors.role), &factors);
    if (!verification.record.empty()) factors.match = Match::kMissing;
  }
  std::vector<EffectiveFactors> missing;
  for (const AttentionLayer& layer : verification.record) {
    for (const KVRole role : {KVRole::kKey, KVRole::kValue}) {
      const LayerRecord& half = role == KVRole::kKey ? layer.key : layer.value;
      const LayerRecord& beside = role == KVRole::kKey ? layer.value : layer.key;
      const auto found = by_place.find({layer.index, role});
      if (found == by_place.end()) {
        EffectiveFactors& factors = missing.emplace_back();
        factors.layer = layer.index;
        factors.role = role;
        factors.source = "nothing";
        factors.grid = half.grid;
        factors.match = Match::kMissing;
        factors.difference = "the runtime has no factors for it";
      } else {
        compare_to(found->second, half);
        if (may_merge && found->second->match == Match::kDifferent &&
            is_merged(*found->second, half, beside)) {
          found->second->match = Match::kMerged;
        }
      }
    }
  }
  for (EffectiveFactors& factors : report.layers) {
    if (factors.match == Match::kMissing) factors.difference = "the record has no such layer";
  }
  report.layers.insert(report.layers.end(), missing.begin(), missing.end());
  return report;
}

void compare_to(EffectiveFactors* factors, const LayerRecord& record) {
  if (factors->grid != record.grid) {
    factors->difference = "stored as " + std::string(factors->grid.name) + ", the record is " +
                          std::string(record.grid.name);
  } else {
    factors->difference = difference(factors->scale, factors->offset, record, factors->precision);
  }
  factors->match = factors->difference.empty() ? Match::kEqual : Match::kDifferent;
}

bool check_scales(Verification& verification, const std::string& key,
                  const std::vector<double>& scales) {
  for (const double scale : scales) {
    if (std::isfinite(scale) && scale > 0) continue;
    verification.wrong(key, number_text(scale), "a scale must be positive and finite");
    return false;
  }
  return true;
}

std::vector<double> rounded_scales(Verification& verification, const std::string& key,
                                   const std::vector<double>& scales) {
  std::vector<double> rounded;
  bool told = false;
  for (const double scale : scales) {
    rounded.push_back(round_to(verification.dtype, scale));
    if (!told && !keeps(verification.dtype, scale)) {
      verification.wrong(key, number_text(rounded.back()),
                         "kept in " + std::string(name_of(verification.dtype)) +
                             ", which has no number near " + number_text(scale));
      told = true;
    }
  }
  return rounded;
}

std::string range_text(const std::vector<double>& values) {
  if (values.empty()) return "nothing";
  const auto [low, high] = std::ranges::minmax(values);
  if (low == high) return number_text(low);
  return number_text(low) + " .. " + number_text(high) + " (" + std::to_string(values.size()) + ")";
}

}  // namespace amct
