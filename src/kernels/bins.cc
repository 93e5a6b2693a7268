#include "kernels/bins.h"

#include <algorithm>
#include <array>

#include "kernels/targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/bins.cc"
#include <hwy/foreach_target.h>  // IWYU pragma: keep
#include <hwy/highway.h>

#ifndef AMCT_KERNELS_BINS_TYPES
#define AMCT_KERNELS_BINS_TYPES
namespace amct::kernels {

/// How many values were done, and whether one was outside of all bins.
struct QuickBins {
  std::size_t count;
  bool any_outside;
};

}  // namespace amct::kernels
#endif

HWY_BEFORE_NAMESPACE();
namespace amct::kernels {
namespace HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

/// Turns values, as vectors of doubles, into indices. Handles a multiple of the vector size;
/// returns how many.
template <typename IndexOf>
HWY_INLINE std::size_t Indices(const float* HWY_RESTRICT values, std::size_t count,
                               std::uint32_t* HWY_RESTRICT indices, IndexOf index_of) {
  const hn::CappedTag<double, 8> d;
  const hn::Rebind<float, decltype(d)> df;
  const hn::Rebind<std::int32_t, decltype(d)> di;
  const std::size_t lanes = hn::Lanes(d);
  std::size_t i = 0;
  for (; i + lanes <= count; i += lanes) {
    const auto x = hn::PromoteTo(d, hn::LoadU(df, values + i));
    hn::StoreU(index_of(x), di, reinterpret_cast<std::int32_t*>(indices + i));
  }
  return i;
}

std::size_t BinIndices(const float* values, std::size_t count, double low, double range,
                       std::uint32_t bins, std::uint32_t* indices) {
  const hn::CappedTag<double, 8> d;
  const hn::Rebind<std::int32_t, decltype(d)> di;
  const auto origin = hn::Set(d, low);
  const auto extent = hn::Set(d, range);
  const auto number = hn::Set(d, static_cast<double>(bins));
  const auto last = hn::Set(di, static_cast<std::int32_t>(bins - 1));
  return Indices(values, count, indices, [&](auto x) {
    // DemoteTo truncates.
    return hn::Min(hn::DemoteTo(di, hn::Div(hn::Mul(hn::Sub(x, origin), number), extent)), last);
  });
}

QuickBins QuickBinIndices(const float* HWY_RESTRICT values, std::size_t count, float low,
                          float inverse, std::uint32_t bins, std::uint32_t* HWY_RESTRICT indices) {
  const hn::ScalableTag<float> d;
  const hn::RebindToSigned<decltype(d)> di;
  const std::size_t lanes = hn::Lanes(d);
  const auto origin = hn::Set(d, low);
  const auto factor = hn::Set(d, inverse);
  const auto zero = hn::Zero(d);
  const auto number = hn::Set(d, static_cast<float>(bins));
  auto largest = zero;
  std::size_t i = 0;
  for (; i + lanes <= count; i += lanes) {
    const auto position = hn::Mul(hn::Sub(hn::LoadU(d, values + i), origin), factor);
    const auto inside = hn::Min(hn::IfThenElse(hn::Lt(position, zero), number, position), number);
    largest = hn::Max(largest, inside);
    hn::StoreU(hn::ConvertTo(di, inside), di, reinterpret_cast<std::int32_t*>(indices + i));
  }
  return {i, hn::GetLane(hn::MaxOfLanes(d, largest)) >= static_cast<float>(bins)};
}

/// Adds to eight lanes.
void SumAtSteps(const float* HWY_RESTRICT table, std::size_t size, double first, double step,
                std::size_t count, double* HWY_RESTRICT lanes) {
  const hn::CappedTag<double, 8> d;
  const hn::Rebind<float, decltype(d)> df;
  const hn::Rebind<std::int32_t, decltype(d)> di;
  constexpr std::size_t kStep = hn::MaxLanes(decltype(d)());
  constexpr std::size_t kVectors = 8 / kStep;
  hn::Vec<decltype(d)> sums[kVectors];
  for (std::size_t v = 0; v < kVectors; ++v) sums[v] = hn::LoadU(d, lanes + v * kStep);
  const auto origin = hn::Set(d, first);
  const auto distance = hn::Set(d, step);
  const auto last = hn::Set(d, static_cast<double>(size - 1));
  const auto iota = hn::Iota(d, 0.0);
  for (std::size_t i = 0; i + 8 <= count; i += 8) {
    for (std::size_t v = 0; v < kVectors; ++v) {
      const auto number = hn::Add(hn::Set(d, static_cast<double>(i + v * kStep)), iota);
      const auto position = hn::Min(hn::Add(origin, hn::Mul(number, distance)), last);
      const auto found = hn::GatherIndex(df, table, hn::DemoteTo(di, position));
      sums[v] = hn::Add(sums[v], hn::PromoteTo(d, found));
    }
  }
  for (std::size_t v = 0; v < kVectors; ++v) hn::StoreU(sums[v], d, lanes + v * kStep);
}

}  // namespace HWY_NAMESPACE
}  // namespace amct::kernels
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace amct::kernels {
namespace {

HWY_EXPORT(BinIndices);
HWY_EXPORT(QuickBinIndices);
HWY_EXPORT(SumAtSteps);

}  // namespace

void bin_indices_scalar(const float* values, std::size_t count, double low, double range,
                        std::uint32_t bins, std::uint32_t* indices) {
  for (std::size_t i = 0; i < count; ++i) {
    const double position =
        (static_cast<double>(values[i]) - low) * static_cast<double>(bins) / range;
    indices[i] = std::min(static_cast<std::uint32_t>(position), bins - 1);
  }
}

void bin_indices(const float* values, std::size_t count, double low, double range,
                 std::uint32_t bins, std::uint32_t* indices) {
  const std::size_t done =
      HWY_DYNAMIC_DISPATCH(BinIndices)(values, count, low, range, bins, indices);
  bin_indices_scalar(values + done, count - done, low, range, bins, indices + done);
}

bool quick_bin_indices_scalar(const float* values, std::size_t count, float low, float inverse,
                              std::uint32_t bins, std::uint32_t* indices) {
  bool any_outside = false;
  for (std::size_t i = 0; i < count; ++i) {
    const float position = (values[i] - low) * inverse;
    const bool outside = position < 0 || position >= static_cast<float>(bins);
    indices[i] = outside ? bins : static_cast<std::uint32_t>(position);
    any_outside = any_outside || outside;
  }
  return any_outside;
}

bool quick_bin_indices(const float* values, std::size_t count, float low, float inverse,
                       std::uint32_t bins, std::uint32_t* indices) {
  const auto done =
      HWY_DYNAMIC_DISPATCH(QuickBinIndices)(values, count, low, inverse, bins, indices);
  const bool outside = quick_bin_indices_scalar(values + done.count, count - done.count, low,
                                                inverse, bins, indices + done.count);
  return outside || done.any_outside;
}

namespace {

void add_at_steps(const float* table, std::size_t size, double first, double step,
                  std::size_t begin, std::size_t end, double* lanes) {
  for (std::size_t i = begin; i < end; ++i) {
    const double position =
        std::min(first + static_cast<double>(i) * step, static_cast<double>(size - 1));
    lanes[i % 8] += static_cast<double>(table[static_cast<std::size_t>(position)]);
  }
}

double sum_of(const std::array<double, 8>& lanes) {
  double sum = 0;
  for (const double lane : lanes) sum += lane;
  return sum;
}

}  // namespace

double sum_at_steps(const float* table, std::size_t size, double first, double step,
                    std::size_t count) {
  std::array<double, 8> lanes{};
  HWY_DYNAMIC_DISPATCH(SumAtSteps)(table, size, first, step, count, lanes.data());
  add_at_steps(table, size, first, step, count / 8 * 8, count, lanes.data());
  return sum_of(lanes);
}

double sum_at_steps_scalar(const float* table, std::size_t size, double first, double step,
                           std::size_t count) {
  std::array<double, 8> lanes{};
  add_at_steps(table, size, first, step, 0, count, lanes.data());
  return sum_of(lanes);
}

}  // namespace amct::kernels
#endif  // HWY_ONCE
