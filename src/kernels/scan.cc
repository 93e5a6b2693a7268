#include "kernels/scan.h"

#include <algorithm>
#include <bit>
#include <limits>

#include "kernels/targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/scan.cc"
#include <hwy/foreach_target.h>  // IWYU pragma: keep
#include <hwy/highway.h>

#ifndef AMCT_KERNELS_SCAN_TYPES
#define AMCT_KERNELS_SCAN_TYPES
namespace amct::kernels {

/// Smallest and largest value, and the largest magnitude as bits: above those of infinity it is
/// NaN.
struct FloatExtremes {
  float min;
  float max;
  std::uint32_t max_bits;
};

/// Smallest and largest pattern in the order of their values, and the largest magnitude.
struct HalfExtremes {
  std::int16_t min;
  std::int16_t max;
  std::uint16_t max_bits;
};

}  // namespace amct::kernels
#endif

HWY_BEFORE_NAMESPACE();
namespace amct::kernels {
namespace HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

FloatExtremes FloatRange(const float* HWY_RESTRICT values, std::size_t count) {
  const hn::ScalableTag<float> df;
  const hn::RebindToUnsigned<decltype(df)> du;
  const std::size_t lanes = hn::Lanes(df);
  const auto magnitude = hn::Set(du, 0x7FFFFFFFU);
  auto low = hn::Set(df, std::numeric_limits<float>::max());
  auto high = hn::Set(df, -std::numeric_limits<float>::max());
  auto bits = hn::Zero(du);
  std::size_t i = 0;
  for (; i + lanes <= count; i += lanes) {
    const auto x = hn::LoadU(df, values + i);
    low = hn::Min(low, x);
    high = hn::Max(high, x);
    bits = hn::Max(bits, hn::And(hn::BitCast(du, x), magnitude));
  }
  FloatExtremes result{hn::GetLane(hn::MinOfLanes(df, low)), hn::GetLane(hn::MaxOfLanes(df, high)),
                       hn::GetLane(hn::MaxOfLanes(du, bits))};
  for (; i < count; ++i) {
    result.min = std::min(result.min, values[i]);
    result.max = std::max(result.max, values[i]);
    result.max_bits =
        std::max(result.max_bits, std::bit_cast<std::uint32_t>(values[i]) & 0x7FFFFFFFU);
  }
  return result;
}

HalfExtremes HalfRange(const std::uint16_t* HWY_RESTRICT patterns, std::size_t count) {
  const hn::ScalableTag<std::int16_t> di;
  const hn::RebindToUnsigned<decltype(di)> du;
  const std::size_t lanes = hn::Lanes(di);
  const auto magnitude = hn::Set(di, std::int16_t{0x7FFF});
  auto low = hn::Set(di, std::numeric_limits<std::int16_t>::max());
  auto high = hn::Set(di, std::numeric_limits<std::int16_t>::min());
  auto bits = hn::Zero(di);
  std::size_t i = 0;
  for (; i + lanes <= count; i += lanes) {
    const auto x = hn::BitCast(di, hn::LoadU(du, patterns + i));
    // Negative values: the larger the magnitude, the smaller the value.
    const auto key = hn::Xor(x, hn::And(hn::ShiftRight<15>(x), magnitude));
    low = hn::Min(low, key);
    high = hn::Max(high, key);
    bits = hn::Max(bits, hn::And(x, magnitude));
  }
  alignas(64) std::int16_t lane_low[HWY_MAX_BYTES / 2];
  alignas(64) std::int16_t lane_high[HWY_MAX_BYTES / 2];
  alignas(64) std::int16_t lane_bits[HWY_MAX_BYTES / 2];
  hn::Store(low, di, lane_low);
  hn::Store(high, di, lane_high);
  hn::Store(bits, di, lane_bits);
  HalfExtremes result{*std::min_element(lane_low, lane_low + lanes),
                      *std::max_element(lane_high, lane_high + lanes),
                      static_cast<std::uint16_t>(*std::max_element(lane_bits, lane_bits + lanes))};
  for (; i < count; ++i) {
    const auto x = static_cast<std::int16_t>(patterns[i]);
    const auto key = static_cast<std::int16_t>(x ^ (x < 0 ? 0x7FFF : 0));
    result.min = std::min(result.min, key);
    result.max = std::max(result.max, key);
    result.max_bits = std::max(result.max_bits, static_cast<std::uint16_t>(x & 0x7FFF));
  }
  return result;
}

MagnitudeRange Magnitudes(const std::uint16_t* HWY_RESTRICT patterns, std::size_t count) {
  const hn::ScalableTag<std::uint16_t> du;
  const std::size_t lanes = hn::Lanes(du);
  const auto magnitude = hn::Set(du, std::uint16_t{0x7FFF});
  const auto one = hn::Set(du, std::uint16_t{1});
  auto low = hn::Set(du, std::uint16_t{0xFFFF});
  auto high = hn::Zero(du);
  std::size_t i = 0;
  for (; i + lanes <= count; i += lanes) {
    const auto x = hn::And(hn::LoadU(du, patterns + i), magnitude);
    low = hn::Min(low, hn::Sub(x, one));  // zero becomes the largest
    high = hn::Max(high, x);
  }
  alignas(64) std::uint16_t lane_low[HWY_MAX_BYTES / 2];
  alignas(64) std::uint16_t lane_high[HWY_MAX_BYTES / 2];
  hn::Store(low, du, lane_low);
  hn::Store(high, du, lane_high);
  std::uint16_t smallest = *std::min_element(lane_low, lane_low + lanes);
  std::uint16_t largest = *std::max_element(lane_high, lane_high + lanes);
  for (; i < count; ++i) {
    const auto x = static_cast<std::uint16_t>(patterns[i] & 0x7FFF);
    smallest = std::min(smallest, static_cast<std::uint16_t>(x - 1));
    largest = std::max(largest, x);
  }
  return {static_cast<std::uint16_t>(smallest == 0xFFFF ? smallest : smallest + 1), largest};
}

}  // namespace HWY_NAMESPACE
}  // namespace amct::kernels
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace amct::kernels {
namespace {

HWY_EXPORT(FloatRange);
HWY_EXPORT(HalfRange);
HWY_EXPORT(Magnitudes);

constexpr std::uint32_t kInfinityBits = 0x7F800000;

void add(ScanResult& result, float value, bool finite) {
  if (!finite) {
    ++result.non_finite;
    return;
  }
  result.min = std::min(result.min, value);
  result.max = std::max(result.max, value);
}

/// The pattern whose order key is `key`.
std::uint16_t pattern_of(std::int16_t key) {
  return static_cast<std::uint16_t>(key < 0 ? key ^ 0x7FFF : key);
}

}  // namespace

ScanResult empty_scan() {
  return {std::numeric_limits<float>::infinity(), -std::numeric_limits<float>::infinity(), 0};
}

ScanResult scan_float32_scalar(const float* values, std::size_t count) {
  ScanResult result = empty_scan();
  for (std::size_t i = 0; i < count; ++i) {
    add(result, values[i], (std::bit_cast<std::uint32_t>(values[i]) & 0x7FFFFFFFU) < kInfinityBits);
  }
  return result;
}

ScanResult scan_half_scalar(DType dtype, const std::uint16_t* patterns, std::size_t count) {
  ScanResult result = empty_scan();
  const std::uint16_t mask = exponent_mask(dtype);
  for (std::size_t i = 0; i < count; ++i) {
    add(result, half_to_float(dtype, patterns[i]), (patterns[i] & mask) != mask);
  }
  return result;
}

MagnitudeRange magnitude_range_scalar(const std::uint16_t* patterns, std::size_t count) {
  MagnitudeRange result{0xFFFF, 0};
  for (std::size_t i = 0; i < count; ++i) {
    const auto x = static_cast<std::uint16_t>(patterns[i] & 0x7FFF);
    if (x > 0) result.smallest = std::min(result.smallest, x);
    result.largest = std::max(result.largest, x);
  }
  return result;
}

MagnitudeRange magnitude_range(const std::uint16_t* patterns, std::size_t count) {
  return HWY_DYNAMIC_DISPATCH(Magnitudes)(patterns, count);
}

ScanResult scan_float32(const float* values, std::size_t count) {
  if (count == 0) return empty_scan();
  const auto found = HWY_DYNAMIC_DISPATCH(FloatRange)(values, count);
  if (found.max_bits >= kInfinityBits) return scan_float32_scalar(values, count);
  return {found.min, found.max, 0};
}

ScanResult scan_half(DType dtype, const std::uint16_t* patterns, std::size_t count) {
  if (count == 0) return empty_scan();
  const auto found = HWY_DYNAMIC_DISPATCH(HalfRange)(patterns, count);
  if (found.max_bits >= exponent_mask(dtype)) return scan_half_scalar(dtype, patterns, count);
  return {half_to_float(dtype, pattern_of(found.min)), half_to_float(dtype, pattern_of(found.max)),
          0};
}

}  // namespace amct::kernels
#endif  // HWY_ONCE
