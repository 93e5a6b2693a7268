// Writing the factors of a record in the form that an inference runtime reads.
#pragma once

#include "amct/core/dtype.h"
#include "amct/core/error.h"
#include "amct/core/granularity.h"
#include "amct/core/grid.h"
#include "amct/core/kv_layer.h"
#include "amct/export/verify.h"
#include "amct/record/record_file.h"

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#pragma GCC visibility push(default)
namespace amct {

/// What factors are solved for.
struct Setting {
  Grid grid = kInt8;
  Granularity granularity = Granularity::kPerTensor;
  bool with_offset = false;
  Tap tap = Tap::kCache;
  std::int64_t heads = 0;  ///< for factors per head; 0 where nothing tells

  /// The command that gives such a record: "amct solve COUNTS --dst-type INT8 ... -o record.txt".
  std::string command() const;

  friend bool operator==(const Setting&, const Setting&) = default;
};

/// The runtime has no way to say what the record says. The message names a layer, what of it
/// cannot be said, and the command that gives factors of the nearest setting that can. Python:
/// Unrepresentable, a ValueError.
class Unrepresentable : public ValueError {
 public:
  Unrepresentable(const std::string& what, const Setting& nearest)
      : ValueError(what), nearest_(nearest) {}

  const Setting& nearest() const { return nearest_; }

 private:
  Setting nearest_;
};

/// What an exporter needs to know beside the record.
struct ExportOptions {
  /// The file or folder to write (Runtime::output says which); a folder may be left out where
  /// `model_folder` is given: then the checkpoint itself gets what it lacks.
  std::string output;
  /// A checkpoint in the layout of transformers: config.json and *.safetensors. It tells the names
  /// of weights, the heads and the element type; nothing of it changes where `output` is given.
  std::string model_folder;
  std::optional<std::int64_t> heads;     ///< key/value heads; else of the checkpoint
  std::optional<std::int64_t> head_dim;  ///< channels of a head; else of the checkpoint
  std::optional<DType> model_dtype;      ///< element type of the model; else of the checkpoint
  std::string model_type;                ///< "llama"; else of the checkpoint
  std::int64_t ranks = 1;                ///< size of the tensor parallelism
  /// Keys observed at their projection may go to a runtime that stores them after rotary embedding
  /// or normalization, whatever their granularity: for models that have neither.
  bool allow_linear_tap = false;
};

struct WrittenFile {
  std::string path;
  std::string what;  ///< what is in it
};

/// What was written, and what the user has to know. Notes say how to go on, warnings what will not
/// be as it should.
struct ExportReport {
  std::string runtime;
  std::vector<WrittenFile> files;
  std::vector<std::string> notes;
  std::vector<std::string> warnings;

  std::string to_text() const;
  /// {"runtime", "files": [{"path", "what"}], "notes", "warnings"}
  std::string to_json() const;
};

/// What a runtime can be told, lossless changes of form included.
struct Capability {
  std::vector<Grid> grids;                 ///< the one to recommend first
  std::vector<Granularity> granularities;  ///< coarse to fine
  bool with_offset = false;
  bool quantizes_what_is_stored = true;  ///< keys after rotary embedding; false: any tap will do
};

enum class OutputKind : std::uint8_t { kFile, kFolder };

/// An inference runtime (or plain format) as the registry knows it.
struct Runtime {
  std::string_view name;     ///< "vllm-ascend"
  std::string_view summary;  ///< one line
  std::string_view readers;  ///< the versions whose rules were looked up
  OutputKind output = OutputKind::kFile;
  Capability capability;
  ExportReport (*write)(std::span<const LayerRecord> layers, const ExportOptions& options);
  VerifyReport (*verify)(const std::string& path, const VerifyOptions& options);
};

/// All of them: lmdeploy, vllm-ascend, vllm, modelopt, tensorrt-llm, sglang, msmodelslim, json,
/// npz.
std::span<const Runtime> runtimes();
/// The runtime of that name; throws ValueError, which lists the names.
const Runtime& runtime_named(std::string_view name);

/// Writes `layers` for `runtime`: by their number in the model, the key before the value, whatever
/// order they come in. Files appear whole or not at all, and the one that makes a checkpoint a
/// quantized one comes last.
///
/// Throws Unrepresentable; ValueError where there are no layers, a layer's number or role cannot be
/// told (json and npz take such layers, too), a layer is there twice or without its other half,
/// `options` lack what the runtime needs, or the checkpoint is quantized already; IoError. Nothing
/// is written then, except where an IoError comes between two files.
ExportReport export_layers(std::span<const LayerRecord> layers, std::string_view runtime,
                           const ExportOptions& options);

/// The same for the layers of a record file. Throws as read_record does, too.
ExportReport export_record(const std::string& record_file, std::string_view runtime,
                           const ExportOptions& options);

}  // namespace amct
#pragma GCC visibility pop
