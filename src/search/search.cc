#include "amct/search/search.h"

#include "amct/core/error.h"
#include "amct/search/hfmg.h"
#include "amct/search/ifmr.h"
#include "amct/search/kl.h"
#include "amct/search/minmax.h"
#include "amct/search/mse.h"
#include "amct/search/percentile.h"

#include <algorithm>
#include <array>

namespace amct {

std::span<const Algorithm> algorithms() {
  static const std::array kAlgorithms{
      ifmr_algorithm(),       hfmg_algorithm(), minmax_algorithm(),
      percentile_algorithm(), mse_algorithm(),  kl_algorithm(),
  };
  return kAlgorithms;
}

const Algorithm* find_algorithm(std::string_view name) {
  const auto found = std::ranges::find_if(
      algorithms(), [name](const Algorithm& algorithm) { return algorithm.spec.name == name; });
  return found == algorithms().end() ? nullptr : &*found;
}

const AlgorithmCatalog& algorithm_catalog() {
  static const AlgorithmCatalog kCatalog = [] {
    AlgorithmCatalog catalog;
    for (const Algorithm& algorithm : algorithms()) catalog.push_back(algorithm.spec);
    return catalog;
  }();
  return kCatalog;
}

void require_values(const ValueCounts& values) {
  if (values.empty()) {
    throw StateError("no finite value was observed, so there is nothing to take factors from");
  }
}

}  // namespace amct
