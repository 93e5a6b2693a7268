#include "observe/radix_sort.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstdint>
#include <utility>
#include <vector>

namespace amct {
namespace {

constexpr int kDigitBits = 11;
constexpr int kDigits = 3;  // 3 x 11 bits cover the 32 of a float
constexpr std::uint32_t kBuckets = 1U << kDigitBits;
// Below this a comparison sort is faster than clearing and summing the tables.
constexpr std::size_t kSmall = 1024;

/// Maps float bits to integers of the same order: negative values reversed, positive ones above
/// them.
constexpr std::uint32_t to_ordered(std::uint32_t bits) {
  return bits ^ ((bits >> 31) != 0 ? 0xFFFFFFFFU : 0x80000000U);
}

constexpr std::uint32_t from_ordered(std::uint32_t key) {
  return key ^ ((key >> 31) != 0 ? 0x80000000U : 0xFFFFFFFFU);
}

std::uint32_t digit(std::uint32_t key, int pass) {
  return (key >> (pass * kDigitBits)) & (kBuckets - 1);
}

}  // namespace

void radix_sort(std::span<float> values) {
  if (values.size() < kSmall) {
    std::ranges::sort(values);
    return;
  }
  std::vector<std::uint32_t> keys(values.size());
  std::vector<std::uint32_t> sorted(values.size());
  std::array<std::array<std::size_t, kBuckets>, kDigits> positions{};
  for (std::size_t i = 0; i < values.size(); ++i) {
    keys[i] = to_ordered(std::bit_cast<std::uint32_t>(values[i]));
    for (int pass = 0; pass < kDigits; ++pass) ++positions[pass][digit(keys[i], pass)];
  }
  for (int pass = 0; pass < kDigits; ++pass) {
    std::size_t next = 0;
    for (std::size_t& position : positions[pass]) next += std::exchange(position, next);
    for (const std::uint32_t key : keys) sorted[positions[pass][digit(key, pass)]++] = key;
    keys.swap(sorted);
  }
  std::ranges::transform(keys, values.begin(),
                         [](std::uint32_t key) { return std::bit_cast<float>(from_ordered(key)); });
}

}  // namespace amct
