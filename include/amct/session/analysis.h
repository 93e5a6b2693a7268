// How factors sit on what a layer was seen to hold: what a report shows.
#pragma once

#include "amct/observe/observer.h"
#include "amct/record/record_file.h"
#include "amct/search/quantization_error.h"

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#pragma GCC visibility push(default)
namespace amct {

/// One group of values that share factors.
struct GroupAnalysis {
  float min = 0;            ///< smallest value
  float max = 0;            ///< largest value
  QuantParams params;       ///< its factors
  double clip_low = 0;      ///< smallest value that can be read back
  double clip_high = 0;     ///< largest value that can be read back
  QuantizationError error;  ///< of its values
};

/// A clip range that is the group's own range times `factor`, at both ends of every group.
struct LossPoint {
  double factor = 1;
  double loss = 0;  ///< mean squared error over all values of the layer
};

struct LayerAnalysis {
  std::string name;
  QuantizationError error;               ///< over all values
  double histogram_low = 0;              ///< edge of the first bin
  double histogram_high = 0;             ///< edge of the last bin
  std::vector<std::uint64_t> histogram;  ///< counts of all values in equal bins
  std::vector<LossPoint> curve;          ///< ascending factors from 1/8 to 5/4
  std::vector<GroupAnalysis> groups;     ///< one, or one a channel or head
  /// Largest magnitude of each channel, where the layer was observed per channel; else empty.
  std::vector<float> channel_max_abs;
};

/// Puts the factors of a layer on its values. The record's granularity may be coarser than what was
/// observed (see solve). Throws ValueError where the numbers of factors and channels do not fit, or
/// the observer kept the range alone; StateError where a group has no finite value.
LayerAnalysis analyse(const LayerRecord& factors, const Observer& observer,
                      std::int64_t bins = 128);

/// The same for every layer of a record that a counts file has, in the record's order. Throws as
/// read_record and CountsReader do, too; ValueError where the files have no layer in common.
std::vector<LayerAnalysis> analyse_files(const std::string& record_file,
                                         const std::string& counts_file, std::int64_t bins = 128);

}  // namespace amct
#pragma GCC visibility pop
