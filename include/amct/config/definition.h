// The simplified definition (config_defination): protobuf text that says which layers to calibrate,
// with settings for all of them and for single ones.
#pragma once

#include "amct/config/calibration_config.h"
#include "amct/core/options.h"

#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#pragma GCC visibility push(default)
namespace amct {

/// A parsed AMCTQuantCaliConfig (see quant_calibration_config_pytorch.proto).
class Definition {
 public:
  /// Throws ValueError, beginning with `source`, for a syntax error or an unknown field (with line
  /// and column), a value out of range, a layer listed twice, or one overridden twice. `catalog`
  /// must outlive the definition.
  static Definition parse(std::string_view text, const std::string& source,
                          const AlgorithmCatalog& catalog);
  /// As parse, and IoError where the file cannot be read.
  static Definition read(const std::string& path, const AlgorithmCatalog& catalog);

  Definition(Definition&&) noexcept;
  Definition& operator=(Definition&&) noexcept;
  ~Definition();

  /// The layers it names: quant_layers, then overridden ones not among them. Patterns are among
  /// them as they stand, see expand_layers.
  std::vector<std::string> layers() const;

  /// The configuration of `names`, which are no patterns. Every setting comes from the layer's
  /// override (an entry with its name, else the first pattern that matches it) where that gives it,
  /// else from kv_cache_quant_config, else from activation_offset (for the offset), else from the
  /// defaults. Settings of one algorithm do not carry over to another. Throws ValueError where the
  /// settings of a layer are out of range or contradict each other.
  CalibrationConfig configure(std::span<const std::string> names) const;

 private:
  struct [[gnu::visibility("hidden")]] Impl;
  explicit Definition(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace amct
#pragma GCC visibility pop
