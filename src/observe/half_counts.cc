#include "observe/half_counts.h"

#include <utility>

namespace amct {

HalfCounts::HalfCounts(DType dtype, std::size_t groups) : dtype_(dtype), pages_(groups * kPages) {}

void HalfCounts::merge(const HalfCounts& other) {
  // Before the pages, whose sums may wrap too: `other` may be this object.
  for (const auto& [key, wraps] : other.wraps_) wraps_[key] += wraps;
  for (std::size_t i = 0; i < pages_.size(); ++i) {
    if (other.pages_[i] == nullptr) continue;
    if (pages_[i] == nullptr) pages_[i] = std::make_unique<Page>();
    for (std::size_t low = 0; low < kPages; ++low) {
      const std::uint64_t sum =
          static_cast<std::uint64_t>((*pages_[i])[low]) + (*other.pages_[i])[low];
      (*pages_[i])[low] = static_cast<std::uint32_t>(sum);
      if (sum >> 32 != 0) ++wraps_[(static_cast<std::uint64_t>(i) << 8) | low];
    }
  }
}

std::uint64_t HalfCounts::count_of(std::size_t group, std::size_t pattern) const {
  const auto wrapped = wraps_.find(key_of(group, pattern));
  const std::uint64_t high = wrapped == wraps_.end() ? 0 : wrapped->second << 32;
  return high + (*pages_[group * kPages + (pattern >> 8)])[pattern & 0xFF];
}

ValueCounts HalfCounts::value_counts(std::size_t group) const {
  std::vector<float> values;
  std::vector<std::uint64_t> counts;
  const auto append = [&](std::size_t pattern) {
    const std::uint64_t count = count_of(group, pattern);
    if (count == 0) return;
    const float value = half_to_float(dtype_, static_cast<std::uint16_t>(pattern));
    if (!values.empty() && values.back() == value) {  // -0, then +0
      counts.back() += count;
      return;
    }
    values.push_back(value == 0.0F ? 0.0F : value);
    counts.push_back(count);
  };
  // Ascending values: negative patterns from the largest magnitude down, then positive ones up.
  for (std::size_t page = kPages; page-- > kPages / 2;) {
    if (pages_[group * kPages + page] == nullptr) continue;
    for (std::size_t low = 256; low-- > 0;) append((page << 8) | low);
  }
  for (std::size_t page = 0; page < kPages / 2; ++page) {
    if (pages_[group * kPages + page] == nullptr) continue;
    for (std::size_t low = 0; low < 256; ++low) append((page << 8) | low);
  }
  return {std::move(values), std::move(counts)};
}

}  // namespace amct
