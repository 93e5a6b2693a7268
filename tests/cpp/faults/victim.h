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
inline const std::array<std::string, 2> kLayers{"layers.0.k_proj", "layers.0.v_proj"};

inline CalibrationConfig config() {
  CalibrationConfig config = default_config(kLayers, algorithm_catalog());
  config.batch_num = kBatches;
  config.layers[1].granularity = Granularity::kPerChannel;
  return config;
}

/// A batch of bfloat16 patterns.
struct Batch {
  std::vector<std::uint16_t> patterns;

  TensorView view() const {
    return TensorView::contiguous(patterns.data(), DType::kBFloat16, {kRows, kChannels});
  }
};

/// Patterns around 1 of either sign.
inline std::vector<Batch> batches() {
  std::vector<Batch> batches(kBatches);
  std::uint32_t state = 1;
  for (Batch& batch : batches) {
    for (std::int64_t i = 0; i < kRows * kChannels; ++i) {
      state = state * 1664525U + 1013904223U;
      const std::uint32_t bits = 0x3E00U + ((state >> 16) % 0x200U);
      batch.patterns.push_back(static_cast<std::uint16_t>(bits | ((state >> 30) % 2U) << 15));
    }
  }
  return batches;
}

}  // namespace amct::victim
