#include "amct/observe/observer.h"

#include "amct/core/error.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "support/data.h"
#include "support/expect_error.h"

namespace amct {
namespace {

using support::Distribution;
using support::expect_error;
using support::make_tensor;
using support::Tensor;

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInf = std::numeric_limits<float>::infinity();

std::vector<ValueCounts> all_counts(const Observer& observer) {
  std::vector<ValueCounts> result;
  for (std::size_t g = 0; g < observer.groups(); ++g) result.push_back(observer.value_counts(g));
  return result;
}

Tensor normal_tensor(DType dtype, std::vector<std::int64_t> shape, unsigned seed) {
  std::int64_t n = 1;
  for (const std::int64_t size : shape) n *= size;
  return make_tensor(dtype, std::move(shape),
                     support::sample(Distribution::kNormal, static_cast<std::size_t>(n), seed));
}

class ObserverTest : public testing::TestWithParam<DType> {};

std::string dtype_name(const testing::TestParamInfo<DType>& info) {
  return std::string(name_of(info.param));
}
INSTANTIATE_TEST_SUITE_P(DTypes, ObserverTest, testing::ValuesIn(support::kAllDTypes), dtype_name);

TEST_P(ObserverTest, KeepsExactlyTheValuesPerTensorAndPerChannel) {
  const Tensor tensor = normal_tensor(GetParam(), {2, 7, 5}, 1);
  const std::vector<float> x = tensor.values();
  Observer whole(Granularity::kPerTensor);
  whole.observe(tensor.view());
  EXPECT_EQ(whole.groups(), 1U);
  EXPECT_EQ(whole.value_counts(0), ValueCounts::of(x));

  Observer channels(Granularity::kPerChannel);
  channels.observe(tensor.view());
  ASSERT_EQ(channels.groups(), 5U);
  for (std::size_t c = 0; c < 5; ++c) {
    std::vector<float> column;
    for (std::size_t i = c; i < x.size(); i += 5) column.push_back(x[i]);
    EXPECT_EQ(channels.value_counts(c), ValueCounts::of(column)) << "channel " << c;
  }
  for (const Observer* observer : {&whole, &channels}) {
    EXPECT_EQ(observer->batches(), 1);
    EXPECT_EQ(observer->rows(), 14);
    EXPECT_EQ(observer->channels(), 5);
    EXPECT_EQ(observer->non_finite_count(), 0);
  }
}

/// Channels [first, first + count) of a matrix.
TensorView columns(TensorView view, std::int64_t first, std::int64_t count) {
  view.data = static_cast<const std::byte*>(view.data) +
              first * view.strides.back() * static_cast<std::int64_t>(size_of(view.dtype));
  view.shape.back() = count;
  return view;
}

TEST_P(ObserverTest, EachHeadIsATensorOfItsOwn) {
  for (const bool range_only : {false, true}) {
    Observer heads(Granularity::kPerHead, {.range_only = range_only, .heads = 3});
    std::vector<Observer> alone;
    for (int h = 0; h < 3; ++h)
      alone.emplace_back(Granularity::kPerTensor, ObserverOptions{.range_only = range_only});
    EXPECT_EQ(heads.groups(), 0U);
    // The second batch is large enough for tables.
    for (const std::int64_t rows : {std::int64_t{5}, std::int64_t{20000}}) {
      const Tensor batch = normal_tensor(GetParam(), {rows, 6}, static_cast<unsigned>(rows));
      heads.observe(batch.view());
      for (int h = 0; h < 3; ++h)
        alone[static_cast<std::size_t>(h)].observe(columns(batch.view(), 2 * h, 2));
    }
    ASSERT_EQ(heads.groups(), 3U);
    EXPECT_EQ(heads.channels(), 6);
    EXPECT_EQ(heads.rows(), 20005);
    EXPECT_EQ(heads.batches(), 2);
    std::vector<ValueCounts> visited(3);
    if (!range_only)
      heads.visit([&](std::size_t head, const ValueCounts& values) { visited[head] = values; });
    for (std::size_t h = 0; h < 3; ++h) {
      if (range_only) {
        EXPECT_EQ(heads.range(h).min, alone[h].range(0).min);
        EXPECT_EQ(heads.range(h).max, alone[h].range(0).max);
      } else {
        EXPECT_EQ(heads.value_counts(h), alone[h].value_counts(0));
        EXPECT_EQ(visited[h], alone[h].value_counts(0));
      }
    }
  }
}

TEST_P(ObserverTest, HeadsMerge) {
  const Tensor all = normal_tensor(GetParam(), {40, 4}, 9);
  Observer once(Granularity::kPerHead, {.heads = 2});
  once.observe(all.view());
  Observer first(Granularity::kPerHead, {.heads = 2});
  first.observe(all.rows(0, 13).view());
  Observer second(Granularity::kPerHead, {.heads = 2});
  second.observe(all.rows(13, 40).view());
  first.merge(second);
  EXPECT_EQ(all_counts(first), all_counts(once));
  EXPECT_EQ(first.rows(), 40);
  Observer others(Granularity::kPerHead, {.heads = 4});
  others.observe(all.view());
  expect_error<StateError>([&] { first.merge(others); }, {"heads"});
  EXPECT_EQ(all_counts(first), all_counts(once));
}

TEST_P(ObserverTest, ABatchIsRefusedForAllHeadsOrNone) {
  Observer observer(Granularity::kPerHead, {.heads = 2});
  const Tensor good = normal_tensor(GetParam(), {3, 4}, 1);
  observer.observe(good.view());
  const std::vector<ValueCounts> before = all_counts(observer);
  const Tensor bad = make_tensor(GetParam(), {1, 4}, {1, 2, 3, kNan});
  expect_error<NonFiniteError>([&] { observer.observe(bad.view()); }, {"index 3"});
  EXPECT_EQ(all_counts(observer), before);
  EXPECT_EQ(observer.batches(), 1);

  Observer skips(Granularity::kPerHead, {.nonfinite = NonFinitePolicy::kSkip, .heads = 2});
  skips.observe(bad.view());
  EXPECT_EQ(skips.non_finite_count(), 1);
  EXPECT_EQ(skips.value_counts(0), ValueCounts::of(std::vector<float>{1, 2}));
  EXPECT_EQ(skips.value_counts(1), ValueCounts::of(std::vector<float>{3}));
}

TEST(ObserverErrorTest, Heads) {
  expect_error<ValueError>([] { Observer(Granularity::kPerHead, {.heads = 0}); }, {"heads"});
  Observer observer(Granularity::kPerHead, {.heads = 3});
  const Tensor batch = normal_tensor(DType::kFloat32, {2, 4}, 1);
  expect_error<StateError>([&] { observer.observe(batch.view()); },
                           {"4 channels", "cannot be cut into 3 heads"});
  EXPECT_EQ(observer.channels(), 0);
  expect_error<ValueError>([&] { observer.value_counts(0); }, {"group 0"});
  Observer one(Granularity::kPerHead, {.heads = 1});
  const Tensor number = normal_tensor(DType::kFloat32, {}, 1);
  one.observe(number.view());
  EXPECT_EQ(one.value_counts(0), ValueCounts::of(number.values()));
}

TEST_P(ObserverTest, AnySplitInAnyOrderGivesTheSameCounts) {
  const Tensor all = normal_tensor(GetParam(), {24, 3}, 2);
  for (const Granularity granularity : {Granularity::kPerTensor, Granularity::kPerChannel}) {
    Observer once(granularity);
    once.observe(all.view());
    std::mt19937 generator(3);
    for (const std::vector<std::int64_t>& cuts :
         {std::vector<std::int64_t>{0, 12, 24}, {0, 6, 12, 18, 24}, {0, 1, 2, 20, 23, 24}}) {
      std::vector<Tensor> parts;
      for (std::size_t i = 0; i + 1 < cuts.size(); ++i) {
        parts.push_back(all.rows(cuts[i], cuts[i + 1]));
      }
      std::shuffle(parts.begin(), parts.end(), generator);
      Observer split(granularity);
      for (const Tensor& part : parts) split.observe(part.view());
      EXPECT_EQ(all_counts(split), all_counts(once));
      EXPECT_EQ(split.batches(), static_cast<std::int64_t>(parts.size()));
      EXPECT_EQ(split.rows(), 24);
    }
  }
}

TEST_P(ObserverTest, MergeEqualsObservingTheUnion) {
  const Tensor a = normal_tensor(GetParam(), {9, 4}, 4);
  const Tensor b = normal_tensor(GetParam(), {5, 4}, 5);
  for (const Granularity granularity : {Granularity::kPerTensor, Granularity::kPerChannel}) {
    Observer both(granularity);
    both.observe(a.view());
    both.observe(b.view());
    Observer left(granularity);
    left.observe(a.view());
    Observer right(granularity);
    right.observe(b.view());
    Observer empty(granularity);
    empty.merge(right);  // into nothing
    EXPECT_EQ(all_counts(empty), all_counts(right));
    EXPECT_EQ(empty.channels(), 4);
    left.merge(right);
    left.merge(Observer(granularity));  // of nothing
    EXPECT_EQ(all_counts(left), all_counts(both));
    EXPECT_EQ(left.batches(), 2);
    EXPECT_EQ(left.rows(), 14);
    EXPECT_EQ(all_counts(right).size(), both.groups());  // the source is as it was
    EXPECT_EQ(right.batches(), 1);
  }
}

TEST_P(ObserverTest, MergingWithItselfDoubles) {
  const Tensor a = normal_tensor(GetParam(), {300, 4}, 6);
  Observer twice(Granularity::kPerChannel);
  twice.observe(a.view());
  twice.observe(a.view());
  Observer self(Granularity::kPerChannel);
  self.observe(a.view());
  self.merge(self);
  EXPECT_EQ(all_counts(self), all_counts(twice));
  EXPECT_EQ(self.rows(), 600);
  EXPECT_EQ(self.batches(), 2);
}

TEST_P(ObserverTest, NonFiniteBatchIsRefusedWholeAndTheObserverGoesOn) {
  const Tensor good = normal_tensor(GetParam(), {3, 4}, 7);
  std::vector<float> values = good.values();
  values[5] = kNan;
  values[6] = -kInf;
  values[11] = kInf;
  const Tensor bad = make_tensor(GetParam(), {3, 4}, values);
  Observer observer(Granularity::kPerChannel);
  expect_error<NonFiniteError>([&] { observer.observe(bad.view()); },
                               {"3 of 12", "index 5", "[3, 4]"});
  EXPECT_EQ(observer.batches(), 0);
  EXPECT_EQ(observer.channels(), 0);
  EXPECT_EQ(observer.groups(), 0U);
  observer.observe(good.view());
  const std::vector<ValueCounts> before = all_counts(observer);
  try {
    observer.observe(bad.view());
    FAIL() << "took NaN";
  } catch (const NonFiniteError& error) {
    EXPECT_EQ(error.count(), 3);
    EXPECT_EQ(error.first_index(), 5);
  }
  EXPECT_EQ(all_counts(observer), before);
  EXPECT_EQ(observer.batches(), 1);
  EXPECT_EQ(observer.rows(), 3);
  EXPECT_EQ(observer.non_finite_count(), 0);
  observer.observe(good.view());
  EXPECT_EQ(observer.value_counts(0).total(), 6U);
}

TEST_P(ObserverTest, SkippedValuesAreCountedAndLeftOut) {
  const Tensor batch = make_tensor(GetParam(), {2, 3}, {1, kNan, 3, kInf, -kInf, 6});
  Observer whole(Granularity::kPerTensor, {.nonfinite = NonFinitePolicy::kSkip});
  whole.observe(batch.view());
  EXPECT_EQ(whole.non_finite_count(), 3);
  EXPECT_EQ(whole.value_counts(0), ValueCounts({1, 3, 6}, {1, 1, 1}));
  Observer channels(Granularity::kPerChannel, {.nonfinite = NonFinitePolicy::kSkip});
  channels.observe(batch.view());
  channels.observe(batch.view());
  EXPECT_EQ(channels.non_finite_count(), 6);
  EXPECT_EQ(channels.value_counts(0), ValueCounts({1}, {2}));
  EXPECT_TRUE(channels.value_counts(1).empty());
  EXPECT_EQ(channels.value_counts(2), ValueCounts({3, 6}, {2, 2}));
  EXPECT_EQ(channels.rows(), 4);
  channels.merge(channels);
  EXPECT_EQ(channels.non_finite_count(), 12);
}

TEST_P(ObserverTest, EmptyTensorIsRefusedAndChangesNothing) {
  Observer observer(Granularity::kPerTensor);
  const TensorView empty = TensorView::contiguous(nullptr, GetParam(), {0, 4});
  expect_error<StateError>([&] { observer.observe(empty); }, {"[0, 4]", "no values"});
  EXPECT_EQ(observer.batches(), 0);
  const Tensor other = normal_tensor(GetParam(), {1, 5}, 8);
  observer.observe(other.view());  // channels of the empty batch do not bind
  EXPECT_EQ(observer.channels(), 5);
}

TEST_P(ObserverTest, AnotherNumberOfChannelsIsRefusedAndTheObserverGoesOn) {
  for (const Granularity granularity : {Granularity::kPerTensor, Granularity::kPerChannel}) {
    const Tensor first = normal_tensor(GetParam(), {2, 4}, 9);
    const Tensor wider = normal_tensor(GetParam(), {2, 5}, 10);
    Observer observer(granularity);
    observer.observe(first.view());
    const std::vector<ValueCounts> before = all_counts(observer);
    expect_error<StateError>([&] { observer.observe(wider.view()); }, {"5 channels", "had 4"});
    EXPECT_EQ(all_counts(observer), before);
    EXPECT_EQ(observer.batches(), 1);
    observer.observe(normal_tensor(GetParam(), {1, 2, 4}, 11).view());  // the rank may change
    EXPECT_EQ(observer.batches(), 2);
    Observer other(granularity);
    other.observe(wider.view());
    expect_error<StateError>([&] { observer.merge(other); }, {"5 channels", "had 4"});
    EXPECT_EQ(observer.batches(), 2);
  }
}

TEST(ObserverPatternTest, EverySixteenBitPatternIsEitherCountedOrNotFinite) {
  for (const DType dtype : {DType::kFloat16, DType::kBFloat16}) {
    std::vector<std::uint16_t> patterns(65536);
    for (std::size_t i = 0; i < patterns.size(); ++i) patterns[i] = static_cast<std::uint16_t>(i);
    const TensorView view = TensorView::contiguous(patterns.data(), dtype, {256, 256});
    const std::int64_t special = dtype == DType::kFloat16 ? 2 * 1024 : 2 * 128;
    Observer strict(Granularity::kPerTensor);
    try {
      strict.observe(view);
      FAIL() << "took NaN";
    } catch (const NonFiniteError& error) {
      EXPECT_EQ(error.count(), special);
      EXPECT_EQ(error.first_index(), exponent_mask(dtype));  // +infinity comes first
    }
    Observer lenient(Granularity::kPerTensor, {.nonfinite = NonFinitePolicy::kSkip});
    lenient.observe(view);
    EXPECT_EQ(lenient.non_finite_count(), special);
    EXPECT_EQ(lenient.value_counts(0).total(), static_cast<std::uint64_t>(65536 - special));
  }
}

TEST(ObserverMixedTest, ALayerMayChangeItsDTypeFromBatchToBatch) {
  std::vector<float> all;
  Observer observer(Granularity::kPerTensor);
  unsigned seed = 20;
  for (const DType dtype : {DType::kFloat32, DType::kBFloat16, DType::kFloat16, DType::kFloat32}) {
    const Tensor batch =
        make_tensor(dtype, {30, 2}, support::sample(Distribution::kFewValues, 60, ++seed));
    observer.observe(batch.view());
    const std::vector<float> x = batch.values();
    all.insert(all.end(), x.begin(), x.end());
  }
  EXPECT_EQ(observer.value_counts(0), ValueCounts::of(all));
  Observer merged(Granularity::kPerTensor);
  merged.merge(observer);
  EXPECT_EQ(merged.value_counts(0), ValueCounts::of(all));
}

TEST(ObserverMixedTest, CountsBeyond32BitsAddUpOverMerges) {
  const Tensor batch = make_tensor(DType::kBFloat16, {3, 1}, {1, 2, 2});
  Observer observer(Granularity::kPerTensor);
  observer.observe(batch.view());
  for (int i = 0; i < 35; ++i) observer.merge(observer);
  const std::uint64_t times = std::uint64_t{1} << 35;
  EXPECT_EQ(observer.value_counts(0), ValueCounts({1, 2}, {times, 2 * times}));
  EXPECT_EQ(observer.rows(), static_cast<std::int64_t>(3 * times));
}

TEST_P(ObserverTest, VisitsEveryGroupOnceWithItsValues) {
  const Tensor tensor = normal_tensor(GetParam(), {300, 70}, 12);
  for (const Granularity granularity : {Granularity::kPerTensor, Granularity::kPerChannel}) {
    Observer observer(granularity);
    observer.observe(tensor.view());
    observer.observe(tensor.view());
    const std::vector<ValueCounts> expected = all_counts(observer);
    std::vector<ValueCounts> visited(observer.groups());
    observer.visit([&](std::size_t group, const ValueCounts& values) { visited[group] = values; });
    EXPECT_EQ(visited, expected);
  }
}

TEST_P(ObserverTest, ValuesAskedForStayAsTheyAre) {
  const Tensor tensor = normal_tensor(GetParam(), {300, 70}, 12);
  for (const Granularity granularity : {Granularity::kPerTensor, Granularity::kPerChannel}) {
    Observer observer(granularity);
    observer.observe(tensor.view());
    const std::vector<ValueCounts> before = all_counts(observer);
    observer.observe(tensor.view());
    EXPECT_EQ(before.front().total(), granularity == Granularity::kPerTensor ? 300 * 70 : 300);
    EXPECT_EQ(observer.value_counts(0).total(), 2 * before.front().total());
    Observer once(granularity);
    once.observe(tensor.view());
    EXPECT_EQ(before, all_counts(once));
  }
}

TEST(FloatObserverTest, ValuesAreNotHeldTwice) {
  const Tensor tensor = normal_tensor(DType::kFloat32, {300, 70}, 12);
  Observer observer(Granularity::kPerTensor);
  observer.observe(tensor.view());
  const ValueCounts first = observer.value_counts(0);
  EXPECT_EQ(first.values().data(), observer.value_counts(0).values().data());
  const ValueCounts copy = first;  // NOLINT(performance-unnecessary-copy-initialization)
  EXPECT_EQ(copy.values().data(), first.values().data());
}

TEST_P(ObserverTest, RangesAloneAreThoseOfTheValues) {
  for (const Distribution distribution : support::kAllDistributions) {
    const std::vector<float> x = support::sample(distribution, 40 * 33, 13);
    const auto channels = x.size() == 1 ? std::int64_t{1} : std::int64_t{33};
    const Tensor tensor =
        make_tensor(GetParam(), {static_cast<std::int64_t>(x.size()) / channels, channels}, x);
    for (const Granularity granularity : {Granularity::kPerTensor, Granularity::kPerChannel}) {
      Observer values(granularity);
      Observer ranges(granularity, {.range_only = true});
      Observer merged(granularity, {.range_only = true});
      values.observe(tensor.view());
      ranges.observe(tensor.view());
      merged.merge(ranges);
      ASSERT_EQ(ranges.groups(), values.groups());
      for (std::size_t group = 0; group < values.groups(); ++group) {
        const ValueCounts counts = values.value_counts(group);
        for (const Observer* observer : {&ranges, &merged}) {
          EXPECT_EQ(observer->range(group).min, counts.min()) << support::name_of(distribution);
          EXPECT_EQ(observer->range(group).max, counts.max());
        }
      }
    }
  }
}

TEST_P(ObserverTest, RangesLeaveOutWhatIsNotFinite) {
  const Tensor batch = make_tensor(GetParam(), {2, 3}, {1, kNan, 3, kInf, -kInf, 6});
  Observer refusing(Granularity::kPerChannel, {.range_only = true});
  expect_error<NonFiniteError>([&] { refusing.observe(batch.view()); }, {"3 of 6", "index 1"});
  EXPECT_EQ(refusing.batches(), 0);
  Observer whole(Granularity::kPerTensor,
                 {.nonfinite = NonFinitePolicy::kSkip, .range_only = true});
  whole.observe(batch.view());
  EXPECT_EQ(whole.range(0).min, 1);
  EXPECT_EQ(whole.range(0).max, 6);
  Observer channels(Granularity::kPerChannel,
                    {.nonfinite = NonFinitePolicy::kSkip, .range_only = true});
  channels.observe(batch.view());
  EXPECT_EQ(channels.non_finite_count(), 3);
  EXPECT_EQ(channels.range(0).max, 1);
  EXPECT_GT(channels.range(1).min, channels.range(1).max);  // none
  EXPECT_EQ(channels.range(2).min, 3);
}

TEST(ObserverMixedTest, RangesAndCountsAreNotTakenForEachOther) {
  Observer ranges(Granularity::kPerTensor, {.range_only = true});
  Observer counts(Granularity::kPerTensor);
  const Tensor batch = make_tensor(DType::kBFloat16, {1, 2}, {1, 2});
  ranges.observe(batch.view());
  counts.observe(batch.view());
  expect_error<StateError>([&] { ranges.value_counts(0); }, {"range_only"});
  expect_error<StateError>([&] { ranges.visit([](std::size_t, const ValueCounts&) {}); },
                           {"range_only"});
  expect_error<StateError>([&] { counts.range(0); }, {"range_only"});
  expect_error<StateError>([&] { counts.merge(ranges); }, {"ranges with counts"});
  expect_error<ValueError>([&] { ranges.range(1); }, {"group 1"});
}

TEST(ObserverSketchTest, PastTheBudgetItIsTheSameSketchHoweverTheValuesCame) {
  const Tensor all = normal_tensor(DType::kFloat32, {1200, 5}, 14);
  for (const Granularity granularity : {Granularity::kPerTensor, Granularity::kPerChannel}) {
    const ObserverOptions small{.sample_bytes = 1000 * 5 * sizeof(float)};
    Observer within(granularity, small);
    within.observe(all.rows(0, 1000).view());
    EXPECT_FALSE(within.is_sketch());
    Observer exact(granularity);
    exact.observe(all.rows(0, 1000).view());
    EXPECT_EQ(all_counts(within), all_counts(exact));

    within.observe(all.rows(1000, 1200).view());
    EXPECT_TRUE(within.is_sketch());
    Observer once(granularity, small);
    once.observe(all.view());
    EXPECT_TRUE(once.is_sketch());
    EXPECT_EQ(all_counts(within), all_counts(once));
    EXPECT_EQ(once.value_counts(0).total(), granularity == Granularity::kPerTensor ? 6000U : 1200U);

    // Merges: neither side a sketch, one, and both.
    Observer left(granularity, small);
    Observer right(granularity, small);
    left.observe(all.rows(0, 600).view());
    right.observe(all.rows(600, 1200).view());
    Observer merged(granularity, small);
    merged.merge(left);
    merged.merge(right);
    EXPECT_TRUE(merged.is_sketch());
    EXPECT_EQ(all_counts(merged), all_counts(once));
    Observer into(granularity, small);
    into.merge(once);
    EXPECT_EQ(all_counts(into), all_counts(once));
    left.merge(left);
    EXPECT_TRUE(left.is_sketch());
    EXPECT_EQ(left.value_counts(0).total(), granularity == Granularity::kPerTensor ? 6000U : 1200U);
    once.merge(once);
    EXPECT_EQ(once.value_counts(0).total(),
              granularity == Granularity::kPerTensor ? 12000U : 2400U);
  }
}

TEST(ObserverMixedTest, GranularitiesDoNotMerge) {
  Observer tensor(Granularity::kPerTensor);
  const Observer channel(Granularity::kPerChannel);
  expect_error<StateError>([&] { tensor.merge(channel); }, {"per_channel", "per_tensor"});
}

TEST(ObserverMixedTest, GroupsThatDoNotExist) {
  Observer observer(Granularity::kPerChannel);
  expect_error<ValueError>([&] { observer.value_counts(0); }, {"group 0", "0"});
  observer.observe(make_tensor(DType::kFloat32, {1, 3}, {1, 2, 3}).view());
  expect_error<ValueError>([&] { observer.value_counts(3); }, {"group 3", "there are 3"});
}

TEST(ObserverMixedTest, MovedObserverKeepsItsState) {
  Observer observer(Granularity::kPerTensor);
  observer.observe(make_tensor(DType::kFloat32, {1, 2}, {1, 2}).view());
  Observer moved(std::move(observer));
  EXPECT_EQ(moved.value_counts(0).total(), 2U);
  Observer assigned(Granularity::kPerChannel);
  assigned = std::move(moved);
  EXPECT_EQ(assigned.granularity(), Granularity::kPerTensor);
  EXPECT_EQ(assigned.value_counts(0).total(), 2U);
}

}  // namespace
}  // namespace amct
