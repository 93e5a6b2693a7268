// What the kernels that make codes and those that read them share, once for each instruction set.

#include <bit>
#include <cstring>
#include <type_traits>

#include "kernels/codes.h"

#if defined(AMCT_KERNELS_CODE_ROWS_INL_H) == defined(HWY_TARGET_TOGGLE)
#ifdef AMCT_KERNELS_CODE_ROWS_INL_H
#undef AMCT_KERNELS_CODE_ROWS_INL_H
#else
#define AMCT_KERNELS_CODE_ROWS_INL_H
#endif

#include <hwy/highway.h>

// Below AVX2, Highway's conversions of float16 neither round nor know infinity.
#undef AMCT_CONVERTS_FLOAT16
#if HWY_ARCH_X86 && HWY_TARGET >= HWY_SSE4
#define AMCT_CONVERTS_FLOAT16 0
#else
#define AMCT_CONVERTS_FLOAT16 1
#endif

HWY_BEFORE_NAMESPACE();
namespace amct::kernels {
namespace HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;
using Kind = CodeFormat::Kind;

/// Factors from a channel on.
template <bool kPerChannel, class D, typename T>
HWY_INLINE hn::Vec<D> LoadFactors(D d, const T* HWY_RESTRICT factors, std::size_t channel) {
  return kPerChannel ? hn::LoadU(d, factors + channel) : hn::Set(d, *factors);
}

/// The factors of a row, of which `channel` is the first to be loaded.
struct Factors {
  explicit Factors(const RowFactors& of)
      : scales(of.table->scales() + of.first),
        offsets(of.table->offsets() + of.first),
        inverses(of.table->inverses() + of.first),
        biases(of.table->biases() + of.first),
        sure_distance(of.table->sure_distance()),
        sure_margin(of.table->sure_margin()) {}

  const float* scales;
  const float* offsets;
  const float* inverses;
  const std::int32_t* biases;
  float sure_distance;
  std::int32_t sure_margin;
};

/// What each index, its top bit aside, chooses of a table of so many blocks of 16 bytes.
template <std::size_t kBlocks, class D8, class V8 = hn::Vec<D8>>
HWY_INLINE V8 LookUp(D8 d8, const std::uint8_t* HWY_RESTRICT table, V8 indices) {
  if constexpr (kBlocks == 1) {
    return hn::TableLookupBytes(hn::LoadDup128(d8, table),
                                hn::And(indices, hn::Set(d8, std::uint8_t{0x0F})));
  } else {
    constexpr std::size_t kLower = std::bit_floor(kBlocks - 1);
    const auto is_upper = hn::TestBit(indices, hn::Set(d8, static_cast<std::uint8_t>(16 * kLower)));
    return hn::IfThenElse(is_upper, LookUp<kBlocks - kLower>(d8, table + 16 * kLower, indices),
                          LookUp<kLower>(d8, table, indices));
  }
}

/// Values that are handled at once: two vectors, or four whose codes are a whole one.
template <Kind kKind>
// clang-tidy takes what the compiler converts here for a cast.
// NOLINTNEXTLINE(modernize-avoid-c-style-cast)
constexpr std::size_t kStep = hn::MaxLanes(hn::ScalableTag<float>()) * (is_float(kKind) ? 4 : 2);

/// Calls step(channel) for each whole step of a row, and rest(channel, count) for what is left of
/// it. Where the row is long enough, that is the step that ends with it: what was done is done
/// again.
template <Kind kKind, class OnStep, class OnRest>
HWY_INLINE void OverRow(std::size_t width, OnStep step, OnRest rest) {
  constexpr std::size_t kWhole = kStep<kKind>;
  std::size_t channel = 0;
  for (; channel + kWhole <= width; channel += kWhole) step(channel);
  if (channel == width) return;
  if (width >= kWhole && (kKind != Kind::kInt4 || width % 2 == 0)) {
    step(width - kWhole);
  } else {
    rest(channel, width - channel);
  }
}

/// Calls `run` with the constants of a format, a type and a granularity.
template <class Run>
void WithTypes(DType dtype, bool per_channel, Run run) {
  const auto with_granularity = [&](auto type) {
    if (per_channel) {
      run(type, std::true_type());
    } else {
      run(type, std::false_type());
    }
  };
  switch (dtype) {
    case DType::kFloat32:
      with_granularity(std::integral_constant<DType, DType::kFloat32>());
      break;
    case DType::kFloat16:
      with_granularity(std::integral_constant<DType, DType::kFloat16>());
      break;
    case DType::kBFloat16:
      with_granularity(std::integral_constant<DType, DType::kBFloat16>());
      break;
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace amct::kernels
HWY_AFTER_NAMESPACE();

#endif  // AMCT_KERNELS_CODE_ROWS_INL_H
