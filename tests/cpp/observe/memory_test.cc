// What observers take at most, measured as the memory of the process.
#include "support/memory.h"

#include "amct/observe/observer.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <tuple>
#include <vector>

#include <gtest/gtest.h>
#include <malloc.h>
#include <tbb/global_control.h>

#include "support/data.h"

namespace amct {
namespace {

using support::kSanitized;
using support::resident_bytes;
using support::Tensor;

constexpr std::size_t kKiB = 1024;
constexpr std::size_t kMiB = 1024 * kKiB;
// Of the process itself, and of what is used and let go of meanwhile.
constexpr std::size_t kElse = 4 * kMiB;
constexpr std::size_t kPatterns = 65536;

/// Lets go of what tests before gave back, which would be used again and not be seen. What is given
/// back from here on leaves the process at once, as it does in one that has done nothing else: the
/// allocator keeps more once large pieces were given back.
void forget_tests_before() {
  // NOLINTBEGIN(concurrency-mt-unsafe): no thread allocates between two tests
  ::mallopt(M_MMAP_THRESHOLD, 1 << 17);
  ::mallopt(M_TRIM_THRESHOLD, 1 << 17);
  // NOLINTEND(concurrency-mt-unsafe)
  ::malloc_trim(0);
}

class MemoryTest : public testing::TestWithParam<std::tuple<DType, Granularity>> {};

INSTANTIATE_TEST_SUITE_P(All, MemoryTest,
                         testing::Combine(testing::Values(DType::kBFloat16, DType::kFloat16),
                                          testing::Values(Granularity::kPerTensor,
                                                          Granularity::kPerChannel)),
                         [](const auto& param) {
                           return std::string(name_of(std::get<0>(param.param))) + "_" +
                                  std::string(name_of(std::get<1>(param.param)));
                         });

/// Every pattern there is, in each channel; then so often that no counter is of 32 bits any more.
TEST_P(MemoryTest, CountersOf16BitTypesTakeHalfAMebibyteAGroupAtMost) {
  const auto [dtype, granularity] = GetParam();
  constexpr std::int64_t kChannels = 16;
  const bool is_per_channel = granularity == Granularity::kPerChannel;
  const std::size_t groups = is_per_channel ? kChannels : 1;
  const std::size_t number = 64 / groups;
  Tensor every = support::make_tensor(dtype, {kPatterns, kChannels},
                                      std::vector<float>(kPatterns * kChannels));
  std::vector<std::uint16_t> patterns;
  std::vector<std::size_t> begins{0};
  for (std::size_t i = 0; i < kPatterns; ++i) {
    const auto pattern = static_cast<std::uint16_t>(i);
    for (std::size_t channel = 0; channel < kChannels; ++channel)
      std::memcpy(&every.bytes[2 * (i * kChannels + channel)], &pattern, 2);
  }
  for (std::size_t group = 0; group < groups; ++group) {
    for (std::size_t i = 0; i < kPatterns; ++i) patterns.push_back(static_cast<std::uint16_t>(i));
    begins.push_back(patterns.size());
  }
  const std::vector<std::uint64_t> counts(patterns.size(), std::uint64_t{1} << 33);
  CountedBatches often;
  often.dtype = dtype;
  often.channels = kChannels;
  often.rows = static_cast<std::int64_t>((std::uint64_t{1} << 33) * kPatterns /
                                         (is_per_channel ? 1 : kChannels));
  often.batches = 1;
  often.group_begin = begins;
  often.patterns = patterns;
  often.counts = counts;

  const ObserverOptions options{.nonfinite = NonFinitePolicy::kSkip};
  Observer first(granularity, options);
  first.observe(every.view());  // what all layers share is there from then on
  std::vector<Observer> layers;
  layers.reserve(number);
  for (std::size_t i = 0; i < number; ++i) layers.emplace_back(granularity, options);
  forget_tests_before();
  const std::size_t before = resident_bytes();
  for (Observer& layer : layers) {
    layer.observe(every.view());
    layer.add_counts(often);
    layer.observe(every.view());
  }
  // Per channel, 16 KiB of rows that wait to be counted, and where the counters are.
  const std::size_t group_bytes = (512 + (is_per_channel ? 16 + 8 : 0)) * kKiB;
  if (!kSanitized) {
    EXPECT_LE(resident_bytes(), before + number * groups * group_bytes + kElse);
    // Or nothing is measured.
    EXPECT_GE(resident_bytes() + kElse, before + number * groups * 256 * kKiB);
  }
  const std::uint64_t times = (std::uint64_t{1} << 33) + (is_per_channel ? 2 : 2 * kChannels);
  for (const Observer& layer : layers) {
    const ValueCounts values = layer.value_counts(0);
    EXPECT_EQ(values.counts().back(), times);
  }
}

class FloatMemoryTest : public testing::TestWithParam<Granularity> {};

INSTANTIATE_TEST_SUITE_P(All, FloatMemoryTest,
                         testing::Values(Granularity::kPerTensor, Granularity::kPerChannel),
                         [](const auto& param) { return std::string(name_of(param.param)); });

/// Values of all magnitudes, of which a sketch has most to keep.
Tensor wide_batch(std::int64_t rows, std::int64_t channels, std::uint32_t seed) {
  std::vector<float> values(static_cast<std::size_t>(rows * channels));
  std::uint32_t state = seed;
  for (float& value : values) {
    state = state * 1664525U + 1013904223U;
    const std::uint32_t exponent = 64 + (state >> 8) % 62;
    state = state * 1664525U + 1013904223U;
    const std::uint32_t bits = (state & 0x80000000U) | exponent << 23 | ((state >> 7) & 0x7FFFFFU);
    std::memcpy(&value, &bits, 4);
  }
  return support::make_tensor(DType::kFloat32, {rows, channels}, values);
}

TEST_P(FloatMemoryTest, ALayerTakesItsShareAndThenASketch) {
  constexpr std::int64_t kChannels = 64;
  constexpr std::int64_t kRows = 16384;  // 4 MiB a batch
  constexpr std::size_t kShare = 64 * kMiB;
  const std::size_t sketch = GetParam() == Granularity::kPerTensor ? kMiB : kChannels * 256 * kKiB;
  const Tensor batch = wide_batch(kRows, kChannels, 1);
  Observer warm(GetParam(), ObserverOptions{.sample_bytes = 0});
  warm.observe(batch.view());  // what all layers share is there from then on
  forget_tests_before();
  const std::size_t before = resident_bytes();
  Observer observer(GetParam(), ObserverOptions{.sample_bytes = kShare});
  std::size_t most = 0;
  bool was_exact = false;
  for (int i = 0; i < 40; ++i) {
    observer.observe(batch.view());
    most = std::max(most, resident_bytes());
    was_exact = was_exact || !observer.is_sketch();
    EXPECT_LE(observer.sample_bytes(), kShare);
  }
  EXPECT_TRUE(was_exact && observer.is_sketch());
  if (!kSanitized) {
    // With what threads turn and count in, and smaller arrays that are kept for others.
    EXPECT_LE(most, before + kShare + sketch + 5 * kElse);
  }
}

TEST_P(FloatMemoryTest, ASketchTakesAMebibytePerTensorOrAQuarterOfItAChannel) {
  constexpr std::int64_t kChannels = 64;
  const bool is_per_channel = GetParam() == Granularity::kPerChannel;
  const std::size_t sketch = is_per_channel ? kChannels * 256 * kKiB : kMiB;
  const std::size_t number = 64 * kMiB / sketch;  // so many that kElse is little beside them
  const Tensor batch = wide_batch(16384, kChannels, 2);
  // What each thread counts in, for all layers, is a sketch of its own.
  const tbb::global_control one_thread(tbb::global_control::max_allowed_parallelism, 1);
  const ObserverOptions options{.sample_bytes = 0};
  Observer first(GetParam(), options);
  first.observe(batch.view());  // what all layers share is there from then on
  std::vector<Observer> layers;
  layers.reserve(number);
  for (std::size_t i = 0; i < number; ++i) layers.emplace_back(GetParam(), options);
  forget_tests_before();
  const std::size_t before = resident_bytes();
  for (Observer& layer : layers) {
    layer.observe(batch.view());
    // Merged with itself, a sketch doubles: until no counter is of 32 bits any more.
    for (int i = 0; i < 33; ++i) layer.merge(layer);
  }
  if (!kSanitized) {
    EXPECT_LE(resident_bytes(), before + number * sketch + kElse);
    // Of 64 binades, values below 2^-60 of the largest have none.
    EXPECT_GE(resident_bytes() + kElse, before + number * sketch / 64 * 60);
  }
}

}  // namespace
}  // namespace amct
