#include "observe/channel_counts.h"

#include <array>
#include <bit>
#include <cstdint>
#include <mutex>
#include <random>
#include <vector>

#include <gtest/gtest.h>

#include "observe/counter_page.h"
#include "observe/tensor_counts.h"

namespace amct {
namespace {

constexpr std::int64_t kStaged = ChannelCounts::kStagedRows;

/// Patterns that lie in few pages, zeros of both signs and non-finite ones among them.
std::vector<std::uint16_t> random_patterns(std::int64_t size, unsigned seed) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal;
  std::vector<std::uint16_t> patterns;
  for (std::int64_t i = 0; i < size; ++i) {
    const auto bits = std::bit_cast<std::uint32_t>(normal(generator));
    const std::array<std::uint16_t, 4> special{0, 0x8000, 0x7F80,
                                               static_cast<std::uint16_t>(generator())};
    const auto choice = generator() % 100;
    patterns.push_back(choice < special.size() ? special[choice]
                                               : static_cast<std::uint16_t>(bits >> 16));
  }
  return patterns;
}

ValueCounts counts_of_channel(const std::vector<std::uint16_t>& patterns, std::int64_t channels,
                              std::int64_t channel, DType dtype) {
  TensorCounts counts(dtype);
  for (auto i = static_cast<std::size_t>(channel); i < patterns.size();
       i += static_cast<std::size_t>(channels))
    counts.add(patterns[i]);
  return counts.value_counts();
}

void expect_counts(const ChannelCounts& counts, const std::vector<std::uint16_t>& patterns,
                   std::int64_t channels, DType dtype) {
  std::mutex mutex;
  std::vector<int> visits(static_cast<std::size_t>(channels));
  counts.visit([&](std::size_t channel, const ValueCounts& values) {
    const std::lock_guard lock(mutex);
    ++visits[channel];
    ASSERT_EQ(values,
              counts_of_channel(patterns, channels, static_cast<std::int64_t>(channel), dtype))
        << "channel " << channel;
    ASSERT_EQ(values, counts.value_counts(channel));
  });
  EXPECT_EQ(visits, std::vector<int>(static_cast<std::size_t>(channels), 1));
}

class ChannelCountsTest : public testing::TestWithParam<std::int64_t> {};

// Around the width of a strip, 32 channels.
INSTANTIATE_TEST_SUITE_P(Channels, ChannelCountsTest, testing::Values(1, 5, 31, 32, 33, 70));

TEST_P(ChannelCountsTest, BatchesOfAnySizeAddUp) {
  const std::int64_t channels = GetParam();
  for (const DType dtype : {DType::kBFloat16, DType::kFloat16}) {
    // Single tokens, staged batches, and one that fills the stage more than twice.
    ChannelCounts counts(dtype, channels);
    std::vector<std::uint16_t> all;
    for (const std::int64_t rows : {std::int64_t{1}, std::int64_t{1}, std::int64_t{300},
                                    kStaged - 302, std::int64_t{1}, 2 * kStaged + 7}) {
      const auto patterns = random_patterns(rows * channels, static_cast<unsigned>(rows));
      counts.add(TensorView::contiguous(patterns.data(), dtype, {rows, channels}));
      all.insert(all.end(), patterns.begin(), patterns.end());
      if (rows != kStaged - 302) continue;
      expect_counts(counts, all, channels, dtype);  // the stage is full
    }
    expect_counts(counts, all, channels, dtype);
  }
}

TEST_P(ChannelCountsTest, MergesAddUpWithThemselvesToo) {
  const std::int64_t channels = GetParam();
  const DType dtype = DType::kBFloat16;
  for (const std::int64_t rows : {std::int64_t{9}, kStaged - 3, kStaged + 20}) {
    const auto patterns = random_patterns(rows * channels, 5);
    ChannelCounts counts(dtype, channels);
    counts.add(TensorView::contiguous(patterns.data(), dtype, {rows, channels}));
    ChannelCounts other(dtype, channels);
    other.merge(counts);
    other.merge(counts);
    counts.merge(counts);
    std::vector<std::uint16_t> twice = patterns;
    twice.insert(twice.end(), patterns.begin(), patterns.end());
    expect_counts(counts, twice, channels, dtype);
    expect_counts(other, twice, channels, dtype);
  }
}

TEST(ChannelCountsTest, CountsGoOnPast16And32Bits) {
  const std::vector<std::uint16_t> patterns{0x3F80, 0x4000, 0x4000, 0x3F80};
  ChannelCounts counts(DType::kBFloat16, 2);
  counts.add(TensorView::contiguous(patterns.data(), DType::kBFloat16, {2, 2}));
  std::uint64_t times = 1;
  for (int i = 0; i < 40; ++i, times *= 2) counts.merge(counts);
  for (std::size_t channel = 0; channel < 2; ++channel)
    EXPECT_EQ(counts.value_counts(channel), ValueCounts({1, 2}, {times, times}));
}

TEST(CounterPageTest, CountersWidenAsTheirCountsGrow) {
  CounterPage page;
  EXPECT_TRUE(page.empty());
  EXPECT_EQ(page.bytes(), 0U);
  CounterPage::Counts expected{};
  const auto add = [&](std::size_t i, std::uint64_t count) {
    CounterPage::Counts counts{};
    counts[i] = count;
    page.add(counts);
    expected[i] += count;
    EXPECT_EQ(page.counts(), expected);
  };
  add(3, 0xFFFF);
  EXPECT_FALSE(page.empty());
  EXPECT_EQ(page.bytes(), 512U);
  add(255, 1);
  EXPECT_EQ(page.bytes(), 512U);
  add(3, 1);
  EXPECT_EQ(page.bytes(), 1024U);
  add(3, 0xFFFFFFFFU - 0x10000);
  EXPECT_EQ(page.bytes(), 1024U);
  add(3, 1);
  EXPECT_EQ(page.bytes(), 2048U);
  add(3, std::uint64_t{1} << 60);
}

}  // namespace
}  // namespace amct
