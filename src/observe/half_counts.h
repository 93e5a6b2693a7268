// Storage of observed float16 and bfloat16 values: exact counts of their bit patterns.
#pragma once

#include "amct/core/dtype.h"
#include "amct/observe/value_counts.h"

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <unordered_map>
#include <vector>

namespace amct {

/// Counts the 65,536 patterns of one 16-bit type for several groups. Real activations use a small
/// part of the patterns, so counters come in pages of 256 that are allocated when first needed.
class HalfCounts {
 public:
  HalfCounts(DType dtype, std::size_t groups);

  /// Counts `pattern` once in `group`.
  void add(std::size_t group, std::uint16_t pattern) {
    std::unique_ptr<Page>& page = pages_[group * kPages + (pattern >> 8)];
    if (page == nullptr) page = std::make_unique<Page>();
    if (++(*page)[pattern & 0xFF] == 0) ++wraps_[key_of(group, pattern)];
  }

  void merge(const HalfCounts& other);

  ValueCounts value_counts(std::size_t group) const;

 private:
  static constexpr std::size_t kPages = 256;
  using Page = std::array<std::uint32_t, 256>;

  static std::uint64_t key_of(std::size_t group, std::size_t pattern) {
    return (static_cast<std::uint64_t>(group) << 16) | pattern;
  }
  std::uint64_t count_of(std::size_t group, std::size_t pattern) const;

  DType dtype_;
  std::vector<std::unique_ptr<Page>> pages_;  // [group][pattern >> 8]
  // How often a 32-bit counter passed 2^32: rare enough for a map, and keeps the pages half as
  // large.
  std::unordered_map<std::uint64_t, std::uint64_t> wraps_;
};

}  // namespace amct
