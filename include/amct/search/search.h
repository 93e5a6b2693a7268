// What every search takes and gives, and the registry of all of them.
#pragma once

#include "amct/core/grid.h"
#include "amct/core/options.h"
#include "amct/core/quant_params.h"
#include "amct/observe/value_counts.h"

#include <span>
#include <string_view>

#pragma GCC visibility push(default)
namespace amct {

/// What a search found for one group of values.
struct SearchResult {
  QuantParams params;
  float clip_min = 0;  ///< smallest value that is not clipped
  float clip_max = 0;  ///< largest value that is not clipped
  double loss = 0;     ///< mean squared error of the algorithm's own model; 0 where it has none
};

/// What factors are searched for.
struct SearchTarget {
  Grid grid = kInt8;
  bool with_offset = true;  ///< false for float grids, which have none
};

/// An algorithm as the registry knows it. `search` takes settings that `spec` accepts; the values
/// must not be empty (StateError).
struct Algorithm {
  AlgorithmSpec spec;
  SearchResult (*search)(const ValueCounts& values, const SearchTarget& target,
                         const OptionMap& options);
  /// The same from the range alone, for algorithms that need no more of the values; else null.
  /// low <= high.
  SearchResult (*search_range)(float low, float high, const SearchTarget& target,
                               const OptionMap& options) = nullptr;
};

/// All algorithms, the default one first.
std::span<const Algorithm> algorithms();

/// The algorithm of that name, or nullptr.
const Algorithm* find_algorithm(std::string_view name);

/// The settings of all algorithms, in the registry's order: what readers of configurations take.
const AlgorithmCatalog& algorithm_catalog();

/// Throws StateError where there is nothing to search.
void require_values(const ValueCounts& values);

}  // namespace amct
#pragma GCC visibility pop
