#include "support/data.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <utility>

namespace amct::support {
namespace {

constexpr float kFloatMax = std::numeric_limits<float>::max();

float saturated(double value) {
  return static_cast<float>(
      std::clamp(value, -static_cast<double>(kFloatMax), static_cast<double>(kFloatMax)));
}

template <typename Bits>
Bits bits_at(const std::byte* address) {
  Bits bits;
  std::memcpy(&bits, address, sizeof bits);
  return bits;
}

float load(const std::byte* address, DType dtype) {
  if (dtype == DType::kFloat32) return std::bit_cast<float>(bits_at<std::uint32_t>(address));
  return half_to_float(dtype, bits_at<std::uint16_t>(address));
}

/// The pattern below infinity whose value is nearest to |value|, ties to the even pattern. Patterns
/// of one sign ascend with their values, so this needs no knowledge of the format.
std::uint16_t nearest_pattern(DType dtype, float value) {
  const std::uint16_t sign = std::signbit(value) ? 0x8000 : 0;
  if (std::isnan(value)) return static_cast<std::uint16_t>(sign | exponent_mask(dtype) | 1);
  if (std::isinf(value)) return static_cast<std::uint16_t>(sign | exponent_mask(dtype));
  const double magnitude = std::fabs(static_cast<double>(value));
  std::uint16_t low = 0;
  std::uint16_t high = static_cast<std::uint16_t>(exponent_mask(dtype) - 1);
  while (high - low > 1) {
    const auto middle = static_cast<std::uint16_t>((low + high) / 2);
    (half_to_float(dtype, middle) <= magnitude ? low : high) = middle;
  }
  const double below = magnitude - static_cast<double>(half_to_float(dtype, low));
  const double above = static_cast<double>(half_to_float(dtype, high)) - magnitude;
  const bool up = above < below || (above == below && low % 2 == 1);
  return static_cast<std::uint16_t>(sign | (up ? high : low));
}

}  // namespace

std::string name_of(Distribution distribution) {
  switch (distribution) {
    case Distribution::kNormal:
      return "Normal";
    case Distribution::kHeavyTailed:
      return "HeavyTailed";
    case Distribution::kShifted:
      return "Shifted";
    case Distribution::kConstant:
      return "Constant";
    case Distribution::kTiny:
      return "Tiny";
    case Distribution::kHuge:
      return "Huge";
    case Distribution::kOneElement:
      return "OneElement";
    case Distribution::kNegative:
      return "Negative";
    case Distribution::kPositive:
      return "Positive";
    case Distribution::kZeros:
      return "Zeros";
    case Distribution::kDenormal:
      return "Denormal";
    case Distribution::kFewValues:
      return "FewValues";
  }
  return "Unknown";
}

std::vector<float> sample(Distribution distribution, std::size_t n, unsigned seed) {
  std::mt19937 generator(seed * 2654435761U + static_cast<unsigned>(distribution));
  std::normal_distribution<double> normal;
  std::cauchy_distribution<double> cauchy(0, 1);
  std::uniform_int_distribution<int> small(-6, 6);
  std::uniform_real_distribution<double> uniform(-1, 1);
  if (distribution == Distribution::kOneElement) n = 1;
  const double constant = normal(generator) * std::pow(10.0, small(generator));
  std::vector<float> values(n);
  for (float& value : values) {
    double x = normal(generator);
    switch (distribution) {
      case Distribution::kNormal:
      case Distribution::kOneElement:
        break;
      case Distribution::kHeavyTailed:
        x = cauchy(generator);
        break;
      case Distribution::kShifted:
        x += 5;
        break;
      case Distribution::kConstant:
        x = constant;
        break;
      case Distribution::kTiny:
        x *= 1e-30;
        break;
      case Distribution::kHuge:
        x = uniform(generator) * 3.4e38;
        break;
      case Distribution::kNegative:
        x = -std::fabs(x) - 1e-3;
        break;
      case Distribution::kPositive:
        x = std::fabs(x) + 1e-3;
        break;
      case Distribution::kZeros:
        x = x < 0 ? -0.0 : 0.0;
        break;
      case Distribution::kDenormal:
        x *= 1e-41;
        break;
      case Distribution::kFewValues:
        x = small(generator) * 0.5;
        break;
    }
    value = saturated(x);
  }
  return values;
}

std::uint16_t to_float16(float value) { return nearest_pattern(DType::kFloat16, value); }
std::uint16_t to_bfloat16(float value) { return nearest_pattern(DType::kBFloat16, value); }

std::vector<float> Tensor::values() const {
  const std::size_t width = size_of(dtype);
  std::vector<float> result(bytes.size() / width);
  for (std::size_t i = 0; i < result.size(); ++i) result[i] = load(bytes.data() + i * width, dtype);
  return result;
}

Tensor Tensor::rows(std::int64_t begin, std::int64_t end) const {
  const auto row =
      static_cast<std::ptrdiff_t>(shape.back()) * static_cast<std::ptrdiff_t>(size_of(dtype));
  return {dtype,
          {end - begin, shape.back()},
          std::vector<std::byte>(bytes.begin() + begin * row, bytes.begin() + end * row)};
}

Tensor make_tensor(DType dtype, std::vector<std::int64_t> shape, const std::vector<float>& values) {
  const std::size_t width = size_of(dtype);
  Tensor tensor{dtype, std::move(shape), std::vector<std::byte>(values.size() * width)};
  for (std::size_t i = 0; i < values.size(); ++i) {
    std::byte* address = tensor.bytes.data() + i * width;
    if (dtype == DType::kFloat32) {
      std::memcpy(address, &values[i], width);
    } else {
      const std::uint16_t bits = nearest_pattern(dtype, values[i]);
      std::memcpy(address, &bits, width);
    }
  }
  return tensor;
}

float element_at(const TensorView& view, const std::vector<std::int64_t>& index) {
  std::int64_t offset = 0;
  for (std::size_t i = 0; i < index.size(); ++i) offset += index[i] * view.strides[i];
  return load(static_cast<const std::byte*>(view.data) +
                  offset * static_cast<std::int64_t>(size_of(view.dtype)),
              view.dtype);
}

Tensor contiguous_copy(const TensorView& view) {
  std::vector<float> values;
  std::vector<std::int64_t> index(view.shape.size(), 0);
  for (std::int64_t i = 0; i < view.size(); ++i) {
    values.push_back(element_at(view, index));
    for (std::size_t d = index.size(); d-- > 0;) {
      if (++index[d] < view.shape[d]) break;
      index[d] = 0;
    }
  }
  return make_tensor(view.dtype, view.shape, values);
}

}  // namespace amct::support
