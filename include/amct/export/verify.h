// Reading back what was exported, by the runtime's own rule.
#pragma once

#include "amct/core/dtype.h"
#include "amct/core/grid.h"
#include "amct/core/kv_layer.h"
#include "amct/record/record_file.h"

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#pragma GCC visibility push(default)
namespace amct {

/// What becomes of a key (a tensor, an entry of a JSON file, a layer of a record).
enum class Verdict : std::uint8_t {
  kUsed,     ///< the runtime uses it, as meant
  kIgnored,  ///< it passes it over, without harm
  kWrong,    ///< it goes on with something else, and does not say so
  kFatal,    ///< it stops with an error
};

/// "used", "ignored", "wrong" or "fatal".
std::string_view name_of(Verdict verdict);

struct Finding {
  Verdict verdict = Verdict::kUsed;
  std::string key;    ///< empty: the file or folder as a whole
  std::string value;  ///< what the runtime takes from it; may be empty
  std::string why;
};

/// How what the runtime would use compares to the record.
enum class Match : std::uint8_t {
  kNotCompared,  ///< no record was given
  kEqual,        ///< to the precision in which the runtime keeps factors
  kMerged,       ///< the larger of a layer's two scales serves both, as the runtime has it
  kDifferent,
  kMissing,  ///< the record has the layer, the runtime nothing for it; or the other way round
};

/// "not compared", "equal", "merged", "different" or "missing".
std::string_view name_of(Match match);

/// What the runtime reads a layer's keys or values back with: x' = (q - offset) * scale, in this
/// library's sign whatever the runtime's is.
struct EffectiveFactors {
  std::int64_t layer = 0;
  KVRole role = KVRole::kKey;
  std::string source;  ///< the key they come from; "default" where there is none
  Grid grid = kInt8;
  std::vector<double> scale;   ///< 1, heads or channels
  std::vector<double> offset;  ///< as many
  double precision = 0;        ///< relative, of the type they are kept in; 0: float32
  Match match = Match::kNotCompared;
  std::string difference;  ///< where they differ from the record, in words
};

struct VerifyOptions {
  /// What the export was made from; without it only what is wrong by itself is found.
  std::optional<std::vector<LayerRecord>> record;
  /// The checkpoint, where `path` is not one; tells what is left out below, and holds the weights
  /// that an exported index names.
  std::string model_folder;
  std::optional<std::int64_t> layers;    ///< layers with a cache
  std::optional<std::int64_t> heads;     ///< key/value heads
  std::optional<std::int64_t> head_dim;  ///< channels of a head
  std::optional<DType> model_dtype;      ///< bfloat16 where nothing tells
  std::int64_t ranks = 1;                ///< size of the tensor parallelism
};

struct VerifyReport {
  std::string runtime;
  std::string readers;  ///< the versions whose rules were followed
  std::string path;
  std::vector<Finding> findings;
  std::vector<EffectiveFactors> layers;  ///< by layer, the key before the value
  std::vector<std::string> notes;        ///< what the runtime makes of right factors

  /// Nothing is wrong or fatal, and no layer differs from the record or is missing.
  bool ok() const;
  std::string to_text() const;
  /// {"runtime", "readers", "path", "ok", "findings": [...], "layers": [...], "notes": [...]}
  std::string to_json() const;
};

/// Reads `path` (a file or a folder) as `runtime` would. Throws ValueError for an unknown runtime,
/// where the record in `options` cannot be laid out in layers, and where `path` cannot name a file;
/// IoError where it is not there or cannot be read. Content that makes no sense, of any size or
/// kind, is a finding and not an error.
VerifyReport verify_export(const std::string& path, std::string_view runtime,
                           const VerifyOptions& options = {});

}  // namespace amct
#pragma GCC visibility pop
