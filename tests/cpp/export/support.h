// Records and checkpoints for the tests of exporters.
#pragma once

#include "amct/export/exporter.h"
#include "amct/export/verify.h"

#include <string>
#include <string_view>
#include <vector>

#include <gtest/gtest.h>

#include "export/safetensors.h"
#include "support/files.h"

namespace amct::support {

/// Of the model that `write_checkpoint` writes.
inline constexpr std::int64_t kLayers = 2;
inline constexpr std::int64_t kHeads = 2;
inline constexpr std::int64_t kHeadDim = 4;

/// A layer of tap cache: `count` pairs of different scales, of a grid without offsets unless given.
LayerRecord layer(const std::string& name, std::size_t count = 1, const Grid& grid = kInt8,
                  std::int32_t offset = 0);
/// "model.layers.0.self_attn.k_proj" and "v_proj", and so on, as a model has them.
std::vector<LayerRecord> model_record(const Grid& grid, std::size_t count = 1,
                                      bool per_head = false, std::int32_t offset = 0);

/// A Llama's config.json and weights in one model.safetensors, all zeros.
void write_checkpoint(const std::string& folder);
/// The same weights in two files with an index.
void write_sharded_checkpoint(const std::string& folder);

/// "verdict: key: why" of every finding of that verdict whose key, value or why holds `part`.
std::vector<std::string> findings(const VerifyReport& report, Verdict verdict,
                                  std::string_view part = "");

class ExportTest : public FolderTest {
 protected:
  std::string checkpoint = folder / "checkpoint";

  /// Exports into the checkpoint, or to `output`.
  ExportReport to(std::string_view runtime, const std::vector<LayerRecord>& layers,
                  const std::string& output = "", bool with_checkpoint = true);
  VerifyReport verify(const std::string& path, std::string_view runtime,
                      const std::vector<LayerRecord>& record = {});

  void SetUp() override { write_checkpoint(checkpoint); }
};

/// Fails with the report's text unless it is OK and every layer is equal to the record.
void expect_equal(const VerifyReport& report, std::size_t layers = 2 * kLayers);
/// Fails unless some finding of that verdict names `part`, and the report is not OK.
void expect_finding(const VerifyReport& report, Verdict verdict, std::string_view part);

/// Calls export_layers and expects Unrepresentable with this nearest setting in message and value.
void expect_refused(std::string_view runtime, const std::vector<LayerRecord>& layers,
                    const ExportOptions& options, const Setting& nearest, std::string_view problem);

}  // namespace amct::support
