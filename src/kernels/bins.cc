#include "kernels/bins.h"

#include <algorithm>

#include "kernels/targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/bins.cc"
#include <hwy/foreach_target.h>  // IWYU pragma: keep
#include <hwy/highway.h>

HWY_BEFORE_NAMESPACE();
namespace amct::kernels {
namespace HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

/// Turns values, as vectors of doubles, into positions and those into indices. Handles a multiple
/// of the vector size; returns how many.
template <typename Position>
HWY_INLINE std::size_t Indices(const float* HWY_RESTRICT values, std::size_t count,
                               std::uint32_t bins, std::uint32_t* HWY_RESTRICT indices,
                               Position position) {
  const hn::CappedTag<double, 8> d;
  const hn::Rebind<float, decltype(d)> df;
  const hn::Rebind<std::int32_t, decltype(d)> di;
  const std::size_t lanes = hn::Lanes(d);
  const auto last = hn::Set(di, static_cast<std::int32_t>(bins - 1));
  std::size_t i = 0;
  for (; i + lanes <= count; i += lanes) {
    const auto x = hn::PromoteTo(d, hn::LoadU(df, values + i));
    const auto index = hn::Min(hn::DemoteTo(di, position(x)), last);  // DemoteTo truncates
    hn::StoreU(index, di, reinterpret_cast<std::int32_t*>(indices + i));
  }
  return i;
}

std::size_t BinIndices(const float* values, std::size_t count, double low, double range,
                       std::uint32_t bins, std::uint32_t* indices) {
  const hn::CappedTag<double, 8> d;
  const auto origin = hn::Set(d, low);
  const auto extent = hn::Set(d, range);
  const auto number = hn::Set(d, static_cast<double>(bins));
  return Indices(values, count, bins, indices,
                 [&](auto x) { return hn::Div(hn::Mul(hn::Sub(x, origin), number), extent); });
}

std::size_t QuickBinIndices(const float* values, std::size_t count, double low, double inverse,
                            std::uint32_t bins, std::uint32_t* indices) {
  const hn::CappedTag<double, 8> d;
  const auto origin = hn::Set(d, low);
  const auto factor = hn::Set(d, inverse);
  return Indices(values, count, bins, indices,
                 [&](auto x) { return hn::Mul(hn::Sub(x, origin), factor); });
}

}  // namespace HWY_NAMESPACE
}  // namespace amct::kernels
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace amct::kernels {
namespace {

HWY_EXPORT(BinIndices);
HWY_EXPORT(QuickBinIndices);

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

void quick_bin_indices_scalar(const float* values, std::size_t count, double low, double inverse,
                              std::uint32_t bins, std::uint32_t* indices) {
  for (std::size_t i = 0; i < count; ++i) {
    const double position = (static_cast<double>(values[i]) - low) * inverse;
    indices[i] = std::min(static_cast<std::uint32_t>(position), bins - 1);
  }
}

void quick_bin_indices(const float* values, std::size_t count, double low, double inverse,
                       std::uint32_t bins, std::uint32_t* indices) {
  const std::size_t done =
      HWY_DYNAMIC_DISPATCH(QuickBinIndices)(values, count, low, inverse, bins, indices);
  quick_bin_indices_scalar(values + done, count - done, low, inverse, bins, indices + done);
}

}  // namespace amct::kernels
#endif  // HWY_ONCE
