#include <cstring>

#include "kernels/codes.h"
#include "kernels/targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/dequantize_rows.cc"
#include <hwy/foreach_target.h>  // IWYU pragma: keep
#include <hwy/highway.h>

#include "kernels/code_rows-inl.h"

HWY_BEFORE_NAMESPACE();
namespace amct::kernels {
namespace HWY_NAMESPACE {

#if HWY_TARGET != HWY_SCALAR

/// The bits of a bfloat16 in the upper half of each lane, rounded. NaN comes from
/// FloatFormat::decode alone, whose pattern this keeps a NaN.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V RoundBFloat16(D df, V x) {
  const hn::RebindToUnsigned<D> du;
  const auto bits = hn::BitCast(du, x);
  const auto odd = hn::And(hn::ShiftRight<16>(bits), hn::Set(du, 1));
  return hn::BitCast(df, hn::Add(hn::Add(bits, hn::Set(du, 0x7FFF)), odd));
}

/// The patterns of float16.
template <class D, class V = hn::Vec<D>>
HWY_INLINE hn::Vec<hn::Rebind<std::uint16_t, D>> ToFloat16(D df, V x) {
  const hn::Rebind<std::uint16_t, D> du16;
#if AMCT_CONVERTS_FLOAT16
  return hn::BitCast(du16, hn::DemoteTo(hn::Rebind<hwy::float16_t, D>(), x));
#else
  // As float_to_float16.
  const hn::RebindToUnsigned<D> du;
  const hn::RebindToSigned<D> di;
  const auto bits = hn::BitCast(du, x);
  const auto sign = hn::And(hn::ShiftRight<16>(bits), hn::Set(du, 0x8000));
  const auto magnitude = hn::And(bits, hn::Set(du, 0x7FFFFFFF));
  const auto odd = hn::And(hn::ShiftRight<13>(magnitude), hn::Set(du, 1));
  const auto normal = hn::ShiftRight<13>(
      hn::Sub(hn::Add(hn::Add(magnitude, hn::Set(du, 0xFFF)), odd), hn::Set(du, 0x38000000)));
  const auto saturated =
      hn::BitCast(du, hn::Min(hn::BitCast(di, normal), hn::Set(di, std::int32_t{0x7C00})));
  const auto shifted = hn::Add(hn::BitCast(df, magnitude), hn::Set(df, 0.5F));
  const auto subnormal = hn::Sub(hn::BitCast(du, shifted), hn::Set(du, 0x3F000000));
  const auto signed_magnitude = hn::BitCast(di, magnitude);
  const auto is_subnormal = hn::Lt(signed_magnitude, hn::Set(di, std::int32_t{0x38800000}));
  const auto is_nan = hn::Gt(signed_magnitude, hn::Set(di, std::int32_t{0x7F800000}));
  auto half = hn::IfThenElse(hn::RebindMask(du, is_subnormal), subnormal, saturated);
  half = hn::IfThenElse(hn::RebindMask(du, is_nan), hn::Set(du, 0x7E00), half);
  return hn::DemoteTo(du16, hn::BitCast(di, hn::Or(half, sign)));
#endif
}

/// Two vectors of float32, one after the other, rounded to the type.
template <DType kType, class D, class V = hn::Vec<D>>
HWY_INLINE void StoreValues(D df, V low, V high, std::byte* HWY_RESTRICT to) {
  constexpr std::size_t kLanes = hn::MaxLanes(D());
  if constexpr (kType == DType::kFloat32) {
    hn::StoreU(low, df, reinterpret_cast<float*>(to));
    hn::StoreU(high, df, reinterpret_cast<float*>(to) + kLanes);
  } else {
    auto* halves = reinterpret_cast<std::uint16_t*>(to);
    if constexpr (kType == DType::kBFloat16) {
      const hn::Repartition<std::uint16_t, D> du16;
      hn::StoreU(hn::ConcatOdd(du16, hn::BitCast(du16, RoundBFloat16(df, high)),
                               hn::BitCast(du16, RoundBFloat16(df, low))),
                 du16, halves);
    } else {
      const hn::Rebind<std::uint16_t, D> du16;
      hn::StoreU(ToFloat16(df, low), du16, halves);
      hn::StoreU(ToFloat16(df, high), du16, halves + kLanes);
    }
  }
}

/// The values of a vector of integer codes.
template <bool kPerChannel, class D, class VI>
HWY_INLINE hn::Vec<D> Decode(D df, const Factors& factors, std::size_t channel, VI codes) {
  const auto scale = LoadFactors<kPerChannel>(df, factors.scales, channel);
  const auto offset = LoadFactors<kPerChannel>(df, factors.offsets, channel);
  return hn::Mul(hn::Sub(hn::ConvertTo(df, codes), offset), scale);
}

template <Kind kKind, DType kType, bool kPerChannel>
HWY_INLINE void DecodeIntegers(const Factors& factors, std::size_t channel,
                               const std::uint8_t* HWY_RESTRICT codes,
                               std::byte* HWY_RESTRICT values) {
  const hn::ScalableTag<float> df;
  const hn::RebindToSigned<decltype(df)> di;
  const hn::Rebind<std::uint8_t, decltype(df)> du8;
  const hn::Rebind<std::int8_t, decltype(df)> di8;
  constexpr std::size_t kHalf = kStep<kKind> / 2;
  auto low = hn::Zero(di);
  auto high = hn::Zero(di);
  if constexpr (kKind == Kind::kInt8) {
    const auto* bytes = reinterpret_cast<const std::int8_t*>(codes);
    low = hn::PromoteTo(di, hn::LoadU(di8, bytes));
    high = hn::PromoteTo(di, hn::LoadU(di8, bytes + kHalf));
  } else {
    const hn::Rebind<std::uint16_t, decltype(df)> du16;
    const hn::Repartition<std::int8_t, decltype(du16)> both8;
    // Each byte becomes two, one with its low nibble and one with its high, and 8 of them -8.
    const auto pairs = hn::PromoteTo(du16, hn::LoadU(du8, codes));
    const auto nibbles = hn::And(hn::Or(pairs, hn::ShiftLeft<4>(pairs)), hn::Set(du16, 0x0F0F));
    const auto sign = hn::Set(both8, std::int8_t{8});
    const auto bytes = hn::Sub(hn::Xor(hn::BitCast(both8, nibbles), sign), sign);
    low = hn::PromoteTo(di, hn::LowerHalf(di8, bytes));
    high = hn::PromoteTo(di, hn::UpperHalf(di8, bytes));
  }
  StoreValues<kType>(df, Decode<kPerChannel>(df, factors, channel, low),
                     Decode<kPerChannel>(df, factors, channel + kHalf, high), values);
}

/// Codes so that what is interleaved twice, within blocks of 16 bytes, has them in order.
template <class D8, class V8 = hn::Vec<D8>>
HWY_INLINE V8 InOrderOfBlocks(D8 d8, V8 codes) {
  const hn::Repartition<std::int32_t, D8> di;
  constexpr std::size_t kLanes = hn::MaxLanes(hn::Repartition<std::int32_t, D8>());
  constexpr std::size_t kBlocks = kLanes / 4;
  if constexpr (kBlocks == 1) {
    return codes;
  } else {
    alignas(64) std::int32_t order[kLanes];
    for (std::size_t i = 0; i < kLanes; ++i)
      order[i] = static_cast<std::int32_t>(i % 4 * kBlocks + i / 4);
    return hn::BitCast(
        d8, hn::TableLookupLanes(hn::BitCast(di, codes), hn::SetTableIndices(di, order)));
  }
}

template <DType kType, bool kPerChannel>
HWY_INLINE void DecodeFloats(const CodeFormat& format, const Factors& factors, std::size_t channel,
                             const std::uint8_t* HWY_RESTRICT codes,
                             std::byte* HWY_RESTRICT values) {
  const hn::ScalableTag<float> df;
  const hn::Repartition<std::uint8_t, decltype(df)> d8;
  const hn::Repartition<std::uint16_t, decltype(df)> d16;
  constexpr std::size_t kQuarter = kStep<Kind::kFloat> / 4;
  const auto code = InOrderOfBlocks(d8, hn::LoadU(d8, codes));
  const auto sign = hn::Set(d8, 0x80);
  const auto is_negative_zero = hn::Eq(code, sign);
  const auto low = hn::IfThenElse(
      is_negative_zero, hn::Set(d8, static_cast<std::uint8_t>(format.negative_zero & 0xFF)),
      LookUp<8>(d8, format.patterns, code));
  const auto high = hn::IfThenElse(
      is_negative_zero, hn::Set(d8, static_cast<std::uint8_t>(format.negative_zero >> 8)),
      hn::Or(LookUp<8>(d8, format.patterns + 128, code), hn::And(code, sign)));
  const auto value = [&](auto patterns, std::size_t quarter) HWY_ATTR {
    return hn::Mul(hn::BitCast(df, patterns),
                   LoadFactors<kPerChannel>(df, factors.scales, channel + quarter * kQuarter));
  };
  const auto zero = hn::Zero(d16);
  const auto first = hn::BitCast(d16, hn::InterleaveLower(d8, low, high));
  StoreValues<kType>(df, value(hn::InterleaveLower(d16, zero, first), 0),
                     value(hn::InterleaveUpper(d16, zero, first), 1), values);
  const auto second = hn::BitCast(d16, hn::InterleaveUpper(d8, low, high));
  StoreValues<kType>(df, value(hn::InterleaveLower(d16, zero, second), 2),
                     value(hn::InterleaveUpper(d16, zero, second), 3),
                     values + 2 * kQuarter * size_of(kType));
}

template <Kind kKind, DType kType, bool kPerChannel>
HWY_INLINE void DecodeStep(const CodeFormat& format, const Factors& factors, std::size_t channel,
                           const std::uint8_t* codes, std::byte* values) {
  if constexpr (kKind == Kind::kFloat) {
    DecodeFloats<kType, kPerChannel>(format, factors, channel, codes, values);
  } else {
    DecodeIntegers<kKind, kType, kPerChannel>(factors, channel, codes, values);
  }
}

template <Kind kKind, DType kType, bool kPerChannel>
HWY_INLINE void DecodeRest(const CodeFormat& format, const Factors& factors, std::size_t channel,
                           std::size_t rest, const std::uint8_t* codes, std::byte* values) {
  alignas(64) std::uint8_t coded[kStep<kKind>] = {};
  alignas(64) std::byte whole[kStep<kKind> * size_of(kType)];
  std::memcpy(coded, codes, code_bytes(kKind, rest));
  DecodeStep<kKind, kType, kPerChannel>(format, factors, channel, coded, whole);
  std::memcpy(values, whole, rest * size_of(kType));
}

template <Kind kKind, DType kType, bool kPerChannel>
void DecodeRows(const CodeFormat& format, const Factors& factors, const Rows& rows,
                const std::uint8_t* codes, std::byte* values) {
  for (std::size_t row = 0; row < rows.count; ++row) {
    OverRow<kKind>(
        rows.width,
        [&](std::size_t c) HWY_ATTR {
          DecodeStep<kKind, kType, kPerChannel>(format, factors, c, codes + code_bytes(kKind, c),
                                                values + c * size_of(kType));
        },
        [&](std::size_t c, std::size_t rest) HWY_ATTR {
          DecodeRest<kKind, kType, kPerChannel>(
              format, factors, c, rest, codes + code_bytes(kKind, c), values + c * size_of(kType));
        });
    values += rows.value_stride;
    codes += rows.code_stride;
  }
}

template <Kind kKind>
void DecodeKind(const CodeFormat& format, const RowFactors& factors, const Rows& rows, DType dtype,
                const std::uint8_t* codes, std::byte* values) {
  WithTypes(dtype, factors.per_channel, [&](auto type, auto per_channel) {
    DecodeRows<kKind, type(), per_channel()>(format, Factors(factors), rows, codes, values);
  });
}

void Dequantize(const CodeFormat& format, const RowFactors& factors, const Rows& rows, DType dtype,
                const std::uint8_t* codes, std::byte* values) {
  switch (format.kind) {
    case Kind::kInt8:
      DecodeKind<Kind::kInt8>(format, factors, rows, dtype, codes, values);
      break;
    case Kind::kInt4:
      DecodeKind<Kind::kInt4>(format, factors, rows, dtype, codes, values);
      break;
    case Kind::kFp8:
    case Kind::kFloat:  // the tables are of the same form
      DecodeKind<Kind::kFloat>(format, factors, rows, dtype, codes, values);
      break;
  }
}

#else  // which has no pairs of lanes

void Dequantize(const CodeFormat& format, const RowFactors& factors, const Rows& rows, DType dtype,
                const std::uint8_t* codes, std::byte* values) {
  dequantize_rows_scalar(format, factors, rows, dtype, codes, values);
}

#endif

}  // namespace HWY_NAMESPACE
}  // namespace amct::kernels
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace amct::kernels {
namespace {

HWY_EXPORT(Dequantize);

using Kind = CodeFormat::Kind;

void store(DType dtype, float value, std::byte* to) {
  if (dtype == DType::kFloat32) {
    std::memcpy(to, &value, sizeof value);
    return;
  }
  const std::uint16_t half = float_to_half(dtype, value);
  std::memcpy(to, &half, sizeof half);
}

float decode(const CodeFormat& format, float scale, float offset, std::uint8_t code) {
  if (is_float(format.kind)) return format.format->decode(code) * scale;
  return (static_cast<float>(static_cast<std::int8_t>(code)) - offset) * scale;
}

}  // namespace

void dequantize_rows(const CodeFormat& format, const RowFactors& factors, const Rows& rows,
                     DType dtype, const std::uint8_t* codes, std::byte* values) {
  HWY_DYNAMIC_DISPATCH(Dequantize)(format, factors, rows, dtype, codes, values);
}

void dequantize_rows_scalar(const CodeFormat& format, const RowFactors& factors, const Rows& rows,
                            DType dtype, const std::uint8_t* codes, std::byte* values) {
  for (std::size_t row = 0; row < rows.count; ++row) {
    for (std::size_t c = 0; c < rows.width; ++c) {
      const std::size_t i = factors.first + (factors.per_channel ? c : 0);
      std::uint8_t code = codes[format.kind == Kind::kInt4 ? c / 2 : c];
      if (format.kind == Kind::kInt4) {
        const int nibble = c % 2 == 0 ? code & 0xF : code >> 4;
        code = static_cast<std::uint8_t>(nibble < 8 ? nibble : nibble - 16);
      }
      store(dtype, decode(format, factors.table->scales()[i], factors.table->offsets()[i], code),
            values + c * size_of(dtype));
    }
    values += rows.value_stride;
    codes += rows.code_stride;
  }
}

}  // namespace amct::kernels
#endif  // HWY_ONCE
