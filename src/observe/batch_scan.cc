#include "observe/batch_scan.h"

#include <algorithm>
#include <cstddef>

#include <tbb/blocked_range.h>
#include <tbb/parallel_reduce.h>

#include "observe/elements.h"

namespace amct {
namespace {

using kernels::ScanResult;

// Values scanned in one task, so many that a hand-over to another thread does not show.
constexpr std::int64_t kChunk = std::int64_t{1} << 18;
// Bytes of a row that are worth a call of the kernel.
constexpr std::int64_t kRowBytes = 64;

ScanResult joined(const ScanResult& a, const ScanResult& b) {
  return {std::min(a.min, b.min), std::max(a.max, b.max), a.non_finite + b.non_finite};
}

ScanResult scan_run(DType dtype, const std::byte* start, std::int64_t count) {
  const auto size = static_cast<std::size_t>(count);
  if (dtype == DType::kFloat32)
    return kernels::scan_float32(reinterpret_cast<const float*>(start), size);
  return kernels::scan_half(dtype, reinterpret_cast<const std::uint16_t*>(start), size);
}

ScanResult scan_run_in_chunks(DType dtype, const std::byte* start, std::int64_t count) {
  if (count <= kChunk) return scan_run(dtype, start, count);
  const auto element_size = static_cast<std::int64_t>(size_of(dtype));
  return tbb::parallel_reduce(
      tbb::blocked_range<std::int64_t>(0, count, kChunk), kernels::empty_scan(),
      [&](const tbb::blocked_range<std::int64_t>& range, const ScanResult& sum) {
        return joined(sum, scan_run(dtype, start + range.begin() * element_size,
                                    range.end() - range.begin()));
      },
      joined);
}

/// Elements that lie apart, gathered by the row.
template <typename Bits>
ScanResult scan_apart(DType dtype, const Block& block) {
  constexpr std::size_t kGathered = 256;
  alignas(64) Bits gathered[kGathered];  // NOLINT(*-avoid-c-arrays)
  std::size_t size = 0;
  ScanResult result = kernels::empty_scan();
  const auto scan_gathered = [&] {
    result = joined(result, scan_run(dtype, reinterpret_cast<const std::byte*>(gathered),
                                     static_cast<std::int64_t>(size)));
    size = 0;
  };
  for_each_element<Bits>(block, [&](std::int64_t, std::int64_t, Bits bits) {
    gathered[size++] = bits;
    if (size == kGathered) scan_gathered();
  });
  scan_gathered();
  return result;
}

ScanResult scan_block(DType dtype, const Block& block) {
  const auto element_size = static_cast<std::int64_t>(size_of(dtype));
  const bool aligned =
      reinterpret_cast<std::uintptr_t>(block.data) % static_cast<std::uintptr_t>(element_size) == 0;
  if (aligned && block.is_contiguous())
    return scan_run_in_chunks(dtype, block.data, block.rows * block.channels);
  if (aligned && block.channel_stride == 1 && block.channels * element_size >= kRowBytes) {
    return tbb::parallel_reduce(
        tbb::blocked_range<std::int64_t>(
            0, block.rows,
            static_cast<std::size_t>(std::max<std::int64_t>(1, kChunk / block.channels))),
        kernels::empty_scan(),
        [&](const tbb::blocked_range<std::int64_t>& range, ScanResult sum) {
          for (std::int64_t row = range.begin(); row < range.end(); ++row) {
            sum = joined(sum, scan_run(dtype, block.data + row * block.row_stride * element_size,
                                       block.channels));
          }
          return sum;
        },
        joined);
  }
  return dtype == DType::kFloat32 ? scan_apart<std::uint32_t>(dtype, block)
                                  : scan_apart<std::uint16_t>(dtype, block);
}

template <typename Bits, typename IsFinite>
std::int64_t first_where_not(const TensorView& view, IsFinite finite) {
  std::int64_t first = -1;
  for_each_element<Bits>(view, [&](std::int64_t row, std::int64_t channel, Bits bits) {
    if (first < 0 && !finite(bits)) first = row * view.channels() + channel;
  });
  return first;
}

}  // namespace

ScanResult scan(const TensorView& view) {
  ScanResult result = kernels::empty_scan();
  for (const Block& block : blocks_of(view)) result = joined(result, scan_block(view.dtype, block));
  return result;
}

std::int64_t first_non_finite(const TensorView& view) {
  if (view.dtype == DType::kFloat32)
    return first_where_not<std::uint32_t>(view, [](std::uint32_t bits) { return is_finite(bits); });
  return first_where_not<std::uint16_t>(
      view, [dtype = view.dtype](std::uint16_t bits) { return is_finite(bits, dtype); });
}

}  // namespace amct
