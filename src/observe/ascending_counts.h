// Pages of counters of 16-bit patterns as value counts.
#pragma once

#include "amct/core/dtype.h"
#include "amct/core/large_array.h"
#include "amct/observe/value_counts.h"

#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include "observe/counter_page.h"
#include "observe/elements.h"

namespace amct {

/// The finite values of `dtype` by their counts. page_counts(i) gives the counts of patterns
/// [256 i, 256 i + 256), or null where none occurred; about `pages` of them have some, for which
/// memory is taken at once.
template <typename PageCounts>
ValueCounts ascending_counts(DType dtype, std::size_t pages, PageCounts page_counts) {
  constexpr std::size_t kPages = 256;
  constexpr std::size_t kPageSize = CounterPage::kSize;
  LargeArray<float> values;
  std::vector<std::uint64_t> counts;
  values.reserve(pages * kPageSize);
  counts.reserve(pages * kPageSize);
  const auto append_page = [&](std::size_t index, bool descending) {
    const CounterPage::Counts* page = page_counts(index);
    if (page == nullptr) return;
    for (std::size_t i = 0; i < kPageSize; ++i) {
      const std::size_t low = descending ? kPageSize - 1 - i : i;
      const auto pattern = static_cast<std::uint16_t>(index * kPageSize + low);
      const std::uint64_t count = (*page)[low];
      if (count == 0 || !is_finite(pattern, dtype)) continue;
      const float value = half_to_float(dtype, pattern);
      if (value == 0.0F && !values.empty() && values.back() == 0.0F) {  // -0, then +0
        counts.back() += count;
        continue;
      }
      values.push_back(value == 0.0F ? 0.0F : value);
      counts.push_back(count);
    }
  };
  // Negative patterns from the largest magnitude down, then positive ones up.
  for (std::size_t index = kPages; index-- > kPages / 2;) append_page(index, true);
  for (std::size_t index = 0; index < kPages / 2; ++index) append_page(index, false);
  return {std::move(values), std::move(counts)};
}

}  // namespace amct
