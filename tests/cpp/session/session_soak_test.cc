// A long run in small: as many calls as days of calibration make, memory as it was at their
// beginning, and counts that have long left 32 bits.
#include "amct/observe/observer.h"
#include "amct/search/search.h"
#include "amct/session/session.h"

#include <array>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "support/data.h"
#include "support/files.h"
#include "support/memory.h"

namespace amct {
namespace {

using support::kSanitized;
using support::resident_bytes;
using support::Tensor;

constexpr std::int64_t kCalls = kSanitized ? 20'000 : 1'000'000;
constexpr std::uint64_t kTwo32 = std::uint64_t{1} << 32;

/// An observer's batch of 2 channels that hold 1 and 2, `times` over, as if counted before.
CountedBatches many(std::uint64_t times, const std::vector<std::uint64_t>& counts,
                    const std::array<std::uint16_t, 2>& patterns,
                    const std::array<std::size_t, 3>& begins, std::size_t groups) {
  CountedBatches batches;
  batches.channels = 2;
  batches.rows = static_cast<std::int64_t>(times);
  batches.batches = 1;
  batches.group_begin = std::span(begins).first(groups + 1);
  batches.patterns = patterns;
  batches.counts = counts;
  return batches;
}

class SoakTest : public testing::TestWithParam<Granularity> {};

INSTANTIATE_TEST_SUITE_P(All, SoakTest,
                         testing::Values(Granularity::kPerTensor, Granularity::kPerChannel),
                         [](const auto& param) { return std::string(name_of(param.param)); });

TEST_P(SoakTest, AMillionCallsCarryCountsPast32BitsInTheSameMemory) {
  const bool channels = GetParam() == Granularity::kPerChannel;
  const std::uint64_t before = kTwo32 - static_cast<std::uint64_t>(kCalls) / 2;
  const std::array<std::uint16_t, 2> patterns{support::to_bfloat16(1), support::to_bfloat16(2)};
  const std::array<std::size_t, 3> begins =
      channels ? std::array<std::size_t, 3>{0, 1, 2} : std::array<std::size_t, 3>{0, 2, 2};
  const std::vector<std::uint64_t> counts{before, before};
  Observer observer(GetParam());
  observer.add_counts(many(before, counts, patterns, begins, channels ? 2 : 1));

  const Tensor batch = support::make_tensor(DType::kBFloat16, {1, 2}, {1, 2});
  const TensorView view = batch.view();
  std::size_t early = 0;
  for (std::int64_t call = 0; call < kCalls; ++call) {
    observer.observe(view);
    if (call == kCalls / 10) early = resident_bytes();
  }
  if (!kSanitized) {
    EXPECT_LE(resident_bytes(), early + (std::size_t{1} << 20));
  }

  const std::uint64_t after = before + static_cast<std::uint64_t>(kCalls);
  ASSERT_GT(after, kTwo32);
  EXPECT_EQ(observer.rows(), static_cast<std::int64_t>(after));
  EXPECT_EQ(observer.batches(), kCalls + 1);
  if (channels) {
    EXPECT_EQ(observer.value_counts(0), ValueCounts({1}, {after}));
    EXPECT_EQ(observer.value_counts(1), ValueCounts({2}, {after}));
  } else {
    EXPECT_EQ(observer.value_counts(0), ValueCounts({1, 2}, {after, after}));
  }
}

class SessionSoakTest : public support::FolderTest {};

TEST_F(SessionSoakTest, AMillionCallsAndASnapshotNowAndThenInTheSameMemory) {
  const std::vector<std::string> names{"bf16", "float32", "float16"};
  CalibrationConfig config = default_config(names, algorithm_catalog());
  config.batch_num = kCalls;
  config.layers[1].algorithm = "minmax";
  config.layers[1].options = find_spec(algorithm_catalog(), "minmax")->defaults();
  config.layers[2].granularity = Granularity::kPerChannel;
  const std::vector<Tensor> batches{support::make_tensor(DType::kBFloat16, {2, 2}, {-1, 0.5, 2, 1}),
                                    support::make_tensor(DType::kFloat32, {2, 2}, {-1, 0.5, 2, 1}),
                                    support::make_tensor(DType::kFloat16, {2, 2}, {-1, 0.5, 2, 1})};
  Session session(config, folder / "record.txt", {.search_in_background = true});
  std::size_t early = 0;
  for (std::int64_t call = 0; call < kCalls; ++call) {
    for (std::size_t layer = 0; layer < names.size(); ++layer) {
      session.observe(names[layer], batches[layer].view());
    }
    if (call % (kCalls / 50) == 1) session.save(folder / "state", call + 1);
    if (call == kCalls / 10) early = resident_bytes();
  }
  if (!kSanitized) {
    EXPECT_LE(resident_bytes(), early + (std::size_t{1} << 20));
  }
  const std::vector<LayerResult> results = session.results();
  ASSERT_EQ(results.size(), names.size());
  for (const LayerResult& layer : results) {
    EXPECT_EQ(layer.batches, kCalls) << layer.name;
    EXPECT_EQ(layer.rows, 2 * kCalls) << layer.name;
  }
}

}  // namespace
}  // namespace amct
