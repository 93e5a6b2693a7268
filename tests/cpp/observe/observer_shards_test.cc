// Observers of shards of one tensor, side by side.
#include "amct/core/error.h"
#include "amct/observe/observer.h"

#include <algorithm>
#include <limits>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "support/data.h"
#include "support/expect_error.h"

namespace amct {
namespace {

using support::expect_error;
using support::make_tensor;
using support::Tensor;

constexpr std::int64_t kChannels = 12;
constexpr std::int64_t kHeads = 6;  // of the whole tensor
constexpr std::int64_t kRows = 30;

/// Channels [begin, end) of a tensor of rank 2.
Tensor channels_of(const Tensor& whole, std::int64_t begin, std::int64_t end) {
  const std::vector<float> values = whole.values();
  std::vector<float> part;
  for (std::int64_t row = 0; row < whole.shape[0]; ++row) {
    for (std::int64_t channel = begin; channel < end; ++channel)
      part.push_back(values[static_cast<std::size_t>(row * whole.shape[1] + channel)]);
  }
  return make_tensor(whole.dtype, {whole.shape[0], end - begin}, part);
}

std::vector<Tensor> batches_of(const std::vector<DType>& dtypes) {
  std::vector<Tensor> batches;
  for (unsigned seed = 1; seed <= 4; ++seed) {
    std::vector<float> x = support::sample(support::Distribution::kHeavyTailed,
                                           static_cast<std::size_t>(kRows * kChannels), seed);
    if (seed == 2) x[17] = std::numeric_limits<float>::infinity();
    batches.push_back(make_tensor(dtypes[seed % dtypes.size()], {kRows, kChannels}, x));
  }
  return batches;
}

/// Bytes by which float32 values are kept, some of the shards are sketched, or all are.
constexpr std::size_t kNever = 1U << 20;
constexpr std::size_t kWholeOnly = 2 * kRows * kChannels * sizeof(float);
constexpr std::size_t kAlways = 64;

struct Kind {
  Granularity granularity;
  bool range_only;
  std::size_t sample_bytes;
};

Observer observer_of(const Kind& kind, std::int64_t heads) {
  return Observer(kind.granularity, {.nonfinite = NonFinitePolicy::kSkip,
                                     .range_only = kind.range_only,
                                     .sample_bytes = kind.sample_bytes,
                                     .heads = heads});
}

void expect_same(const Observer& a, const Observer& b) {
  EXPECT_TRUE(a.same_values(b));
  ASSERT_EQ(a.groups(), b.groups());
  EXPECT_EQ(a.is_sketch(), b.is_sketch());
  EXPECT_EQ(a.rows(), b.rows());
  EXPECT_EQ(a.batches(), b.batches());
  EXPECT_EQ(a.channels(), b.channels());
  EXPECT_EQ(a.non_finite_count(), b.non_finite_count());
  for (std::size_t group = 0; group < a.groups(); ++group) {
    if (a.is_range_only()) {
      EXPECT_EQ(a.range(group).min, b.range(group).min);
      EXPECT_EQ(a.range(group).max, b.range(group).max);
    } else {
      EXPECT_EQ(a.value_counts(group), b.value_counts(group)) << group;
    }
  }
}

using Case = std::tuple<Granularity, bool, std::size_t, std::vector<DType>>;

class ShardsTest : public testing::TestWithParam<Case> {};

TEST_P(ShardsTest, AreWhatOneObserverSees) {
  const auto& [granularity, range_only, sample_bytes, dtypes] = GetParam();
  const Kind kind{granularity, range_only, sample_bytes};
  // The ends of the shards: of one, equal, unequal, and of one head each (also of one channel).
  const std::vector<std::vector<std::int64_t>> cuts{
      {12}, {6, 12}, {2, 6, 12}, {4, 6, 8, 10, 12}, {1, 2, 12}};
  for (const std::vector<std::int64_t>& ends : cuts) {
    const std::int64_t width = kChannels / kHeads;
    if (granularity == Granularity::kPerHead && ends.front() % width != 0) continue;
    Observer whole = observer_of(kind, kHeads);
    std::vector<Observer> shards;
    for (std::int64_t begin = 0; const std::int64_t end : ends) {
      shards.push_back(observer_of(kind, std::max<std::int64_t>(1, (end - begin) / width)));
      begin = end;
    }
    for (const Tensor& batch : batches_of(dtypes)) {
      whole.observe(batch.view());
      for (std::size_t i = 0; i < ends.size(); ++i) {
        const Tensor part = channels_of(batch, i == 0 ? 0 : ends[i - 1], ends[i]);
        shards[i].observe(part.view());
      }
    }
    Observer joined = Observer::side_by_side(shards);
    expect_same(joined, whole);
    // It goes on as the other one would, and through bytes.
    const Tensor more = batches_of(dtypes).back();
    joined.observe(more.view());
    whole.observe(more.view());
    expect_same(Observer::deserialize(joined.serialize()), whole);
    joined.merge(whole);
    EXPECT_EQ(joined.rows(), 2 * whole.rows());
  }
}

INSTANTIATE_TEST_SUITE_P(
    All, ShardsTest,
    testing::Combine(
        testing::Values(Granularity::kPerTensor, Granularity::kPerChannel, Granularity::kPerHead),
        testing::Bool(), testing::Values(kNever, kWholeOnly, kAlways),
        testing::Values(std::vector{DType::kFloat32}, std::vector{DType::kBFloat16},
                        std::vector{DType::kFloat16},
                        std::vector{DType::kBFloat16, DType::kFloat32, DType::kFloat16})));

TEST(SideBySideTest, KeepWeights) {
  std::vector<Observer> shards;
  for (int i = 0; i < 2; ++i) shards.emplace_back(Granularity::kPerChannel);
  const Tensor batch = make_tensor(DType::kBFloat16, {3, 2}, std::vector<float>(6, 1.5F));
  for (Observer& shard : shards) shard.observe(batch.view());
  shards[0].add_channel_weights(std::vector<std::uint64_t>{7, 8});
  expect_error<StateError>([&] { Observer::side_by_side(shards); }, {"weights"});
  expect_error<StateError>([&] { shards[0].take_weights_of(shards[1]); }, {"weights"});
  shards[1].add_channel_weights(std::vector<std::uint64_t>{1, 2});
  const Observer joined = Observer::side_by_side(shards);
  EXPECT_EQ((std::vector<std::uint64_t>{7, 8, 1, 2}),
            (std::vector<std::uint64_t>(joined.channel_weights().begin(),
                                        joined.channel_weights().end())));
  EXPECT_TRUE(shards[0].same_values(shards[1]));
  shards[0].take_weights_of(shards[1]);
  EXPECT_EQ(shards[0].channel_weights()[1], 10U);
  EXPECT_EQ(shards[0].rows(), 3);
}

TEST(SideBySideTest, AreRefusedWhereTheyAreNotOfOneTensor) {
  const Tensor batch = make_tensor(DType::kFloat32, {3, 4}, std::vector<float>(12, 1.5F));
  const Tensor wide = make_tensor(DType::kFloat32, {3, 8}, std::vector<float>(24, 1.5F));
  const auto refused = [&](Observer first, const Tensor& a, Observer second, const Tensor& b,
                           const std::string& what) {
    first.observe(a.view());
    second.observe(b.view());
    EXPECT_FALSE(first.same_values(second)) << what;
    std::vector<Observer> shards;
    shards.push_back(std::move(first));
    shards.push_back(std::move(second));
    expect_error<StateError>([&] { Observer::side_by_side(shards); }, {"shards 0 and 1", what});
  };
  const auto per = [](Granularity granularity, std::int64_t heads = 1, bool range_only = false) {
    return Observer(granularity, {.range_only = range_only, .heads = heads});
  };
  refused(per(Granularity::kPerTensor), batch, per(Granularity::kPerChannel), batch,
          "granularities");
  refused(per(Granularity::kPerTensor), batch, per(Granularity::kPerTensor, 1, true), batch,
          "different ways");
  refused(per(Granularity::kPerHead, 2), batch, per(Granularity::kPerHead, 2), wide,
          "heads of 2 and of 4 channels");
  refused(per(Granularity::kPerTensor), batch, per(Granularity::kPerTensor), batch.rows(0, 2),
          "different batches: 1 with 3 rows, and 1 with 2;");
  expect_error<ValueError>([] { Observer::side_by_side({}); }, {"no shards"});
}

TEST(SideBySideTest, CopiesAreToldFromOthers) {
  std::vector<float> values = support::sample(support::Distribution::kNormal, 24, 1);
  for (const Granularity granularity : {Granularity::kPerTensor, Granularity::kPerChannel}) {
    for (const DType dtype : support::kAllDTypes) {
      for (const bool range_only : {false, true}) {
        Observer a(granularity, {.range_only = range_only});
        Observer b(granularity, {.range_only = range_only});
        a.observe(make_tensor(dtype, {6, 4}, values).view());
        b.observe(make_tensor(dtype, {6, 4}, values).view());
        EXPECT_TRUE(a.same_values(b));
        std::vector<float> other = values;
        other[9] = 77;
        Observer c(granularity, {.range_only = range_only});
        c.observe(make_tensor(dtype, {6, 4}, other).view());
        EXPECT_FALSE(a.same_values(c));
      }
    }
  }
}

}  // namespace
}  // namespace amct
