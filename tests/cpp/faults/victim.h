// What amct_victim calibrates, and its test knows.
#pragma once

#include "amct/config/calibration_config.h"
#include "amct/core/tensor_view.h"
#include "amct/search/search.h"

#include <array>
#include <cstdint>
#include <string>
#include <vector>

namespace amct::victim {

inline constexpr std::int64_t kBatches = 16;
inline constexpr std::int64_t kRows = 64;
inline constexpr std::int64_t kChannels = 8;
/// Of the first batch of float32 values: as many batches of them would take 4 MiB, and that much
/// memory in one piece is asked for in huge pages.
inline constexpr std::int64_t kManyRows = (std::int64_t{1} << 20) / kBatches / kChannels;
inline const std::string kFloatLayer = "layers.1.k_proj";
inline const std::array<std::string, 3> kLayers{"layers.0.k_proj", "layers.0.v_proj", kFloatLayer};

inline CalibrationConfig config() {
  CalibrationConfig config = default_config(kLayers, algorithm_catalog());
  config.batch_num = kBatches;
  config.layers[1].granularity = Granularity::kPerChannel;
  // The values are kept for the counts file; a search of so many would take most of the time.
  config.layers[2].algorithm = "minmax";
  config.layers[2].options = find_spec(algorithm_catalog(), "minmax")->defaults();
  return config;
}

/// What the layers see at once: bfloat16 patterns, and float32 values.
struct Batch {
  std::vector<std::uint16_t> patterns;
  std::vector<float> values;

  TensorView view(const std::string& layer) const {
    if (layer != kFloatLayer)
      return TensorView::contiguous(patterns.data(), DType::kBFloat16, {kRows, kChannels});
    const auto rows = static_cast<std::int64_t>(values.size()) / kChannels;
    return TensorView::contiguous(values.data(), DType::kFloat32, {rows, kChannels});
  }
};

/// Patterns of 0.125 to 2, and values up to 2, of either sign.
inline std::vector<Batch> batches() {
  std::vector<Batch> batches(kBatches);
  std::uint32_t state = 1;
  const auto next = [&state] { return state = state * 1664525U + 1013904223U; };
  for (Batch& batch : batches) {
    for (std::int64_t i = 0; i < kRows * kChannels; ++i) {
      const std::uint32_t bits = 0x3E00U + ((next() >> 16) % 0x200U);
      batch.patterns.push_back(static_cast<std::uint16_t>(bits | ((state >> 30) % 2U) << 15));
    }
    const std::int64_t rows = &batch == &batches.front() ? kManyRows : kRows;
    for (std::int64_t i = 0; i < rows * kChannels; ++i)
      batch.values.push_back(static_cast<float>(static_cast<std::int32_t>(next())) * 0x1p-30F);
  }
  return batches;
}

}  // namespace amct::victim
