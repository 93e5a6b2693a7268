#include "observe/non_finite.h"

#include <cstddef>
#include <functional>

#include <tbb/blocked_range.h>
#include <tbb/parallel_reduce.h>

#include "kernels/scan.h"
#include "observe/elements.h"

namespace amct {
namespace {

// Values scanned in one task, so many that a hand-over to another thread does not show.
constexpr std::int64_t kChunk = std::int64_t{1} << 18;

template <typename Bits, typename Scan>
std::int64_t count_in_chunks(const Bits* start, std::int64_t count, Scan scan) {
  if (count <= kChunk) return scan(start, count);
  return tbb::parallel_reduce(
      tbb::blocked_range<std::int64_t>(0, count, kChunk), std::int64_t{0},
      [&](const tbb::blocked_range<std::int64_t>& range, std::int64_t sum) {
        return sum + scan(start + range.begin(), range.end() - range.begin());
      },
      std::plus<>());
}

/// Scans the block in as few runs as it has; runs that are not contiguous go element by element.
template <typename Bits, typename Scan, typename IsFinite>
std::int64_t count_non_finite(const Block& block, Scan scan, IsFinite finite) {
  constexpr auto kSize = static_cast<std::int64_t>(sizeof(Bits));
  const bool aligned = reinterpret_cast<std::uintptr_t>(block.data) % alignof(Bits) == 0;
  const auto* start = reinterpret_cast<const Bits*>(block.data);
  if (aligned && block.is_contiguous())
    return count_in_chunks(start, block.rows * block.channels, scan);
  std::int64_t count = 0;
  if (aligned && block.channel_stride == 1 && block.channels >= 64 / kSize) {
    for (std::int64_t row = 0; row < block.rows; ++row)
      count += scan(start + row * block.row_stride, block.channels);
    return count;
  }
  for_each_element<Bits>(
      block, [&](std::int64_t, std::int64_t, Bits bits) { count += finite(bits) ? 0 : 1; });
  return count;
}

template <typename Bits, typename Scan, typename IsFinite>
NonFinite find(const TensorView& view, Scan scan, IsFinite finite) {
  NonFinite found;
  for (const Block& block : blocks_of(view))
    found.count += count_non_finite<Bits>(block, scan, finite);
  if (found.count == 0) return found;
  // Where the first one stands matters only in this rare case.
  for_each_element<Bits>(view, [&](std::int64_t row, std::int64_t channel, Bits bits) {
    if (found.first_index < 0 && !finite(bits)) found.first_index = row * view.channels() + channel;
  });
  return found;
}

}  // namespace

NonFinite find_non_finite(const TensorView& view) {
  if (view.dtype == DType::kFloat32) {
    return find<std::uint32_t>(
        view,
        [](const std::uint32_t* start, std::int64_t count) {
          return kernels::scan_float32(reinterpret_cast<const float*>(start),
                                       static_cast<std::size_t>(count))
              .non_finite;
        },
        [](std::uint32_t bits) { return is_finite(bits); });
  }
  const DType dtype = view.dtype;
  return find<std::uint16_t>(
      view,
      [dtype](const std::uint16_t* start, std::int64_t count) {
        return kernels::scan_half(dtype, start, static_cast<std::size_t>(count)).non_finite;
      },
      [dtype](std::uint16_t bits) { return is_finite(bits, dtype); });
}

}  // namespace amct
