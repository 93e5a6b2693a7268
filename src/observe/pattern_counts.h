// How often the bit patterns of a 16-bit type occurred, as two lists.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "observe/counter_page.h"

namespace amct {

struct PatternCounts {
  std::vector<std::uint16_t> patterns;  ///< ascending as integers
  std::vector<std::uint64_t> counts;    ///< one a pattern, positive

  /// Appends what a page counts of patterns [256 index, 256 index + 256), which must be above those
  /// that are there.
  void append_page(std::size_t index, const CounterPage::Counts& page) {
    for (std::size_t i = 0; i < page.size(); ++i) {
      if (page[i] == 0) continue;
      patterns.push_back(static_cast<std::uint16_t>(index * page.size() + i));
      counts.push_back(page[i]);
    }
  }
};

}  // namespace amct
