#include <algorithm>
#include <cmath>
#include <cstring>

#include "kernels/codes.h"
#include "kernels/targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/quantize_rows.cc"
#include <hwy/foreach_target.h>  // IWYU pragma: keep
#include <hwy/highway.h>

#include "kernels/code_rows-inl.h"

HWY_BEFORE_NAMESPACE();
namespace amct::kernels {
namespace HWY_NAMESPACE {

#if HWY_TARGET != HWY_SCALAR

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

/// Codes of an integer format that are not clipped yet, one a lane; those of NaN are that of zero.
template <bool kPerChannel, class D, class V = hn::Vec<D>>
HWY_INLINE hn::Vec<hn::RebindToSigned<D>> Divide(D df, const CodeFormat& format,
                                                 const Factors& factors, std::size_t channel, V x) {
  const auto quotient = hn::Div(x, LoadFactors<kPerChannel>(df, factors.scales, channel));
  const auto rounded = hn::IfThenElseZero(hn::Eq(quotient, quotient), hn::Round(quotient));
  const auto code = hn::Add(rounded, LoadFactors<kPerChannel>(df, factors.offsets, channel));
  return hn::NearestInt(hn::Min(hn::Max(code, hn::Set(df, format.qmin)), hn::Set(df, format.qmax)));
}

/// The same without a division, in `codes`. Returns where they are surely the same.
template <bool kPerChannel, class D, class V = hn::Vec<D>>
HWY_INLINE hn::Mask<D> Multiply(D df, const Factors& factors, std::size_t channel, V x,
                                hn::Vec<hn::RebindToSigned<D>>& codes) {
  const hn::RebindToSigned<D> di;
  const auto shift = hn::Set(df, 0x1.8p23F);  // leaves no bits for a fraction
  const auto quotient = hn::Mul(x, LoadFactors<kPerChannel>(df, factors.inverses, channel));
  // Far below the range of codes, and yet so that sums with `shift` stay positive: their bits, as
  // whole numbers, then grow with the quotient, to infinity.
  const auto sum = hn::Add(hn::Max(quotient, hn::Set(df, -32768.0F)), shift);
  codes = hn::Sub(hn::BitCast(di, sum), LoadFactors<kPerChannel>(di, factors.biases, channel));
  // Not so where the quotient is NaN, or infinite.
  const auto distance = hn::Abs(hn::Sub(quotient, hn::Sub(sum, shift)));
  return hn::Le(distance, hn::Set(df, factors.sure_distance));
}

/// Two vectors of 32-bit codes as one of 16 bits, saturated.
template <class DI, class VI = hn::Vec<DI>>
HWY_INLINE hn::Vec<hn::Repartition<std::int16_t, DI>> Narrow(DI di, VI low, VI high) {
  const hn::Repartition<std::int16_t, DI> di16;
  const auto narrow = hn::ReorderDemote2To(di16, low, high);
  constexpr std::size_t kLanes = hn::MaxLanes(DI());
  if constexpr (kLanes == 4) {
    return narrow;
  } else {
    // Of each 16 bytes, half come from `low`.
    alignas(64) std::int32_t order[kLanes];
    for (std::size_t i = 0; i < kLanes; ++i) {
      const std::size_t from_low = i % (kLanes / 2);
      order[i] = static_cast<std::int32_t>(from_low / 2 * 4 + from_low % 2 + i / (kLanes / 2) * 2);
    }
    return hn::BitCast(
        di16, hn::TableLookupLanes(hn::BitCast(di, narrow), hn::SetTableIndices(di, order)));
  }
}

/// The code of a quotient of FP8, one a lane.
template <class D, class V = hn::Vec<D>>
HWY_INLINE hn::Vec<hn::RebindToSigned<D>> Fp8Code(D df, const CodeFormat& format, V quotient) {
  const hn::RebindToUnsigned<D> du;
  const hn::RebindToSigned<D> di;
  const auto magnitude = hn::IfThenElseZero(hn::Eq(quotient, quotient), hn::Abs(quotient));
  const auto limited = hn::Min(magnitude, hn::Set(df, format.max));
  const auto smallest = hn::Set(di, format.smallest_exponent);
  const auto exponent =
      hn::Max(hn::And(hn::BitCast(di, limited), hn::Set(di, std::int32_t{0x7F800000})), smallest);
  // Added to a number of this exponent, it leaves as many bits of fraction as the format has,
  // rounded to even. What is beyond it in the sum's pattern counts its steps, from zero on.
  const int dropped = 23 - format.mantissa_bits;
  const auto shift = hn::Add(exponent, hn::Set(di, dropped << 23));
  const auto sum = hn::BitCast(di, hn::Add(limited, hn::BitCast(df, shift)));
  const auto code =
      hn::Add(hn::Sub(sum, shift), hn::ShiftRightSame(hn::Sub(exponent, smallest), dropped));
  const auto sign = hn::And(hn::BitCast(di, hn::ShiftRight<24>(hn::BitCast(du, quotient))),
                            hn::Set(di, std::int32_t{0x80}));
  // Zero has no sign.
  return hn::Or(code, hn::IfThenElseZero(hn::Ne(code, hn::Zero(di)), sign));
}

/// Codes of FP8.
template <class D, class V = hn::Vec<D>>
HWY_INLINE void StoreCodes(std::integral_constant<Kind, Kind::kFp8> /*kind*/, D df,
                           const CodeFormat& format, V q0, V q1, V q2, V q3,
                           std::uint8_t* HWY_RESTRICT codes) {
  const hn::RebindToSigned<D> di;
  const hn::Rebind<std::uint8_t, hn::Repartition<std::int16_t, D>> du8;
  const auto first = Narrow(di, Fp8Code(df, format, q0), Fp8Code(df, format, q1));
  const auto second = Narrow(di, Fp8Code(df, format, q2), Fp8Code(df, format, q3));
  hn::StoreU(hn::DemoteTo(du8, first), du8, codes);
  hn::StoreU(hn::DemoteTo(du8, second), du8, codes + hn::MaxLanes(du8));
}

/// Codes of another format. What is cut off the patterns does not matter to ties that go away from
/// zero, so bytes are enough: of exponents, of mantissas, of signs.
template <class D, class V = hn::Vec<D>>
HWY_INLINE void StoreCodes(std::integral_constant<Kind, Kind::kFloat> /*kind*/, D /*df*/,
                           const CodeFormat& format, V q0, V q1, V q2, V q3,
                           std::uint8_t* HWY_RESTRICT codes) {
  const hn::Repartition<std::uint16_t, D> d16;
  const hn::Repartition<std::int16_t, D> di16;
  const hn::Repartition<std::uint8_t, D> d8;
  const hn::Rebind<std::uint8_t, decltype(di16)> half8;
  const auto upper_halves = [&](V low, V high) HWY_ATTR {
    const auto number = [&](V q) HWY_ATTR {
      return hn::BitCast(d16, hn::IfThenElseZero(hn::Eq(q, q), q));
    };
    return hn::ConcatOdd(d16, number(high), number(low));
  };
  // The byte of a lane that is even is of the first half of the values, the other of the second.
  const auto bytes = [&](auto first, auto second) HWY_ATTR {
    return hn::BitCast(d8, hn::Or(first, hn::ShiftLeft<8>(second)));
  };
  const auto low = upper_halves(q0, q1);
  const auto high = upper_halves(q2, q3);
  const auto cell = [&](auto patterns) HWY_ATTR {
    const auto magnitude = hn::And(patterns, hn::Set(d16, std::uint16_t{0x7FFF}));
    const auto smallest = hn::Set(d16, format.smallest_cell);
    const auto limited =
        hn::Min(hn::ShiftRight<kCellBits - 16>(magnitude), hn::Set(d16, format.largest_cell));
    return hn::Sub(hn::Max(limited, smallest), smallest);
  };
  const auto low_cell = cell(low);
  const auto high_cell = cell(high);
  const auto exponent = bytes(hn::ShiftRight<4>(low_cell), hn::ShiftRight<4>(high_cell));
  const auto four_bits = hn::Set(d16, std::uint16_t{0x0F});
  const auto mantissa = bytes(hn::And(low_cell, four_bits), hn::And(high_cell, four_bits));
  const StepTables& tables = *format.steps;
  const auto bits = LookUp<3>(d8, tables.bits.data(), exponent);
  const auto steps = LookUp<4>(d8, tables.steps.data(), hn::Or(bits, mantissa));
  const auto is_next = hn::TestBit(steps, hn::Set(d8, StepTables::kNext));
  const auto code = hn::IfThenElse(is_next, LookUp<3>(d8, tables.next.data(), exponent),
                                   hn::Add(LookUp<3>(d8, tables.first.data(), exponent), steps));
  const auto sign = hn::And(bytes(hn::ShiftRight<8>(low), hn::ShiftRight<8>(high)),
                            hn::Set(d8, std::uint8_t{0x80}));
  // Zero has no sign.
  const auto all =
      hn::BitCast(d16, hn::Or(code, hn::IfThenElseZero(hn::Ne(code, hn::Zero(d8)), sign)));
  const auto first = hn::And(all, hn::Set(d16, std::uint16_t{0xFF}));
  const auto second = hn::ShiftRight<8>(all);
  hn::StoreU(hn::DemoteTo(half8, hn::BitCast(di16, first)), half8, codes);
  hn::StoreU(hn::DemoteTo(half8, hn::BitCast(di16, second)), half8, codes + hn::MaxLanes(half8));
}

/// Where in its cell x * inverse lies, counted from FactorTable::sure_margin() before the first
/// number of a cell.
template <class D, class V = hn::Vec<D>>
HWY_INLINE hn::Vec<hn::RebindToSigned<D>> PlaceInCell(D df, const Factors& factors, V product) {
  const hn::RebindToSigned<D> di;
  // Far below the smallest number of a format all become zero.
  const auto magnitude =
      hn::Max(hn::BitCast(di, hn::Abs(product)), hn::BitCast(di, hn::Set(df, 0x1.08p-40F)));
  return hn::And(hn::Add(magnitude, hn::Set(di, factors.sure_margin)),
                 hn::Set(di, (std::int32_t{1} << kCellBits) - 1));
}

template <Kind kKind, DType kType, bool kPerChannel>
HWY_INLINE void EncodeFloats(const CodeFormat& format, const Factors& factors, std::size_t channel,
                             const std::byte* HWY_RESTRICT values,
                             std::uint8_t* HWY_RESTRICT codes) {
  const hn::ScalableTag<float> df;
  const hn::RebindToSigned<decltype(df)> di;
  constexpr std::size_t kQuarter = kStep<kKind> / 4;
  const auto value = [&](std::size_t quarter) HWY_ATTR {
    return LoadValues<kType>(df, values + quarter * kQuarter * size_of(kType));
  };
  const auto product = [&](std::size_t quarter) HWY_ATTR {
    const std::size_t c = channel + quarter * kQuarter;
    return hn::Mul(value(quarter), LoadFactors<kPerChannel>(df, factors.inverses, c));
  };
  auto q0 = product(0);
  auto q1 = product(1);
  auto q2 = product(2);
  auto q3 = product(3);
  const auto place = hn::Min(hn::Min(PlaceInCell(df, factors, q0), PlaceInCell(df, factors, q1)),
                             hn::Min(PlaceInCell(df, factors, q2), PlaceInCell(df, factors, q3)));
  if (HWY_UNLIKELY(!hn::AllTrue(di, hn::Gt(place, hn::Set(di, 2 * factors.sure_margin - 1))))) {
    const auto quotient = [&](std::size_t quarter) HWY_ATTR {
      const std::size_t c = channel + quarter * kQuarter;
      return hn::Div(value(quarter), LoadFactors<kPerChannel>(df, factors.scales, c));
    };
    q0 = quotient(0);
    q1 = quotient(1);
    q2 = quotient(2);
    q3 = quotient(3);
  }
  StoreCodes(std::integral_constant<Kind, kKind>(), df, format, q0, q1, q2, q3, codes);
}

template <Kind kKind, DType kType, bool kPerChannel>
HWY_INLINE void EncodeIntegers(const CodeFormat& format, const Factors& factors,
                               std::size_t channel, const std::byte* HWY_RESTRICT values,
                               std::uint8_t* HWY_RESTRICT codes) {
  const hn::ScalableTag<float> df;
  const hn::RebindToSigned<decltype(df)> di;
  const hn::Repartition<std::int16_t, decltype(df)> di16;
  constexpr std::size_t kHalf = kStep<kKind> / 2;
  const auto x0 = LoadValues<kType>(df, values);
  const auto x1 = LoadValues<kType>(df, values + kHalf * size_of(kType));
  auto low = hn::Zero(di);
  auto high = hn::Zero(di);
  const auto sure = hn::And(Multiply<kPerChannel>(df, factors, channel, x0, low),
                            Multiply<kPerChannel>(df, factors, channel + kHalf, x1, high));
  if (HWY_UNLIKELY(!hn::AllTrue(df, sure))) {
    low = Divide<kPerChannel>(df, format, factors, channel, x0);
    high = Divide<kPerChannel>(df, format, factors, channel + kHalf, x1);
  }
  const auto narrow = Narrow(di, low, high);
  if constexpr (kKind == Kind::kInt8) {
    const hn::Rebind<std::int8_t, decltype(di16)> di8;
    hn::StoreU(hn::DemoteTo(di8, narrow), di8, reinterpret_cast<std::int8_t*>(codes));
  } else {
    const hn::Rebind<std::uint8_t, decltype(di)> du8;
    const auto clamped =
        hn::Min(hn::Max(narrow, hn::Set(di16, std::int16_t{-8})), hn::Set(di16, std::int16_t{7}));
    // A 32-bit lane has the code of an even channel, then that of the odd one after it.
    const auto pairs = hn::BitCast(di, clamped);
    const auto even = hn::And(pairs, hn::Set(di, std::int32_t{0x0F}));
    const auto odd = hn::And(hn::ShiftRight<12>(pairs), hn::Set(di, std::int32_t{0xF0}));
    hn::StoreU(hn::DemoteTo(du8, hn::Or(even, odd)), du8, codes);
  }
}

template <Kind kKind, DType kType, bool kPerChannel>
HWY_INLINE void EncodeStep(const CodeFormat& format, const Factors& factors, std::size_t channel,
                           const std::byte* values, std::uint8_t* codes) {
  if constexpr (is_float(kKind)) {
    EncodeFloats<kKind, kType, kPerChannel>(format, factors, channel, values, codes);
  } else {
    EncodeIntegers<kKind, kType, kPerChannel>(format, factors, channel, values, codes);
  }
}

/// A row shorter than a step goes through memory of its own, filled up with zeros.
template <Kind kKind, DType kType, bool kPerChannel>
HWY_INLINE void EncodeRest(const CodeFormat& format, const Factors& factors, std::size_t channel,
                           std::size_t rest, const std::byte* values, std::uint8_t* codes) {
  alignas(64) std::byte whole[kStep<kKind> * size_of(kType)] = {};
  alignas(64) std::uint8_t coded[kStep<kKind>];
  std::memcpy(whole, values, rest * size_of(kType));
  EncodeStep<kKind, kType, kPerChannel>(format, factors, channel, whole, coded);
  const std::size_t bytes = code_bytes(kKind, rest);
  if (kKind == Kind::kInt4 && rest % 2 != 0) coded[bytes - 1] &= 0xF;
  std::memcpy(codes, coded, bytes);
}

template <Kind kKind, DType kType, bool kPerChannel>
void EncodeRows(const CodeFormat& format, const Factors& factors, const Rows& rows,
                const std::byte* values, std::uint8_t* codes) {
  for (std::size_t row = 0; row < rows.count; ++row) {
    OverRow<kKind>(
        rows.width,
        [&](std::size_t c) HWY_ATTR {
          EncodeStep<kKind, kType, kPerChannel>(format, factors, c, values + c * size_of(kType),
                                                codes + code_bytes(kKind, c));
        },
        [&](std::size_t c, std::size_t rest) HWY_ATTR {
          EncodeRest<kKind, kType, kPerChannel>(
              format, factors, c, rest, values + c * size_of(kType), codes + code_bytes(kKind, c));
        });
    values += rows.value_stride;
    codes += rows.code_stride;
  }
}

template <Kind kKind>
void EncodeKind(const CodeFormat& format, const RowFactors& factors, const Rows& rows, DType dtype,
                const std::byte* values, std::uint8_t* codes) {
  WithTypes(dtype, factors.per_channel, [&](auto type, auto per_channel) {
    EncodeRows<kKind, type(), per_channel()>(format, Factors(factors), rows, values, codes);
  });
}

void Quantize(const CodeFormat& format, const RowFactors& factors, const Rows& rows, DType dtype,
              const std::byte* values, std::uint8_t* codes) {
  switch (format.kind) {
    case Kind::kInt8:
      EncodeKind<Kind::kInt8>(format, factors, rows, dtype, values, codes);
      break;
    case Kind::kInt4:
      EncodeKind<Kind::kInt4>(format, factors, rows, dtype, values, codes);
      break;
    case Kind::kFp8:
      EncodeKind<Kind::kFp8>(format, factors, rows, dtype, values, codes);
      break;
    case Kind::kFloat:
      EncodeKind<Kind::kFloat>(format, factors, rows, dtype, values, codes);
      break;
  }
}

#else  // which has no pairs of lanes

void Quantize(const CodeFormat& format, const RowFactors& factors, const Rows& rows, DType dtype,
              const std::byte* values, std::uint8_t* codes) {
  quantize_rows_scalar(format, factors, rows, dtype, values, codes);
}

#endif

}  // namespace HWY_NAMESPACE
}  // namespace amct::kernels
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace amct::kernels {
namespace {

HWY_EXPORT(Quantize);

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

std::uint8_t encode(const CodeFormat& format, float scale, float offset, float x) {
  const float quotient = x / scale;
  const float number = std::isnan(quotient) ? 0.0F : quotient;
  if (is_float(format.kind)) return format.format->encode(static_cast<double>(number));
  const float code = std::clamp(std::nearbyint(number) + offset, format.qmin, format.qmax);
  return static_cast<std::uint8_t>(static_cast<std::int8_t>(code));
}

}  // namespace

void quantize_rows(const CodeFormat& format, const RowFactors& factors, const Rows& rows,
                   DType dtype, const std::byte* values, std::uint8_t* codes) {
  HWY_DYNAMIC_DISPATCH(Quantize)(format, factors, rows, dtype, values, codes);
}

void quantize_rows_scalar(const CodeFormat& format, const RowFactors& factors, const Rows& rows,
                          DType dtype, const std::byte* values, std::uint8_t* codes) {
  for (std::size_t row = 0; row < rows.count; ++row) {
    for (std::size_t c = 0; c < rows.width; ++c) {
      const std::size_t i = factors.first + (factors.per_channel ? c : 0);
      const std::uint8_t code =
          encode(format, factors.table->scales()[i], factors.table->offsets()[i],
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

}  // namespace amct::kernels
#endif  // HWY_ONCE
