// What exporters share: refusing what a runtime cannot be told, and rounding as it does.
#pragma once

#include "amct/core/dtype.h"
#include "amct/export/exporter.h"

#include <optional>
#include <span>
#include <string>
#include <vector>

#include "export/checkpoint.h"
#include "export/model_layers.h"

namespace amct {

/// What an exporter starts from.
struct ExportJob {
  std::vector<AttentionLayer> layers;  ///< in their coarsest form, named as the checkpoint does
  std::optional<Checkpoint> checkpoint;
  std::optional<std::int64_t> heads;
  std::optional<std::int64_t> head_dim;
  ExportReport report;
};

/// Lays the record out for `runtime` and throws Unrepresentable where it cannot be told what the
/// record says; warns of keys observed before they were turned, and of layers that are not there.
ExportJob start_export(const Runtime& runtime, std::span<const LayerRecord> layers,
                       const ExportOptions& options);

/// The larger of a layer's two scales per tensor, for runtimes that have one for both; a note
/// that both layers' precision is that of the larger, a warning where they differ by more than 2.
float merged_scale(const AttentionLayer& layer, ExportReport* report);

/// Warns of scales that the model's type, where it is known, has no number near: for runtimes that
/// keep factors in it.
void warn_of_rounding(const ExportOptions& options, ExportJob* job);

/// "0.000095": no exponent, and the fewest digits that give the same float32.
std::string plain_decimal(float value);

/// The value nearest to x in `dtype`, half to even; infinite where it overflows.
double round_to(DType dtype, double x);
/// Whether `dtype` has a number within 1 % of x; bfloat16 keeps 0.4 % of those in its range.
bool keeps(DType dtype, double x);
/// Relative precision of a number kept in `dtype`; 0 for float32, which a record has.
double precision_of(DType dtype);

/// Writes a file and adds it to the report.
void write_reported(const std::string& path, std::string_view content, const std::string& what,
                    ExportReport* report);

/// Throws ValueError where `options` name no file to write.
void require_output_file(const Runtime& runtime, const ExportOptions& options);

}  // namespace amct
