#include "kernels/collect.h"

#include <utility>

#include "kernels/targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/collect.cc"
#include <hwy/foreach_target.h>  // IWYU pragma: keep
#include <hwy/highway.h>

HWY_BEFORE_NAMESPACE();
namespace amct::kernels {
namespace HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

/// float32 values of 16-bit patterns, one a 32-bit lane.
template <bool kBFloat16, class D, class V = hn::Vec<D>>
HWY_INLINE hn::Vec<hn::RebindToFloat<D>> ToFloat(D du, V patterns) {
  const hn::RebindToFloat<D> df;
  if constexpr (kBFloat16) {
    return hn::BitCast(df, hn::ShiftLeft<16>(patterns));
  } else {
    const hn::RebindToSigned<D> di;
    const auto sign = hn::ShiftLeft<16>(hn::And(patterns, hn::Set(du, 0x8000)));
    const auto magnitude = hn::And(patterns, hn::Set(du, 0x7FFF));
    // 112 more in the exponent; subnormals are multiples of 2^-24.
    const auto normal =
        hn::BitCast(df, hn::Add(hn::ShiftLeft<13>(magnitude), hn::Set(du, 112U << 23)));
    const auto subnormal =
        hn::Mul(hn::ConvertTo(df, hn::BitCast(di, magnitude)), hn::Set(df, 0x1p-24F));
    const auto is_subnormal = hn::Lt(hn::BitCast(di, magnitude), hn::Set(di, 0x400));
    const auto value = hn::IfThenElse(hn::RebindMask(df, is_subnormal), subnormal, normal);
    return hn::Or(value, hn::BitCast(df, sign));
  }
}

template <bool kBFloat16>
HWY_INLINE std::size_t Collect(std::size_t page, std::uint16_t* HWY_RESTRICT table,
                               float* HWY_RESTRICT values, std::uint32_t* HWY_RESTRICT counts) {
  const hn::CappedTag<std::uint32_t, 16> du;
  const hn::Rebind<std::uint16_t, decltype(du)> du16;
  const hn::RebindToFloat<decltype(du)> df;
  const std::size_t lanes = hn::Lanes(du);
  const auto zero = hn::Zero(du);
  const auto numbers = hn::Iota(du, 0);  // made by way of memory, so not in the loop
  const auto exponent = hn::Set(du, exponent_mask(kBFloat16 ? DType::kBFloat16 : DType::kFloat16));
  const bool negative = page >= 128;
  std::size_t written = 0;
  for (std::size_t i = 0; i < kPageSize; i += lanes) {
    // Negative values ascend as their patterns descend.
    const std::size_t first = page * kPageSize + (negative ? kPageSize - lanes - i : i);
    auto count = hn::PromoteTo(du, hn::LoadU(du16, table + first));
    if (hn::AllTrue(du, hn::Eq(count, zero))) continue;
    hn::StoreU(hn::Zero(du16), du16, table + first);
    auto patterns = hn::Add(numbers, hn::Set(du, static_cast<std::uint32_t>(first)));
    if (negative) {
      count = hn::Reverse(du, count);
      patterns = hn::Reverse(du, patterns);
    }
    const auto keep = hn::And(hn::Ne(count, zero), hn::Ne(hn::And(patterns, exponent), exponent));
    // To registers first: compressing into memory takes many times longer on some machines.
    const auto value = ToFloat<kBFloat16>(du, patterns);
    hn::StoreU(hn::Compress(value, hn::RebindMask(df, keep)), df, values + written);
    hn::StoreU(hn::Compress(count, keep), du, counts + written);
    written += hn::CountTrue(du, keep);
  }
  return written;
}

std::size_t CollectBFloat16(std::size_t page, std::uint16_t* table, float* values,
                            std::uint32_t* counts) {
  return Collect<true>(page, table, values, counts);
}

std::size_t CollectFloat16(std::size_t page, std::uint16_t* table, float* values,
                           std::uint32_t* counts) {
  return Collect<false>(page, table, values, counts);
}

/// Handles a multiple of the vector size; returns how many.
std::size_t WidenFloat16(const std::uint16_t* HWY_RESTRICT patterns, std::size_t count,
                         float* HWY_RESTRICT values) {
  const hn::CappedTag<std::uint32_t, 16> du;
  const hn::Rebind<std::uint16_t, decltype(du)> du16;
  const hn::RebindToFloat<decltype(du)> df;
  const std::size_t lanes = hn::Lanes(du);
  const auto exponent = hn::Set(du, 0x7C00);
  const auto more = hn::Set(du, 112U << 23);
  std::size_t i = 0;
  for (; i + lanes <= count; i += lanes) {
    const auto pattern = hn::PromoteTo(du, hn::LoadU(du16, patterns + i));
    // Infinity and NaN get the largest exponent instead of the next one to that of finite values.
    const auto special = hn::Eq(hn::And(pattern, exponent), exponent);
    const auto bits = hn::BitCast(du, ToFloat<false>(du, pattern));
    const auto value = hn::Add(bits, hn::IfThenElseZero(special, more));
    hn::StoreU(hn::BitCast(df, value), df, values + i);
  }
  return i;
}

}  // namespace HWY_NAMESPACE
}  // namespace amct::kernels
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace amct::kernels {
namespace {

HWY_EXPORT(CollectBFloat16);
HWY_EXPORT(CollectFloat16);
HWY_EXPORT(WidenFloat16);

}  // namespace

std::size_t collect_page(DType dtype, std::size_t page, std::uint16_t* table, float* values,
                         std::uint32_t* counts) {
  if (dtype == DType::kBFloat16)
    return HWY_DYNAMIC_DISPATCH(CollectBFloat16)(page, table, values, counts);
  return HWY_DYNAMIC_DISPATCH(CollectFloat16)(page, table, values, counts);
}

std::size_t collect_page_scalar(DType dtype, std::size_t page, std::uint16_t* table, float* values,
                                std::uint32_t* counts) {
  const std::uint16_t exponent = exponent_mask(dtype);
  std::size_t written = 0;
  for (std::size_t i = 0; i < kPageSize; ++i) {
    const std::size_t pattern = page * kPageSize + (page >= 128 ? kPageSize - 1 - i : i);
    const std::uint16_t count = std::exchange(table[pattern], std::uint16_t{0});
    if (count == 0 || (pattern & exponent) == exponent) continue;
    values[written] = half_to_float(dtype, static_cast<std::uint16_t>(pattern));
    counts[written] = count;
    ++written;
  }
  return written;
}

void widen_float16_scalar(const std::uint16_t* patterns, std::size_t count, float* values) {
  for (std::size_t i = 0; i < count; ++i) values[i] = float16_to_float(patterns[i]);
}

void widen_float16(const std::uint16_t* patterns, std::size_t count, float* values) {
  const std::size_t done = HWY_DYNAMIC_DISPATCH(WidenFloat16)(patterns, count, values);
  widen_float16_scalar(patterns + done, count - done, values + done);
}

}  // namespace amct::kernels
#endif  // HWY_ONCE
