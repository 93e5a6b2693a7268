#include "amct/export/verify.h"

#include "amct/core/text.h"
#include "amct/export/exporter.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "export/json_file.h"
#include "export/verification.h"

namespace amct {
namespace {

bool is_bad(const Finding& finding) {
  return finding.verdict == Verdict::kWrong || finding.verdict == Verdict::kFatal;
}
bool is_bad(const EffectiveFactors& factors) {
  return factors.match == Match::kDifferent || factors.match == Match::kMissing;
}

std::string text_of(const Finding& finding) {
  std::string text = std::string(name_of(finding.verdict)) + ": ";
  if (!finding.key.empty()) text += printable(finding.key) + ": ";
  if (!finding.value.empty()) text += printable(finding.value) + ": ";
  return text + printable(finding.why) + "\n";
}

std::string text_of(const EffectiveFactors& factors) {
  std::string text =
      "layer " + std::to_string(factors.layer) + " " + std::string(name_of(factors.role)) + ": ";
  if (!factors.scale.empty()) {
    text += "scale " + range_text(factors.scale) + ", offset " + range_text(factors.offset) + ", " +
            std::string(factors.grid.name) + ", from " + printable(factors.source);
  } else {
    text += "no factors";
  }
  if (factors.match != Match::kNotCompared) text += "; " + std::string(name_of(factors.match));
  if (!factors.difference.empty()) text += ": " + printable(factors.difference);
  return text + "\n";
}

Json numbers(const std::vector<double>& values) {
  Json list = Json::array();
  for (const double value : values) {
    const auto narrow = static_cast<float>(value);
    // Infinity and NaN are no JSON.
    const bool is_narrow = std::isfinite(value) && static_cast<double>(narrow) == value;
    list.push_back(is_narrow ? json_number(narrow) : Json(value));
  }
  return list;
}

}  // namespace

std::string_view name_of(Verdict verdict) {
  static constexpr std::array<std::string_view, 4> kNames{"used", "ignored", "wrong", "fatal"};
  return kNames.at(static_cast<std::size_t>(verdict));
}

std::string_view name_of(Match match) {
  static constexpr std::array<std::string_view, 5> kNames{"not compared", "equal", "merged",
                                                          "different", "missing"};
  return kNames.at(static_cast<std::size_t>(match));
}

bool VerifyReport::ok() const {
  return std::ranges::none_of(findings, [](const Finding& f) { return is_bad(f); }) &&
         std::ranges::none_of(layers, [](const EffectiveFactors& f) { return is_bad(f); });
}

std::string VerifyReport::to_text() const {
  std::string text = printable(path) + " as " + runtime + " (" + readers + ")\n";
  for (const EffectiveFactors& factors : layers) text += text_of(factors);
  for (const Finding& finding : findings) text += text_of(finding);
  for (const std::string& note : notes) text += "note: " + printable(note) + "\n";
  const auto wrong = std::ranges::count_if(findings, [](const Finding& f) { return is_bad(f); });
  const auto differing =
      std::ranges::count_if(layers, [](const EffectiveFactors& f) { return is_bad(f); });
  if (ok()) return text + "OK\n";
  return text + "NOT OK: " + std::to_string(wrong) + " findings, " + std::to_string(differing) +
         " layers unlike the record\n";
}

std::string VerifyReport::to_json() const {
  Json json = Json::object();
  json["runtime"] = runtime;
  json["readers"] = readers;
  json["path"] = path;
  json["ok"] = ok();
  json["findings"] = Json::array();
  for (const Finding& finding : findings) {
    Json entry = Json::object();
    entry["verdict"] = name_of(finding.verdict);
    entry["key"] = finding.key;
    entry["value"] = finding.value;
    entry["why"] = finding.why;
    json["findings"].push_back(std::move(entry));
  }
  json["layers"] = Json::array();
  for (const EffectiveFactors& factors : layers) {
    Json entry = Json::object();
    entry["layer"] = factors.layer;
    entry["role"] = name_of(factors.role);
    entry["source"] = factors.source;
    entry["dst_type"] = factors.grid.name;
    entry["scale"] = numbers(factors.scale);
    entry["offset"] = numbers(factors.offset);
    entry["match"] = name_of(factors.match);
    entry["difference"] = factors.difference;
    json["layers"].push_back(std::move(entry));
  }
  json["notes"] = notes;
  return to_json_text(json);
}

VerifyReport verify_export(const std::string& path, std::string_view runtime,
                           const VerifyOptions& options) {
  return runtime_named(runtime).verify(path, options);
}

}  // namespace amct
