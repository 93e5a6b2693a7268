// What the readers of all runtimes share: building a report, and comparing it to the record.
#pragma once

#include "amct/core/dtype.h"
#include "amct/export/exporter.h"
#include "amct/export/verify.h"

#include <optional>
#include <set>
#include <string>
#include <vector>

#include "export/checkpoint.h"
#include "export/model_layers.h"

namespace amct {

/// What a reader knows before it reads.
struct Verification {
  VerifyReport report;
  std::vector<AttentionLayer> record;  ///< laid out; empty where none was given
  ModelConfig model;  ///< of the checkpoint, the options' numbers in place of its own
  DType dtype = DType::kBFloat16;

  void used(const std::string& key, const std::string& value, const std::string& why);
  void ignored(const std::string& key, const std::string& why);
  void wrong(const std::string& key, const std::string& value, const std::string& why);
  void fatal(const std::string& key, const std::string& why);
  void note(const std::string& text) { report.notes.push_back(text); }
  bool failed() const;  ///< whether something is fatal
};

/// Looks for the model's numbers in the options, then in config.json of `model_folder` and of
/// `path` where it is a folder. Throws IoError where `path` is not there.
Verification start_verification(const Runtime& runtime, const std::string& path,
                                const VerifyOptions& options);

/// Sorts the layers, compares them to the record, and says where they differ. `may_merge`: the
/// runtime has one scale for a layer's keys and values.
VerifyReport finish(Verification&& verification, bool may_merge = false);

/// Sets the match of factors with their layer of the record.
void compare_to(EffectiveFactors* factors, const LayerRecord& record);

/// Findings for scales that are not positive and finite; whether all are.
bool check_scales(Verification& verification, const std::string& key,
                  const std::vector<double>& scales);

/// Rounds scales to the model's type and says where that leaves nothing or much less of them.
std::vector<double> rounded_scales(Verification& verification, const std::string& key,
                                   const std::vector<double>& scales);

/// "0.05" for one, "0.01 .. 0.05 (128)" for several.
std::string range_text(const std::vector<double>& values);

}  // namespace amct
