#include "observe/float_sketch.h"

#include "amct/search/ifmr.h"
#include "amct/search/quantization_error.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include <gtest/gtest.h>

#include "support/data.h"

namespace amct {
namespace {

using support::Distribution;

TensorView view_of(const std::vector<float>& x, std::int64_t channels = 1) {
  return TensorView::contiguous(x.data(), DType::kFloat32,
                                {static_cast<std::int64_t>(x.size()) / channels, channels});
}

FloatSketch sketch_of(const std::vector<float>& x) {
  FloatSketch sketch(1);
  sketch.add(view_of(x));
  return sketch;
}

double int8_mse(const std::vector<float>& x, const ValueCounts& searched, bool with_offset) {
  const QuantParams params = ifmr(searched, {.with_offset = with_offset}).params;
  return quantization_error(ValueCounts::of(x), kInt8, params).mse();
}

/// Values of data that calibrations meet, and some that are hard to sketch.
std::vector<std::vector<float>> data_sets() {
  constexpr std::size_t kSize = 200000;
  std::mt19937 generator(1);
  std::normal_distribution<float> normal;
  std::uniform_real_distribution<float> uniform(-1, 1);
  std::vector<std::vector<float>> sets(6);
  for (std::size_t i = 0; i < kSize; ++i) {
    const float x = normal(generator);
    sets[0].push_back(x);
    sets[1].push_back(i % 1000 == 0 ? 20 * x : x);
    sets[2].push_back(uniform(generator));
    sets[3].push_back(10 + 0.05F * x);  // an offset many times the spread
    sets[4].push_back((i % 2 == 0 ? 5.0F : -5.0F) + 0.1F * x);
    sets[5].push_back(std::exp(2 * x));
  }
  return sets;
}

TEST(FloatSketchTest, FactorsAreAsGoodAsExactOnesToAThousandth) {
  for (const std::vector<float>& x : data_sets()) {
    const ValueCounts exact = ValueCounts::of(x);
    // Per tensor, and as the second of two channels.
    std::vector<float> two(2 * x.size());
    for (std::size_t i = 0; i < x.size(); ++i) two[2 * i + 1] = x[i];
    FloatSketch channels(2);
    channels.add(view_of(two, 2));
    for (const ValueCounts& sketched : {sketch_of(x).value_counts(0), channels.value_counts(1)}) {
      EXPECT_EQ(sketched.total(), x.size());
      EXPECT_EQ(sketched.min(), exact.min());
      EXPECT_EQ(sketched.max(), exact.max());
      for (const bool with_offset : {true, false}) {
        const double best = int8_mse(x, exact, with_offset);
        EXPECT_LE(int8_mse(x, sketched, with_offset), 1.001 * best) << x[1] << " " << with_offset;
      }
    }
  }
}

class FloatSketchOfTest : public testing::TestWithParam<Distribution> {};
INSTANTIATE_TEST_SUITE_P(AllData, FloatSketchOfTest, testing::ValuesIn(support::kAllDistributions),
                         [](const auto& info) { return support::name_of(info.param); });

TEST_P(FloatSketchOfTest, OrderAndPartsChangeNothingAndMemoryIsBounded) {
  std::vector<float> x = support::sample(GetParam(), 20000, 3);
  const FloatSketch once = sketch_of(x);
  const ValueCounts expected = once.value_counts(0);
  EXPECT_EQ(expected.total(), x.size());
  const auto [low, high] = std::ranges::minmax(x);
  EXPECT_EQ(expected.min(), low);
  EXPECT_EQ(expected.max(), high);
  std::ranges::shuffle(x, std::mt19937(4));
  const std::size_t cut = x.size() / 3;
  FloatSketch first = sketch_of({x.begin(), x.begin() + static_cast<std::ptrdiff_t>(cut)});
  const FloatSketch second = sketch_of({x.begin() + static_cast<std::ptrdiff_t>(cut), x.end()});
  first.merge(second);
  EXPECT_EQ(first.value_counts(0), expected);
  EXPECT_LE(once.bytes(0), std::size_t{1} << 20);
  first.merge(first);
  EXPECT_EQ(first.value_counts(0).total(), 2 * x.size());
}

TEST(FloatSketchTest, MemoryStaysBoundedWhenEveryBinadeOccurs) {
  std::vector<float> x;
  std::mt19937 generator(2);
  for (int i = 0; i < 3000000; ++i) {
    const float value = std::bit_cast<float>(static_cast<std::uint32_t>(generator()));
    if (std::isfinite(value)) x.push_back(value);
  }
  FloatSketch sketch = sketch_of(x);
  for (int i = 0; i < 34; ++i) sketch.merge(sketch);  // counters of 64 bits
  EXPECT_LE(sketch.bytes(0), std::size_t{1} << 20);
  EXPECT_EQ(sketch.value_counts(0).total(), x.size() << 34);
}

TEST(FloatSketchTest, ChannelsAreKeptApartAndNonFiniteValuesLeftOut) {
  constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
  constexpr float kInf = std::numeric_limits<float>::infinity();
  const std::vector<float> x{1, kNan, -3, 2, kInf, -4};
  FloatSketch sketch(3);
  sketch.add(view_of(x, 3));
  EXPECT_EQ(sketch.value_counts(0), ValueCounts({1, 2}, {1, 1}));
  EXPECT_TRUE(sketch.value_counts(1).empty());
  EXPECT_EQ(sketch.value_counts(2), ValueCounts({-4, -3}, {1, 1}));
}

}  // namespace
}  // namespace amct
