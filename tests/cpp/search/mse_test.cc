#include "amct/search/mse.h"

#include "amct/core/error.h"
#include "amct/search/hfmg.h"
#include "amct/search/ifmr.h"
#include "amct/search/minmax.h"
#include "amct/search/quantization_error.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <string>
#include <tuple>
#include <vector>

#include <gtest/gtest.h>

#include "support/data.h"
#include "support/expect_error.h"
#include "support/reference.h"

namespace amct {
namespace {

using support::Distribution;

class MseTest : public testing::TestWithParam<std::tuple<Distribution, bool>> {
 protected:
  static std::vector<float> values(std::size_t size, unsigned seed) {
    return support::sample(std::get<0>(GetParam()), size, seed);
  }
  static bool with_offset() { return std::get<1>(GetParam()); }
};

INSTANTIATE_TEST_SUITE_P(AllData, MseTest,
                         testing::Combine(testing::ValuesIn(support::kAllDistributions),
                                          testing::Bool()),
                         [](const auto& info) {
                           return support::name_of(std::get<0>(info.param)) +
                                  (std::get<1>(info.param) ? "WithOffset" : "Symmetric");
                         });

TEST_P(MseTest, IsNoWorseThanTheOtherSearchesAndTellsItsLoss) {
  // Without bins, with bins of samples, and in chunks.
  for (const std::size_t size : {300U, 5000U, 70000U}) {
    const std::vector<float> x = values(size, 1);
    const ValueCounts counts = ValueCounts::of(x);
    const SearchResult result = mse(counts, {.with_offset = with_offset()});
    ASSERT_TRUE(std::isfinite(result.params.scale));
    const double error = support::reference_int8_mse(x, result.params);
    const double noise = support::reference_noise(x);
    EXPECT_NEAR(result.loss, error, 1e-6 * error + noise);
    const auto error_of = [&](const SearchResult& other) {
      return support::reference_int8_mse(x, other.params);
    };
    EXPECT_LE(error, (1 + 1e-9) * error_of(minmax(counts, {.with_offset = with_offset()})) + noise);
    EXPECT_LE(error, 1.005 * error_of(ifmr(counts, {.with_offset = with_offset()})) + noise);
    EXPECT_LE(error, 1.02 * error_of(hfmg(counts, {.with_offset = with_offset()})) + noise);
  }
}

TEST_P(MseTest, CountsAndSamplesGiveTheSameAnswer) {
  const std::vector<float> x = values(5000, 2);
  const ValueCounts samples = ValueCounts::of(x);
  const SearchResult a = mse(samples, {.with_offset = with_offset()});
  const SearchResult b = mse(samples.sorted(), {.with_offset = with_offset()});
  const double noise = support::reference_noise(x);
  EXPECT_NEAR(a.loss, b.loss, 5e-3 * a.loss + noise);
}

TEST(MseKnownTest, ComesCloseToTheBestOfAllRanges) {
  std::vector<float> x = support::sample(Distribution::kNormal, 4000, 3);
  for (std::size_t i = 0; i < x.size(); i += 500) x[i] *= 12;    // outliers,
  for (float& value : x) value = value > 0 ? 3 * value : value;  // and ends that differ
  const ValueCounts counts = ValueCounts::of(x);
  const auto [low, high] = std::ranges::minmax(x);
  for (const bool with_offset : {true, false}) {
    double best = std::numeric_limits<double>::infinity();
    for (int i = 0; i <= 120; ++i) {
      for (int j = 0; j <= (with_offset ? 120 : 0); ++j) {
        const float a = low * static_cast<float>(std::exp2(-i / 24.0));
        const float b = high * static_cast<float>(std::exp2(-(with_offset ? j : i) / 24.0));
        best = std::min(
            best,
            quantization_error(counts, kInt8, support::reference_minmax(a, b, with_offset)).mse());
      }
    }
    const QuantParams params = mse(counts, {.with_offset = with_offset}).params;
    EXPECT_LE(support::reference_int8_mse(x, params), 1.005 * best) << with_offset;
  }
}

TEST(MseKnownTest, OneHugeOutlierDoesNotHideTheOthers) {
  std::vector<float> x = support::sample(Distribution::kNormal, 100000, 4);
  x[7] = 1000;
  for (const bool with_offset : {true, false}) {
    const SearchResult result = mse(ValueCounts::of(x), {.with_offset = with_offset});
    // Clipping 1000 to c costs (1000 - c)^2 / n, at least 10 where c is small; rounding costs
    // c^2 / 12 / (127 or 255)^2: the best c is close to 1000.
    EXPECT_GT(result.clip_max, 500) << with_offset;
  }
  x[7] = 30;  // now it is better clipped
  const SearchResult result = mse(ValueCounts::of(x), {.with_offset = false});
  EXPECT_LT(result.clip_max, 25);
}

TEST(MseKnownTest, SquaresBeyondFloat32) {
  for (const std::size_t size : {300U, 5000U}) {
    std::vector<float> x = support::sample(Distribution::kNormal, size, 5);
    const double small = mse(ValueCounts::of(x)).params.scale;
    for (float& value : x) value *= 0x1p80F;
    EXPECT_NEAR(mse(ValueCounts::of(x)).params.scale / (small * 0x1p80), 1, 0.05);
  }
}

TEST(MseKnownTest, WholeNumbersAreKeptExactly) {
  std::vector<float> x;
  for (int i = -128; i < 128; ++i) x.push_back(static_cast<float>(i));
  const SearchResult result = mse(ValueCounts::of(x));
  EXPECT_EQ(result.loss, 0);
  EXPECT_EQ(result.params, (QuantParams{1, 0}));
}

TEST(MseKnownTest, NothingToSearch) {
  support::expect_error<StateError>([] { mse({}); }, {"no finite value"});
}

}  // namespace
}  // namespace amct
