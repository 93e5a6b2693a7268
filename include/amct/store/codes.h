// Keys and values as the codes that a quantized cache stores, and back.
#pragma once

#include "amct/core/dtype.h"
#include "amct/core/granularity.h"
#include "amct/core/grid.h"
#include "amct/core/quant_params.h"
#include "amct/core/tensor_view.h"

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

namespace amct::kernels {
class FactorTable;
}

#pragma GCC visibility push(default)
namespace amct {

/// Where a tensor has its heads, which factors per channel and per head go by.
enum class HeadLayout : std::uint8_t {
  kInChannels,    ///< [..., channels]: side by side, as projections put them out
  kOwnDimension,  ///< [..., heads, tokens, head_dim]: as caches have them
};

/// Memory of codes: as many rows as the tensor has that they stand for, in the same shape, but the
/// last dimension is Codec::row_bytes(channels), whose bytes lie one after the other.
template <typename Byte>
struct BasicCodesView {
  Byte* data = nullptr;               ///< address of the first row
  std::vector<std::int64_t> shape;    ///< sizes
  std::vector<std::int64_t> strides;  ///< in bytes, as many as shape has; the last is 1
};
using CodesView = BasicCodesView<const std::uint8_t>;
using MutableCodesView = BasicCodesView<std::uint8_t>;

/// A tensor to write to; see TensorView. The channels of a row lie one after the other.
struct MutableTensorView {
  void* data = nullptr;
  DType dtype = DType::kFloat32;
  std::vector<std::int64_t> shape;
  std::vector<std::int64_t> strides;  ///< in elements; the last is 1
};

/// A number format with the factors of one layer: makes the codes of tensors, and tensors of codes.
///
/// Codes of INT8 are two's complement bytes. INT4 packs two nibbles in two's complement a byte,
/// that of the lower channel in the low bits; every row begins at a byte, and the upper nibble
/// behind an odd number of channels is zero. Codes of float formats are the bytes of the format.
///
/// The arithmetic is that of Grid in float32, the same bits on every instruction set and for any
/// number of threads:
///  - x is widened to float32 without loss, and the quotient is the float32 nearest to x / scale.
///    It is rounded, half to even, and clamp(round(x / scale) + offset, qmin, qmax) is exact; float
///    formats take the code of their value nearest to the quotient. So a code is that of
///    Grid::quantize, but where x / scale lies within 2^-24 of itself of the middle between two
///    codes, where it may be the other of these two.
///  - A code is read back as (code - offset) * scale in float32, which is Grid::dequantize rounded
///    once, then rounded to the type of the output, half to even; beyond float16 infinity. Codes of
///    a float format that Grid never makes are read as what they are: -0, infinity, NaN.
///  - NaN is stored as the code of x = 0, as no integer format has one; infinities as the outermost
///    codes.
///
/// Immutable, so several threads may use one. Large tensors are worked on by several threads.
class Codec {
 public:
  /// One pair of factors for kPerTensor; for kPerChannel one a channel, for kPerHead one a head. In
  /// `kOwnDimension` a channel is one of heads x head_dim, all of one head before the next.
  ///
  /// Throws ValueError where a scale is not positive and finite, an offset beyond +-2^22 or of a
  /// float format not zero, or the number of factors is none, or not one for kPerTensor.
  Codec(const Grid& grid, std::span<const QuantParams> params, Granularity granularity,
        HeadLayout layout);

  const Grid& grid() const { return *grid_; }

  /// Bytes that the codes of a row of so many channels take: `channels`, or half of them, rounded
  /// up.
  std::int64_t row_bytes(std::int64_t channels) const;

  /// Writes the codes of `x`. Rows whose channels lie apart are gathered first; all others are read
  /// where they are, whatever the strides of the other dimensions.
  ///
  /// Throws ValueError where the views contradict themselves or each other, or the factors do not
  /// fit the shape of `x`.
  void quantize(const TensorView& x, const MutableCodesView& codes) const;
  /// The codes of `x`, row after row.
  std::vector<std::uint8_t> quantize(const TensorView& x) const;

  /// Writes what `codes` stand for. Throws as quantize does.
  void dequantize(const CodesView& codes, const MutableTensorView& out) const;

 private:
  class [[gnu::visibility("hidden")]] Work;

  const Grid* grid_;
  Granularity granularity_;
  HeadLayout layout_;
  std::int64_t count_;  // of factors
  std::shared_ptr<const kernels::FactorTable> factors_;
};

}  // namespace amct
#pragma GCC visibility pop
