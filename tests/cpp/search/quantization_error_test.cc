#include "amct/search/quantization_error.h"

#include "amct/observe/observer.h"

#include <cmath>
#include <limits>
#include <vector>

#include <gtest/gtest.h>

#include "support/data.h"
#include "support/reference.h"

namespace amct {
namespace {

class QuantizationErrorTest : public testing::TestWithParam<support::Distribution> {};

INSTANTIATE_TEST_SUITE_P(Distributions, QuantizationErrorTest,
                         testing::ValuesIn(support::kAllDistributions),
                         [](const auto& param) { return support::name_of(param.param); });

TEST_P(QuantizationErrorTest, MatchesTheSumOverAllValues) {
  for (unsigned seed = 0; seed < 10; ++seed) {
    const std::vector<float> x = support::sample(GetParam(), 500, seed);
    for (const QuantParams params : {QuantParams{0.02F, 5}, QuantParams{1.0F, -128},
                                     QuantParams{1e36F, 0}, QuantParams{1e-3F, 127}}) {
      const QuantizationError error = quantization_error(ValueCounts::of(x), kInt8, params);
      const double expected = support::reference_int8_mse(x, params);
      EXPECT_NEAR(error.mse(), expected, 1e-12 * expected);
      EXPECT_EQ(error.total, static_cast<double>(x.size()));
      double signal = 0;
      double clipped = 0;
      for (const float value : x) {
        signal += static_cast<double>(value) * value;
        const double code =
            std::nearbyint(value / static_cast<double>(params.scale)) + params.offset;
        clipped += code < -128 || code > 127 ? 1 : 0;
      }
      EXPECT_NEAR(error.squared_signal, signal, 1e-12 * signal);
      EXPECT_EQ(error.clipped, clipped);
      EXPECT_EQ(error.clipped_fraction(), clipped / static_cast<double>(x.size()));
    }
  }
}

TEST(QuantizationErrorKnownTest, SignalToNoiseInDecibel) {
  // x = 10 is stored as 9 or 11 steps of 1... here 10.5 -> 10: noise 0.25, signal 110.25.
  const QuantizationError error = quantization_error(ValueCounts::of({10.5F}), kInt8, {1.0F, 0});
  EXPECT_NEAR(error.sqnr_db(), 10 * std::log10(110.25 / 0.25), 1e-12);
  const QuantizationError none = quantization_error(ValueCounts::of({10.0F}), kInt8, {1.0F, 0});
  EXPECT_EQ(none.sqnr_db(), std::numeric_limits<double>::infinity());
  EXPECT_EQ(QuantizationError().mse(), 0);
  EXPECT_EQ(QuantizationError().clipped_fraction(), 0);
}

/// 126.5 and -129.5 round to the even codes 126 and -130, so that one is the last that is not
/// clipped.
TEST(QuantizationErrorKnownTest, TheEndsOfTheGridAreNotClipped) {
  const std::vector<float> x{126.5F, 126.5F, 127, -129, -129.5F, -129.5F, -129.5F};
  EXPECT_EQ(quantization_error(ValueCounts::of(x), kInt8, {1.0F, 1}).clipped, 4);
  Observer counted(Granularity::kPerTensor);
  const support::Tensor tensor = support::make_tensor(DType::kFloat16, {7, 1}, x);
  counted.observe(tensor.view());
  EXPECT_EQ(quantization_error(counted.value_counts(0), kInt8, {1.0F, 1}).clipped, 4);
}

TEST(QuantizationErrorKnownTest, GroupsAddUp) {
  QuantizationError sum = quantization_error(ValueCounts::of({10.5F, 1000}), kInt8, {1.0F, 0});
  sum += quantization_error(ValueCounts::of({0.25F}), kInt8, {1.0F, 0});
  EXPECT_EQ(sum.total, 3);
  EXPECT_EQ(sum.clipped, 1);
  EXPECT_EQ(sum.squared_error, 0.25 + 873.0 * 873.0 + 0.0625);
  EXPECT_EQ(sum.squared_signal, 10.5 * 10.5 + 1e6 + 0.0625);
}

}  // namespace
}  // namespace amct
