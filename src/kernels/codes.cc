#include "kernels/codes.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <type_traits>

#include "kernels/targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/codes.cc"
#include <hwy/foreach_target.h>  // IWYU pragma: keep
#include <hwy/highway.h>

HWY_BEFORE_NAMESPACE();
namespace amct::kernels {
namespace HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;
using Kind = CodeFormat::Kind;

#if HWY_TARGET != HWY_SCALAR

// Below AVX2, Highway's conversions of float16 neither round nor know infinity.
#if HWY_ARCH_X86 && HWY_TARGET >= HWY_SSE4
#define AMCT_CONVERTS_FLOAT16 0
#else
#define AMCT_CONVERTS_FLOAT16 1
#endif

/// A vector of values, widened to float32.
template <DType kType, class D>
HWY_INLINE hn::Vec<D> LoadValues(D df, const std::byte* HWY_RESTRICT from) {
  const hn::RebindToUnsigned<D> du;
  const hn::Rebind<std::uint16_t, D> du16;
  if constexpr (kType == DType::kFloat32) {
    return hn::LoadU(df, reinterpret_cast<const float*>(from));
  } else {
    const auto patterns = hn::LoadU(du16, reinterpret_cast<const std::uint16_t*>(from));
    if constexpr (kType == DType::kBFloat16) {
      return hn::BitCast(df, hn::ShiftLeft<16>(hn::PromoteTo(du, patterns)));
    } else {
#if AMCT_CONVERTS_FLOAT16
      return hn::PromoteTo(df, hn::BitCast(hn::Rebind<hwy::float16_t, D>(), patterns));
#else
      const hn::RebindToSigned<D> di;
      const auto wide = hn::PromoteTo(du, patterns);
      const auto sign = hn::ShiftLeft<16>(hn::And(wide, hn::Set(du, 0x8000)));
      const auto magnitude = hn::And(wide, hn::Set(du, 0x7FFF));
      // 112 more in the exponent, and as many again for infinity and NaN; subnormals are multiples
      // of 2^-24.
      const auto more = hn::Set(du, 112U << 23);
      const auto special = hn::Gt(hn::BitCast(di, magnitude), hn::Set(di, std::int32_t{0x7BFF}));
      const auto normal = hn::Add(hn::Add(hn::ShiftLeft<13>(magnitude), more),
                                  hn::IfThenElseZero(hn::RebindMask(du, special), more));
      const auto subnormal =
          hn::Mul(hn::ConvertTo(df, hn::BitCast(di, magnitude)), hn::Set(df, 0x1p-24F));
      const auto is_subnormal =
          hn::Lt(hn::BitCast(di, magnitude), hn::Set(di, std::int32_t{0x400}));
      const auto value =
          hn::IfThenElse(hn::RebindMask(df, is_subnormal), subnormal, hn::BitCast(df, normal));
      return hn::Or(value, hn::BitCast(df, sign));
#endif
    }
  }
}

/// Stores a vector of float32, rounded to the type.
template <DType kType, class D>
HWY_INLINE void StoreValues(D df, hn::Vec<D> x, std::byte* HWY_RESTRICT to) {
  const hn::RebindToUnsigned<D> du;
  const hn::RebindToSigned<D> di;
  const hn::Rebind<std::uint16_t, D> du16;
  auto* halves = reinterpret_cast<std::uint16_t*>(to);
  if constexpr (kType == DType::kFloat32) {
    hn::StoreU(x, df, reinterpret_cast<float*>(to));
  } else if constexpr (kType == DType::kBFloat16) {
    // NaN comes from FloatFormat::decode alone, whose pattern this keeps a NaN.
    const auto bits = hn::BitCast(du, x);
    const auto odd = hn::And(hn::ShiftRight<16>(bits), hn::Set(du, 1));
    const auto rounded = hn::Add(hn::Add(bits, hn::Set(du, 0x7FFF)), odd);
    hn::StoreU(hn::DemoteTo(du16, hn::BitCast(di, hn::ShiftRight<16>(rounded))), du16, halves);
  } else {
#if AMCT_CONVERTS_FLOAT16
    hn::StoreU(hn::BitCast(du16, hn::DemoteTo(hn::Rebind<hwy::float16_t, D>(), x)), du16, halves);
#else
    // As float_to_float16.
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
    hn::StoreU(hn::DemoteTo(du16, hn::BitCast(di, hn::Or(half, sign))), du16, halves);
#endif
  }
}

/// The factors of the channels from `channel` on.
template <bool kPerChannel, class D>
HWY_INLINE hn::Vec<D> LoadFactors(D df, const float* HWY_RESTRICT factors, std::size_t channel) {
  return kPerChannel ? hn::LoadU(df, factors + channel) : hn::Set(df, *factors);
}

/// Codes of a vector of values, one a 32-bit lane.
template <Kind kKind, DType kType, bool kPerChannel, class D>
HWY_INLINE hn::Vec<hn::RebindToSigned<D>> Encode(D df, const CodeFormat& format,
                                                 const RowFactors& factors, std::size_t channel,
                                                 const std::byte* HWY_RESTRICT values) {
  const hn::RebindToUnsigned<D> du;
  const hn::RebindToSigned<D> di;
  const auto quotient =
      hn::Div(LoadValues<kType>(df, values), LoadFactors<kPerChannel>(df, factors.scales, channel));
  const auto is_number = hn::Eq(quotient, quotient);
  if constexpr (kKind == Kind::kFloat) {
    const auto bits = hn::BitCast(du, quotient);
    const auto magnitude =
        hn::IfThenElseZero(hn::RebindMask(du, is_number), hn::And(bits, hn::Set(du, 0x7FFFFFFF)));
    const auto cell = hn::BitCast(di, hn::ShiftRight<kCellBits>(magnitude));
    const auto codes = hn::GatherIndex(du, format.cells, cell);
    const auto inside = hn::And(magnitude, hn::Set(du, (1U << kCellBits) - 1));
    const auto code =
        hn::And(hn::IfThenElse(hn::Eq(inside, hn::Zero(du)), codes, hn::ShiftRight<8>(codes)),
                hn::Set(du, 0x7F));
    const auto sign = hn::And(hn::ShiftRight<24>(bits), hn::Set(du, 0x80));
    // Zero has no sign.
    return hn::BitCast(di, hn::Or(code, hn::IfThenElseZero(hn::Ne(code, hn::Zero(du)), sign)));
  } else {
    const auto rounded = hn::IfThenElseZero(is_number, hn::Round(quotient));
    const auto shifted = hn::Add(rounded, LoadFactors<kPerChannel>(df, factors.offsets, channel));
    const auto clamped =
        hn::Min(hn::Max(shifted, hn::Set(df, format.qmin)), hn::Set(df, format.qmax));
    return hn::NearestInt(clamped);
  }
}

/// Values that are handled at once.
template <Kind kKind>
constexpr std::size_t Step() {
  return hn::MaxLanes(hn::ScalableTag<float>()) * (kKind == Kind::kInt4 ? 2 : 1);
}

template <Kind kKind, DType kType, bool kPerChannel>
HWY_INLINE void EncodeStep(const CodeFormat& format, const RowFactors& factors, std::size_t channel,
                           const std::byte* HWY_RESTRICT values, std::uint8_t* HWY_RESTRICT codes) {
  const hn::ScalableTag<float> df;
  const hn::RebindToSigned<decltype(df)> di;
  const hn::Rebind<std::int8_t, decltype(df)> di8;
  const hn::Rebind<std::uint8_t, decltype(df)> du8;
  constexpr std::size_t kLanes = hn::MaxLanes(decltype(df)());
  const auto first = Encode<kKind, kType, kPerChannel>(df, format, factors, channel, values);
  if constexpr (kKind == Kind::kInt8) {
    hn::StoreU(hn::DemoteTo(di8, first), di8, reinterpret_cast<std::int8_t*>(codes));
  } else if constexpr (kKind == Kind::kFloat) {
    hn::StoreU(hn::DemoteTo(du8, first), du8, codes);
  } else {
    const auto second = Encode<kKind, kType, kPerChannel>(df, format, factors, channel + kLanes,
                                                          values + kLanes * size_of(kType));
    const auto nibble = hn::Set(di, std::int32_t{0xF});
    const auto low = hn::And(hn::ConcatEven(di, second, first), nibble);
    const auto high = hn::And(hn::ConcatOdd(di, second, first), nibble);
    hn::StoreU(hn::DemoteTo(du8, hn::Or(low, hn::ShiftLeft<4>(high))), du8, codes);
  }
}

/// Values of a vector of codes.
template <Kind kKind, DType kType, bool kPerChannel, class D, class VI>
HWY_INLINE void Decode(D df, const CodeFormat& format, const RowFactors& factors,
                       std::size_t channel, VI codes, std::byte* HWY_RESTRICT values) {
  const auto scale = LoadFactors<kPerChannel>(df, factors.scales, channel);
  if constexpr (kKind == Kind::kFloat) {
    StoreValues<kType>(df, hn::Mul(hn::GatherIndex(df, format.decoded, codes), scale), values);
  } else {
    const auto offset = LoadFactors<kPerChannel>(df, factors.offsets, channel);
    StoreValues<kType>(df, hn::Mul(hn::Sub(hn::ConvertTo(df, codes), offset), scale), values);
  }
}

template <Kind kKind, DType kType, bool kPerChannel>
HWY_INLINE void DecodeStep(const CodeFormat& format, const RowFactors& factors, std::size_t channel,
                           const std::uint8_t* HWY_RESTRICT codes, std::byte* HWY_RESTRICT values) {
  const hn::ScalableTag<float> df;
  const hn::RebindToSigned<decltype(df)> di;
  const hn::Rebind<std::uint8_t, decltype(df)> du8;
  const hn::Rebind<std::int8_t, decltype(df)> di8;
  if constexpr (kKind == Kind::kInt8) {
    const auto bytes = hn::LoadU(di8, reinterpret_cast<const std::int8_t*>(codes));
    Decode<kKind, kType, kPerChannel>(df, format, factors, channel, hn::PromoteTo(di, bytes),
                                      values);
  } else if constexpr (kKind == Kind::kFloat) {
    const auto bytes = hn::LoadU(du8, codes);
    Decode<kKind, kType, kPerChannel>(df, format, factors, channel, hn::PromoteTo(di, bytes),
                                      values);
  } else {
    constexpr std::size_t kLanes = hn::MaxLanes(decltype(df)());
    const hn::Rebind<std::uint16_t, decltype(df)> du16;
    const hn::Repartition<std::int8_t, decltype(du16)> both8;
    // Each byte becomes two, one with its low nibble and one with its high, and 8 of them -8.
    const auto pairs = hn::PromoteTo(du16, hn::LoadU(du8, codes));
    const auto nibbles = hn::And(hn::Or(pairs, hn::ShiftLeft<4>(pairs)), hn::Set(du16, 0x0F0F));
    const auto sign = hn::Set(both8, std::int8_t{8});
    const auto bytes = hn::Sub(hn::Xor(hn::BitCast(both8, nibbles), sign), sign);
    Decode<kKind, kType, kPerChannel>(df, format, factors, channel,
                                      hn::PromoteTo(di, hn::LowerHalf(di8, bytes)), values);
    Decode<kKind, kType, kPerChannel>(df, format, factors, channel + kLanes,
                                      hn::PromoteTo(di, hn::UpperHalf(di8, bytes)),
                                      values + kLanes * size_of(kType));
  }
}

/// The end of a row goes through memory of its own, filled up with zeros.
template <Kind kKind, DType kType, bool kPerChannel>
HWY_INLINE void EncodeRest(const CodeFormat& format, const RowFactors& factors, std::size_t channel,
                           std::size_t rest, const std::byte* values, std::uint8_t* codes) {
  alignas(64) std::byte whole[Step<kKind>() * size_of(kType)] = {};
  alignas(64) std::uint8_t coded[Step<kKind>()];
  std::memcpy(whole, values, rest * size_of(kType));
  EncodeStep<kKind, kType, kPerChannel>(format, factors, channel, whole, coded);
  const std::size_t bytes = code_bytes(kKind, rest);
  if (kKind == Kind::kInt4 && rest % 2 != 0) coded[bytes - 1] &= 0xF;
  std::memcpy(codes, coded, bytes);
}

template <Kind kKind, DType kType, bool kPerChannel>
HWY_INLINE void DecodeRest(const CodeFormat& format, const RowFactors& factors, std::size_t channel,
                           std::size_t rest, const std::uint8_t* codes, std::byte* values) {
  alignas(64) std::uint8_t coded[Step<kKind>()] = {};
  alignas(64) std::byte whole[Step<kKind>() * size_of(kType)];
  std::memcpy(coded, codes, code_bytes(kKind, rest));
  DecodeStep<kKind, kType, kPerChannel>(format, factors, channel, coded, whole);
  std::memcpy(values, whole, rest * size_of(kType));
}

template <Kind kKind, DType kType, bool kPerChannel>
void EncodeRows(const CodeFormat& format, const RowFactors& factors, const Rows& rows,
                const std::byte* values, std::uint8_t* codes) {
  constexpr std::size_t kStep = Step<kKind>();
  for (std::size_t row = 0; row < rows.count; ++row) {
    std::size_t c = 0;
    for (; c + kStep <= rows.width; c += kStep) {
      EncodeStep<kKind, kType, kPerChannel>(format, factors, c, values + c * size_of(kType),
                                            codes + code_bytes(kKind, c));
    }
    if (c < rows.width) {
      EncodeRest<kKind, kType, kPerChannel>(format, factors, c, rows.width - c,
                                            values + c * size_of(kType),
                                            codes + code_bytes(kKind, c));
    }
    values += rows.value_stride;
    codes += rows.code_stride;
  }
}

template <Kind kKind, DType kType, bool kPerChannel>
void DecodeRows(const CodeFormat& format, const RowFactors& factors, const Rows& rows,
                const std::uint8_t* codes, std::byte* values) {
  constexpr std::size_t kStep = Step<kKind>();
  for (std::size_t row = 0; row < rows.count; ++row) {
    std::size_t c = 0;
    for (; c + kStep <= rows.width; c += kStep) {
      DecodeStep<kKind, kType, kPerChannel>(format, factors, c, codes + code_bytes(kKind, c),
                                            values + c * size_of(kType));
    }
    if (c < rows.width) {
      DecodeRest<kKind, kType, kPerChannel>(format, factors, c, rows.width - c,
                                            codes + code_bytes(kKind, c),
                                            values + c * size_of(kType));
    }
    values += rows.value_stride;
    codes += rows.code_stride;
  }
}

/// Calls `run` with the constants of a format, a type and a granularity.
template <Kind kKind, class Run>
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
      return with_granularity(std::integral_constant<DType, DType::kFloat32>());
    case DType::kFloat16:
      return with_granularity(std::integral_constant<DType, DType::kFloat16>());
    case DType::kBFloat16:
      return with_granularity(std::integral_constant<DType, DType::kBFloat16>());
  }
}

template <Kind kKind>
void EncodeKind(const CodeFormat& format, const RowFactors& factors, const Rows& rows, DType dtype,
                const std::byte* values, std::uint8_t* codes) {
  WithTypes<kKind>(dtype, factors.per_channel, [&](auto type, auto per_channel) {
    EncodeRows<kKind, type(), per_channel()>(format, factors, rows, values, codes);
  });
}

template <Kind kKind>
void DecodeKind(const CodeFormat& format, const RowFactors& factors, const Rows& rows, DType dtype,
                const std::uint8_t* codes, std::byte* values) {
  WithTypes<kKind>(dtype, factors.per_channel, [&](auto type, auto per_channel) {
    DecodeRows<kKind, type(), per_channel()>(format, factors, rows, codes, values);
  });
}

void Quantize(const CodeFormat& format, const RowFactors& factors, const Rows& rows, DType dtype,
              const std::byte* values, std::uint8_t* codes) {
  switch (format.kind) {
    case Kind::kInt8:
      return EncodeKind<Kind::kInt8>(format, factors, rows, dtype, values, codes);
    case Kind::kInt4:
      return EncodeKind<Kind::kInt4>(format, factors, rows, dtype, values, codes);
    case Kind::kFloat:
      return EncodeKind<Kind::kFloat>(format, factors, rows, dtype, values, codes);
  }
}

void Dequantize(const CodeFormat& format, const RowFactors& factors, const Rows& rows, DType dtype,
                const std::uint8_t* codes, std::byte* values) {
  switch (format.kind) {
    case Kind::kInt8:
      return DecodeKind<Kind::kInt8>(format, factors, rows, dtype, codes, values);
    case Kind::kInt4:
      return DecodeKind<Kind::kInt4>(format, factors, rows, dtype, codes, values);
    case Kind::kFloat:
      return DecodeKind<Kind::kFloat>(format, factors, rows, dtype, codes, values);
  }
}

#undef AMCT_CONVERTS_FLOAT16

#else  // HWY_SCALAR, which has no pairs of lanes

void Quantize(const CodeFormat& format, const RowFactors& factors, const Rows& rows, DType dtype,
              const std::byte* values, std::uint8_t* codes) {
  quantize_rows_scalar(format, factors, rows, dtype, values, codes);
}

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

HWY_EXPORT(Quantize);
HWY_EXPORT(Dequantize);

using Kind = CodeFormat::Kind;

float load(DType dtype, const std::byte* from) {
  if (dtype == DType::kFloat32) {
    float value = 0;
    std::memcpy(&value, from, sizeof value);
    return value;
  }
  std::uint16_t half = 0;
  std::memcpy(&half, from, sizeof half);
  return half_to_float(dtype, half);
}

void store(DType dtype, float value, std::byte* to) {
  if (dtype == DType::kFloat32) {
    std::memcpy(to, &value, sizeof value);
    return;
  }
  const std::uint16_t half = float_to_half(dtype, value);
  std::memcpy(to, &half, sizeof half);
}

std::uint8_t encode(const CodeFormat& format, float scale, float offset, float x) {
  const float quotient = x / scale;
  const float number = std::isnan(quotient) ? 0.0F : quotient;
  if (format.kind == Kind::kFloat) return format.format->encode(static_cast<double>(number));
  const float code = std::clamp(std::nearbyint(number) + offset, format.qmin, format.qmax);
  return static_cast<std::uint8_t>(static_cast<std::int8_t>(code));
}

float decode(const CodeFormat& format, float scale, float offset, std::uint8_t code) {
  if (format.kind == Kind::kFloat) return format.format->decode(code) * scale;
  return (static_cast<float>(static_cast<std::int8_t>(code)) - offset) * scale;
}

}  // namespace

void quantize_rows(const CodeFormat& format, const RowFactors& factors, const Rows& rows,
                   DType dtype, const std::byte* values, std::uint8_t* codes) {
  HWY_DYNAMIC_DISPATCH(Quantize)(format, factors, rows, dtype, values, codes);
}

void dequantize_rows(const CodeFormat& format, const RowFactors& factors, const Rows& rows,
                     DType dtype, const std::uint8_t* codes, std::byte* values) {
  HWY_DYNAMIC_DISPATCH(Dequantize)(format, factors, rows, dtype, codes, values);
}

void quantize_rows_scalar(const CodeFormat& format, const RowFactors& factors, const Rows& rows,
                          DType dtype, const std::byte* values, std::uint8_t* codes) {
  for (std::size_t row = 0; row < rows.count; ++row) {
    for (std::size_t c = 0; c < rows.width; ++c) {
      const std::size_t channel = factors.per_channel ? c : 0;
      const std::uint8_t code = encode(format, factors.scales[channel], factors.offsets[channel],
                                       load(dtype, values + c * size_of(dtype)));
      if (format.kind != Kind::kInt4) {
        codes[c] = code;
      } else if (c % 2 == 0) {
        codes[c / 2] = code & 0xF;
      } else {
        codes[c / 2] |= static_cast<std::uint8_t>(code << 4);
      }
    }
    values += rows.value_stride;
    codes += rows.code_stride;
  }
}

void dequantize_rows_scalar(const CodeFormat& format, const RowFactors& factors, const Rows& rows,
                            DType dtype, const std::uint8_t* codes, std::byte* values) {
  for (std::size_t row = 0; row < rows.count; ++row) {
    for (std::size_t c = 0; c < rows.width; ++c) {
      const std::size_t channel = factors.per_channel ? c : 0;
      std::uint8_t code = codes[format.kind == Kind::kInt4 ? c / 2 : c];
      if (format.kind == Kind::kInt4) {
        const int nibble = c % 2 == 0 ? code & 0xF : code >> 4;
        code = static_cast<std::uint8_t>(nibble < 8 ? nibble : nibble - 16);
      }
      store(dtype, decode(format, factors.scales[channel], factors.offsets[channel], code),
            values + c * size_of(dtype));
    }
    values += rows.value_stride;
    codes += rows.code_stride;
  }
}

}  // namespace amct::kernels
#endif  // HWY_ONCE
