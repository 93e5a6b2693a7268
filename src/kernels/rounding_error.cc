#include "kernels/rounding_error.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <type_traits>

#include "kernels/targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/rounding_error.cc"
#include <hwy/foreach_target.h>  // IWYU pragma: keep
#include <hwy/highway.h>

#ifndef AMCT_KERNELS_ROUNDING_ERROR_CONSTANTS
#define AMCT_KERNELS_ROUNDING_ERROR_CONSTANTS
namespace amct::kernels {

/// Sums run in this many lanes on every instruction set: a vector of AVX-512, two of AVX2.
template <typename T>
inline constexpr std::size_t kLanes = 64 / sizeof(T);
/// Values summed before the lanes are added up, which bounds the rounding of the sum.
inline constexpr std::size_t kBlock = 4096;

}  // namespace amct::kernels
#endif

HWY_BEFORE_NAMESPACE();
namespace amct::kernels {
namespace HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

/// Loads float32 values as vectors of D.
template <class D>
HWY_INLINE hn::Vec<D> LoadAs(D d, const float* HWY_RESTRICT from) {
  if constexpr (sizeof(hn::TFromD<D>) == sizeof(float)) {
    return hn::LoadU(d, from);
  } else {
    return hn::PromoteTo(d, hn::LoadU(hn::Rebind<float, D>(), from));
  }
}

/// Adds the errors of `count` values, a multiple of kLanes<T>, to `lanes`, computing in T. No fused
/// multiply-add: it would change bits between instruction sets.
template <typename T, bool kWeighted>
HWY_INLINE void AddErrors(const float* HWY_RESTRICT values, const T* HWY_RESTRICT weights,
                          std::size_t count, const Rounding& rounding, T* HWY_RESTRICT lanes) {
  const hn::CappedTag<T, kLanes<T>> d;
  using V = hn::Vec<decltype(d)>;
  constexpr std::size_t kStep = hn::MaxLanes(decltype(d)());
  constexpr std::size_t kVectors = kLanes<T> / kStep;
  const auto scale = static_cast<T>(rounding.scale);
  const auto step = hn::Set(d, scale);
  const auto inverse = hn::Set(d, T{1} / scale);
  const auto low = hn::Set(d, static_cast<T>(rounding.low));
  const auto high = hn::Set(d, static_cast<T>(rounding.high));
  V sums[kVectors];
  for (std::size_t v = 0; v < kVectors; ++v) sums[v] = hn::LoadU(d, lanes + v * kStep);
  for (std::size_t i = 0; i < count; i += kLanes<T>) {
    for (std::size_t v = 0; v < kVectors; ++v) {
      const auto x = LoadAs(d, values + i + v * kStep);
      const auto clamped = hn::Min(hn::Max(x, low), high);
      const auto level = hn::Mul(hn::Round(hn::Mul(clamped, inverse)), step);
      const auto error = hn::Sub(level, x);
      auto square = hn::Mul(error, error);
      if constexpr (kWeighted) square = hn::Mul(square, hn::LoadU(d, weights + i + v * kStep));
      sums[v] = hn::Add(sums[v], square);
    }
  }
  for (std::size_t v = 0; v < kVectors; ++v) hn::StoreU(sums[v], d, lanes + v * kStep);
}

void AddExact(const float* values, const double* weights, std::size_t count,
              const Rounding& rounding, double* lanes) {
  if (weights == nullptr) {
    AddErrors<double, false>(values, weights, count, rounding, lanes);
  } else {
    AddErrors<double, true>(values, weights, count, rounding, lanes);
  }
}

void AddQuick(const float* values, const float* weights, std::size_t count,
              const Rounding& rounding, float* lanes) {
  if (weights == nullptr) {
    AddErrors<float, false>(values, weights, count, rounding, lanes);
  } else {
    AddErrors<float, true>(values, weights, count, rounding, lanes);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace amct::kernels
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace amct::kernels {
namespace {

HWY_EXPORT(AddExact);
HWY_EXPORT(AddQuick);

void add_vectors(const float* values, const double* weights, std::size_t count,
                 const Rounding& rounding, double* lanes) {
  HWY_DYNAMIC_DISPATCH(AddExact)(values, weights, count, rounding, lanes);
}

void add_vectors(const float* values, const float* weights, std::size_t count,
                 const Rounding& rounding, float* lanes) {
  HWY_DYNAMIC_DISPATCH(AddQuick)(values, weights, count, rounding, lanes);
}

template <typename T>
void add_scalar(const float* values, const T* weights, std::size_t count, const Rounding& rounding,
                T* lanes) {
  const auto scale = static_cast<T>(rounding.scale);
  const T inverse = T{1} / scale;
  for (std::size_t i = 0; i < count; ++i) {
    const T clamped = std::min(std::max(values[i], rounding.low), rounding.high);
    const T error = std::nearbyint(clamped * inverse) * scale - static_cast<T>(values[i]);
    const T square = error * error;
    lanes[i % kLanes<T>] += weights == nullptr ? square : square * weights[i];
  }
}

/// Sums blocks, with vectors or without; the lanes of a block are added up in a fixed order, in
/// float64.
template <bool kVectors, typename T>
double sum_errors(const float* values, const T* weights, std::size_t count,
                  const Rounding& rounding) {
  double total = 0;
  for (std::size_t begin = 0; begin < count; begin += kBlock) {
    const std::size_t size = std::min(kBlock, count - begin);
    const std::size_t whole = kVectors ? size / kLanes<T> * kLanes<T> : 0;
    const T* block_weights = weights == nullptr ? nullptr : weights + begin;
    std::array<T, kLanes<T>> lanes{};
    if (whole > 0) add_vectors(values + begin, block_weights, whole, rounding, lanes.data());
    add_scalar(values + begin + whole, block_weights == nullptr ? nullptr : block_weights + whole,
               size - whole, rounding, lanes.data());
    std::array<double, 4> sums{};  // short chains of additions
    for (std::size_t lane = 0; lane < lanes.size(); ++lane)
      sums[lane % 4] += static_cast<double>(lanes[lane]);
    total += (sums[0] + sums[1]) + (sums[2] + sums[3]);
  }
  return total;
}

}  // namespace

double rounding_error(const float* values, const double* weights, std::size_t count,
                      const Rounding& rounding) {
  return sum_errors<true>(values, weights, count, rounding);
}

double rounding_error_scalar(const float* values, const double* weights, std::size_t count,
                             const Rounding& rounding) {
  return sum_errors<false>(values, weights, count, rounding);
}

double quick_rounding_error(const float* values, const float* weights, std::size_t count,
                            const Rounding& rounding) {
  return sum_errors<true>(values, weights, count, rounding);
}

double quick_rounding_error_scalar(const float* values, const float* weights, std::size_t count,
                                   const Rounding& rounding) {
  return sum_errors<false>(values, weights, count, rounding);
}

double quick_error_bound(double result, double total_weight, const Rounding& rounding) {
  // With u = 2^-24 and levels |k| <= 256: the level k * scale is off by 256 u scale, the quotient
  // by 3 * 256 u, which matters only next to a tie, where it costs twice as much of a step. So an
  // error e of the true sum E = sum w e^2 is off by delta = 2048 u scale at most (and by u e, far
  // below what is allowed for the sums), and the sum by 2 delta sum w |e| + delta^2 sum w <= 2
  // delta sqrt(W E) + W delta^2.
  constexpr double kUnit = 0x1p-24;
  const double delta = 2048 * kUnit * static_cast<double>(rounding.scale);
  const double deviation =
      2 * delta * std::sqrt(total_weight * result) + 5 * total_weight * delta * delta;
  // Additions: a lane takes kBlock / kLanes of them; weights and squares round too.
  constexpr double kSums = (static_cast<double>(kBlock) / kLanes<float> + 8) * kUnit;
  return 1.25 * deviation + kSums * result;
}

}  // namespace amct::kernels
#endif  // HWY_ONCE
