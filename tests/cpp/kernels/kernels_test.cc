// Every kernel against its scalar twin, bit for bit, on every instruction set of this machine.
#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include <gtest/gtest.h>

#include "kernels/bins.h"
#include "kernels/collect.h"
#include "kernels/count.h"
#include "kernels/every_target.h"
#include "kernels/rounding_error.h"
#include "kernels/scan.h"
#include "kernels/turn.h"
#include "support/data.h"

namespace amct::kernels {
namespace {

using support::Distribution;
using support::on_every_target;

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

// Sizes around the vector sizes and the blocks of the kernels.
constexpr std::size_t kSizes[] = {1,  3,  7,  8,    15,   16,   17,   31,
                                  63, 64, 65, 1000, 4095, 4096, 4097, 9001};

std::vector<std::uint16_t> halves(DType dtype, const std::vector<float>& values) {
  std::vector<std::uint16_t> patterns;
  for (const float value : values) {
    patterns.push_back(dtype == DType::kFloat16 ? support::to_float16(value)
                                                : support::to_bfloat16(value));
  }
  return patterns;
}

class KernelTest : public testing::TestWithParam<Distribution> {
 protected:
  static std::vector<float> values(std::size_t size) {
    return support::sample(GetParam(), size, 7);
  }
};

TEST_P(KernelTest, ScanOfFloats) {
  on_every_target([] {
    for (const std::size_t size : kSizes) {
      std::vector<float> x = values(size);
      EXPECT_EQ(scan_float32(x.data(), x.size()), scan_float32_scalar(x.data(), x.size()));
      for (const float bad : {kInfinity, -kInfinity, kNaN}) {
        x[x.size() / 2] = bad;
        const ScanResult found = scan_float32(x.data(), x.size());
        EXPECT_EQ(found, scan_float32_scalar(x.data(), x.size()));
        EXPECT_EQ(found.non_finite, 1);
      }
    }
  });
}

TEST_P(KernelTest, ScanOfHalves) {
  on_every_target([] {
    for (const DType dtype : {DType::kFloat16, DType::kBFloat16}) {
      for (const std::size_t size : kSizes) {
        std::vector<std::uint16_t> x = halves(dtype, values(size));
        EXPECT_EQ(scan_half(dtype, x.data(), x.size()),
                  scan_half_scalar(dtype, x.data(), x.size()));
        for (const int bad : {0, 0x8000, 1}) {  // +inf, -inf, NaN
          x.back() = static_cast<std::uint16_t>(exponent_mask(dtype) | bad);
          const ScanResult found = scan_half(dtype, x.data(), x.size());
          EXPECT_EQ(found, scan_half_scalar(dtype, x.data(), x.size()));
          EXPECT_EQ(found.non_finite, 1);
        }
      }
    }
  });
}

TEST_P(KernelTest, MagnitudeRangeOfHalves) {
  on_every_target([] {
    for (const DType dtype : {DType::kFloat16, DType::kBFloat16}) {
      for (const std::size_t size : kSizes) {
        std::vector<std::uint16_t> x = halves(dtype, values(size));
        EXPECT_EQ(magnitude_range(x.data(), x.size()), magnitude_range_scalar(x.data(), x.size()));
        x.front() = 0x8000;
        x.back() = 0xFFFF;
        EXPECT_EQ(magnitude_range(x.data(), x.size()), magnitude_range_scalar(x.data(), x.size()));
      }
    }
  });
}

TEST_P(KernelTest, CollectedPages) {
  on_every_target([] {
    for (const DType dtype : {DType::kFloat16, DType::kBFloat16}) {
      std::vector<std::uint16_t> x = halves(dtype, values(9001));
      x.push_back(0x7FFF);
      x.push_back(exponent_mask(dtype));
      std::vector<std::uint16_t> table(kPatterns);
      count_patterns(x.data(), x.size(), table.data());
      std::vector<std::uint16_t> twin = table;
      for (std::size_t page = 0; page < kPatterns / kPageSize; ++page) {
        std::vector<float> found(kPageSize + kCollectSlack);
        std::vector<float> expected = found;
        std::vector<std::uint32_t> counts(found.size());
        std::vector<std::uint32_t> expected_counts(found.size());
        const std::size_t written =
            collect_page(dtype, page, table.data(), found.data(), counts.data());
        ASSERT_EQ(written, collect_page_scalar(dtype, page, twin.data(), expected.data(),
                                               expected_counts.data()));
        for (std::size_t i = 0; i < written; ++i) {
          ASSERT_EQ(found[i], expected[i]);
          ASSERT_EQ(std::signbit(found[i]), std::signbit(expected[i]));
          ASSERT_EQ(counts[i], expected_counts[i]);
        }
      }
      EXPECT_EQ(table, std::vector<std::uint16_t>(kPatterns));
      EXPECT_EQ(twin, table);
    }
  });
}

TEST(CollectTest, EveryFloat16Widens) {
  on_every_target([] {
    std::vector<std::uint16_t> patterns(kPatterns + 5);
    for (std::size_t i = 0; i < patterns.size(); ++i) patterns[i] = static_cast<std::uint16_t>(i);
    std::vector<float> found(patterns.size());
    std::vector<float> expected(patterns.size());
    widen_float16(patterns.data(), patterns.size(), found.data());
    widen_float16_scalar(patterns.data(), patterns.size(), expected.data());
    for (std::size_t i = 0; i < found.size(); ++i) {
      ASSERT_EQ(std::bit_cast<std::uint32_t>(found[i]), std::bit_cast<std::uint32_t>(expected[i]))
          << i;
    }
  });
}

TEST(TurnTest, RowsBecomeColumns) {
  on_every_target([] {
    const auto check = [](auto bits) {
      using Bits = decltype(bits);
      constexpr std::size_t kWidth = kStripWidth<Bits>;
      for (const std::size_t rows : {1, 3, 4, 7, 8, 9, 256, 259}) {
        std::vector<Bits> strip(rows * kWidth);
        for (std::size_t i = 0; i < strip.size(); ++i) strip[i] = static_cast<Bits>(i * 7 + 1);
        const std::size_t pitch = rows + 5;
        std::vector<Bits> columns(kWidth * pitch);
        std::vector<Bits> expected(kWidth * pitch);
        turn(strip.data(), rows, columns.data(), pitch);
        turn_scalar(strip.data(), rows, expected.data(), pitch);
        EXPECT_EQ(columns, expected) << rows;
        EXPECT_EQ(columns[2 * pitch], strip[2]);
      }
    };
    check(std::uint16_t{});
    check(std::uint32_t{});
  });
}

TEST_P(KernelTest, CountOfPatterns) {
  for (const std::size_t size : kSizes) {
    const std::vector<std::uint16_t> x = halves(DType::kBFloat16, values(size));
    std::vector<std::uint32_t> tables(2 * kPatterns);
    std::vector<std::uint32_t> expected(kPatterns);
    count_patterns(x.data(), x.size(), tables.data(), tables.data() + kPatterns);
    count_patterns_scalar(x.data(), x.size(), expected.data());
    for (std::size_t i = 0; i < kPatterns; ++i)
      ASSERT_EQ(tables[i] + tables[kPatterns + i], expected[i]) << i;
    std::vector<std::uint16_t> narrow(kPatterns);
    count_patterns(x.data(), x.size(), narrow.data());
    EXPECT_TRUE(std::ranges::equal(narrow, expected));
  }
}

TEST_P(KernelTest, RoundingError) {
  on_every_target([] {
    for (const std::size_t size : kSizes) {
      const std::vector<float> x = values(size);
      std::vector<double> weights(x.size());
      std::vector<float> float_weights(x.size());
      for (std::size_t i = 0; i < x.size(); ++i) {
        float_weights[i] = static_cast<float>(1 + i % 5);
        weights[i] = float_weights[i];
      }
      for (const Rounding& r :
           {Rounding{0.03F, -3, 3}, Rounding{0.5F, -0.25F, 60}, Rounding{1, 0, 0}}) {
        EXPECT_EQ(rounding_error(x.data(), nullptr, x.size(), r),
                  rounding_error_scalar(x.data(), nullptr, x.size(), r));
        EXPECT_EQ(rounding_error(x.data(), weights.data(), x.size(), r),
                  rounding_error_scalar(x.data(), weights.data(), x.size(), r));
        const double quick = quick_rounding_error(x.data(), float_weights.data(), x.size(), r);
        const double scalar =
            quick_rounding_error_scalar(x.data(), float_weights.data(), x.size(), r);
        EXPECT_TRUE(quick == scalar || (std::isnan(quick) && std::isnan(scalar)))
            << quick << " " << scalar;
      }
    }
  });
}

TEST_P(KernelTest, QuickErrorsAreWithinTheirBound) {
  const std::vector<float> x = values(9001);
  const auto [low, high] = std::ranges::minmax(x);
  const float largest = std::max(std::fabs(low), std::fabs(high));
  for (const float share : {0.1F, 0.7F, 1.0F}) {
    const float limit = share * largest;
    const float scale = limit / 127 < 1e-7F ? 1.0F : limit / 127;
    const Rounding r{scale, -limit, limit};
    const double quick = quick_rounding_error(x.data(), nullptr, x.size(), r);
    if (!std::isfinite(quick)) continue;  // squares beyond float32 say nothing, and callers know
    const double exact = rounding_error(x.data(), nullptr, x.size(), r);
    EXPECT_LE(std::fabs(quick - exact), quick_error_bound(quick, static_cast<double>(x.size()), r))
        << share;
  }
}

TEST_P(KernelTest, BinIndices) {
  on_every_target([] {
    for (const std::size_t size : kSizes) {
      const std::vector<float> x = values(size);
      const auto [low, high] = std::ranges::minmax(x);
      const double range = static_cast<double>(high) - low;
      if (range == 0) continue;
      std::vector<std::uint32_t> found(x.size());
      std::vector<std::uint32_t> expected(x.size());
      bin_indices(x.data(), x.size(), low, range, 4096, found.data());
      bin_indices_scalar(x.data(), x.size(), low, range, 4096, expected.data());
      EXPECT_EQ(found, expected);
      EXPECT_EQ(*std::ranges::max_element(found), 4095U);
      for (const double from : {static_cast<double>(low), low + range / 3}) {
        const auto origin = static_cast<float>(from);
        const auto inverse = static_cast<float>(6000 / range);
        if (!std::isnormal(inverse) || !std::isfinite(high - low)) continue;  // positions are NaN
        const bool outside =
            quick_bin_indices(x.data(), x.size(), origin, inverse, 4096, found.data());
        EXPECT_EQ(outside, quick_bin_indices_scalar(x.data(), x.size(), origin, inverse, 4096,
                                                    expected.data()));
        EXPECT_EQ(outside, std::ranges::count(expected, 4096U) > 0);
        EXPECT_EQ(found, expected);
      }
    }
  });
}

TEST(BinsTest, SumsAtSteps) {
  on_every_target([] {
    const std::vector<float> table = support::sample(Distribution::kNormal, 500, 1);
    for (const std::size_t count : {0, 1, 7, 8, 9, 255}) {
      for (const double step : {0.3, 1.0, 7.7}) {
        EXPECT_EQ(sum_at_steps(table.data(), table.size(), 2.5, step, count),
                  sum_at_steps_scalar(table.data(), table.size(), 2.5, step, count));
      }
    }
    EXPECT_EQ(sum_at_steps(table.data(), 3, 0.9, 1, 3),
              static_cast<double>(table[0]) + table[1] + table[2]);
  });
}

INSTANTIATE_TEST_SUITE_P(AllData, KernelTest, testing::ValuesIn(support::kAllDistributions),
                         [](const auto& info) { return support::name_of(info.param); });

TEST(ScanTest, NothingIsAnEmptyRange) {
  const ScanResult nothing = scan_float32(nullptr, 0);
  EXPECT_EQ(nothing, empty_scan());
  EXPECT_GT(nothing.min, nothing.max);
  const float x[] = {2, -1};
  EXPECT_EQ(scan_float32(x, 2), (ScanResult{-1, 2, 0}));
}

}  // namespace
}  // namespace amct::kernels
