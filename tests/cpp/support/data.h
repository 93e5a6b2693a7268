// Tensors for tests: random values of many kinds, in every element type.
#pragma once

#include "amct/core/dtype.h"
#include "amct/core/tensor_view.h"

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace amct::support {

/// What values a random tensor holds. Each is a kind that has broken some calibration code.
enum class Distribution : std::uint8_t {
  kNormal,
  kHeavyTailed,  ///< Cauchy: a few values dwarf all others
  kShifted,      ///< normal around 5, so that zero is outside the data
  kConstant,
  kTiny,  ///< around 1e-30: any scale is below FLT_EPSILON
  kHuge,  ///< both signs near FLT_MAX: the range overflows float32
  kOneElement,
  kNegative,
  kPositive,
  kZeros,
  kDenormal,
  kFewValues,  ///< many duplicates, ties between levels included
};

inline constexpr std::array kAllDistributions{
    Distribution::kNormal,     Distribution::kHeavyTailed, Distribution::kShifted,
    Distribution::kConstant,   Distribution::kTiny,        Distribution::kHuge,
    Distribution::kOneElement, Distribution::kNegative,    Distribution::kPositive,
    Distribution::kZeros,      Distribution::kDenormal,    Distribution::kFewValues,
};

inline constexpr std::array kAllDTypes{DType::kFloat32, DType::kFloat16, DType::kBFloat16};

/// "Normal", fit for the name of a parameterised test.
std::string name_of(Distribution distribution);

/// `n` finite values (one where kOneElement), the same for the same seed.
std::vector<float> sample(Distribution distribution, std::size_t n, unsigned seed);

/// Rounds to the nearest pattern, half to even; a finite value stays finite (saturates).
std::uint16_t to_float16(float value);
std::uint16_t to_bfloat16(float value);

/// A contiguous tensor that owns its elements.
struct Tensor {
  DType dtype = DType::kFloat32;
  std::vector<std::int64_t> shape;
  std::vector<std::byte> bytes;

  TensorView view() const { return TensorView::contiguous(bytes.data(), dtype, shape); }
  /// The elements, widened to float32.
  std::vector<float> values() const;
  /// Rows [begin, end) of a tensor of rank 2.
  Tensor rows(std::int64_t begin, std::int64_t end) const;
};

/// A tensor of `values` rounded to `dtype`; infinities and NaN stay what they are.
Tensor make_tensor(DType dtype, std::vector<std::int64_t> shape, const std::vector<float>& values);

/// The element that `view` holds at `index`, found by its strides alone.
float element_at(const TensorView& view, const std::vector<std::int64_t>& index);

/// A contiguous copy of any view, made element by element.
Tensor contiguous_copy(const TensorView& view);

}  // namespace amct::support
