#include "amct/observe/counted_batches.h"

#include "amct/core/error.h"
#include "amct/observe/observer.h"

#include <cstring>
#include <functional>
#include <limits>
#include <map>
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
constexpr auto kGranularities = {Granularity::kPerTensor, Granularity::kPerChannel};

/// The counts of a tensor of rank 2, made as plainly as can be.
struct Counted {
  Counted(const Tensor& tensor, Granularity granularity, std::int64_t batches = 1)
      : dtype(tensor.dtype), channels(tensor.shape[1]), rows(tensor.shape[0]), batches(batches) {
    std::vector<std::map<std::uint16_t, std::uint64_t>> groups(
        granularity == Granularity::kPerTensor ? 1 : static_cast<std::size_t>(channels));
    for (std::size_t i = 0; i < tensor.bytes.size() / 2; ++i) {
      std::uint16_t pattern = 0;
      std::memcpy(&pattern, tensor.bytes.data() + 2 * i, 2);
      ++groups[i % groups.size()][pattern];
    }
    for (const auto& group : groups) {
      group_begin.push_back(patterns.size());
      for (const auto& [pattern, count] : group) {
        patterns.push_back(pattern);
        counts.push_back(count);
      }
    }
    group_begin.push_back(patterns.size());
  }

  CountedBatches view() const {
    return {dtype, channels, rows, batches, group_begin, patterns, counts};
  }

  DType dtype;
  std::int64_t channels;
  std::int64_t rows;
  std::int64_t batches;
  std::vector<std::size_t> group_begin;
  std::vector<std::uint16_t> patterns;
  std::vector<std::uint64_t> counts;
};

/// The ranges of a tensor of rank 2.
struct Ranged {
  Ranged(const Tensor& tensor, Granularity granularity)
      : channels(tensor.shape[1]), rows(tensor.shape[0]) {
    Observer observer(granularity, {.nonfinite = NonFinitePolicy::kSkip, .range_only = true});
    observer.observe(tensor.view());
    non_finite = observer.non_finite_count();
    for (std::size_t group = 0; group < observer.groups(); ++group) {
      min.push_back(observer.range(group).min);
      max.push_back(observer.range(group).max);
    }
  }

  RangedBatches view() const { return {channels, rows, batches, non_finite, min, max}; }

  std::int64_t channels;
  std::int64_t rows;
  std::int64_t batches = 1;
  std::int64_t non_finite;
  std::vector<float> min;
  std::vector<float> max;
};

Tensor tensor_of(DType dtype, std::int64_t rows, std::int64_t channels, unsigned seed,
                 Distribution distribution = Distribution::kNormal) {
  return make_tensor(
      dtype, {rows, channels},
      support::sample(distribution, static_cast<std::size_t>(rows * channels), seed));
}

void expect_same(const Observer& a, const Observer& b) {
  ASSERT_EQ(a.groups(), b.groups());
  for (std::size_t group = 0; group < a.groups(); ++group)
    ASSERT_EQ(a.value_counts(group), b.value_counts(group)) << "group " << group;
  EXPECT_EQ(a.batches(), b.batches());
  EXPECT_EQ(a.rows(), b.rows());
  EXPECT_EQ(a.channels(), b.channels());
  EXPECT_EQ(a.non_finite_count(), b.non_finite_count());
}

void expect_same_ranges(const Observer& a, const Observer& b) {
  ASSERT_EQ(a.groups(), b.groups());
  for (std::size_t group = 0; group < a.groups(); ++group) {
    EXPECT_EQ(a.range(group).min, b.range(group).min) << "group " << group;
    EXPECT_EQ(a.range(group).max, b.range(group).max) << "group " << group;
  }
  EXPECT_EQ(a.rows(), b.rows());
  EXPECT_EQ(a.non_finite_count(), b.non_finite_count());
}

class CountedBatchesTest : public testing::TestWithParam<DType> {};

INSTANTIATE_TEST_SUITE_P(DTypes, CountedBatchesTest,
                         testing::Values(DType::kFloat16, DType::kBFloat16),
                         [](const auto& info) { return std::string(name_of(info.param)); });

TEST_P(CountedBatchesTest, AddUpWithBatchesObservedHere) {
  for (const Granularity granularity : kGranularities) {
    const Tensor here = tensor_of(GetParam(), 50, 33, 1);
    const Tensor there = tensor_of(GetParam(), 70, 33, 2, Distribution::kFewValues);
    const Tensor zeros = make_tensor(GetParam(), {1, 33}, std::vector<float>(33, -0.0F));
    const Tensor large = tensor_of(GetParam(), 9000, 33, 3);  // fills the stage of channels
    Observer expected(granularity);
    for (const Tensor* tensor : {&here, &there, &zeros, &large}) expected.observe(tensor->view());

    Observer before(granularity);
    before.add_counts(Counted(there, granularity).view());
    before.add_counts(Counted(zeros, granularity).view());
    before.add_counts(Counted(large, granularity).view());
    before.observe(here.view());
    expect_same(before, expected);
    Observer after(granularity);
    after.observe(large.view());
    after.observe(here.view());
    after.add_counts(Counted(there, granularity).view());
    after.add_counts(Counted(zeros, granularity).view());
    expect_same(after, expected);
    Observer merged(granularity);
    merged.merge(after);
    expect_same(merged, expected);
  }
}

TEST_P(CountedBatchesTest, SeveralBatchesComeAtOnce) {
  const Tensor tensor = tensor_of(GetParam(), 12, 5, 4);
  for (const Granularity granularity : kGranularities) {
    Observer expected(granularity);
    for (std::int64_t row = 0; row < 12; row += 4)
      expected.observe(tensor.rows(row, row + 4).view());
    Observer observer(granularity);
    observer.add_counts(Counted(tensor, granularity, 3).view());
    expect_same(observer, expected);
  }
}

TEST_P(CountedBatchesTest, RangesAreThoseOfTheCounts) {
  const Tensor tensor = tensor_of(GetParam(), 12, 5, 5);
  for (const Granularity granularity : kGranularities) {
    const ObserverOptions options{.range_only = true};
    Observer expected(granularity, options);
    expected.observe(tensor.view());
    Observer counts(granularity, options);
    counts.add_counts(Counted(tensor, granularity).view());
    expect_same_ranges(counts, expected);
  }
}

TEST_P(CountedBatchesTest, WhatIsNotFiniteIsRefusedOrSkipped) {
  const Tensor good = tensor_of(GetParam(), 1, 3, 6);
  const Tensor bad = make_tensor(GetParam(), {2, 3}, {1, kNan, 3, kInf, -kInf, 6});
  for (const Granularity granularity : kGranularities) {
    for (const bool range_only : {false, true}) {
      Observer refusing(granularity, {.range_only = range_only});
      refusing.observe(good.view());
      try {
        refusing.add_counts(Counted(bad, granularity).view());
        FAIL() << "took NaN";
      } catch (const NonFiniteError& error) {
        EXPECT_EQ(error.count(), 3);
        EXPECT_EQ(error.first_index(), -1);
        EXPECT_EQ(std::string(error.what()).find("3 of 6 values are NaN"), 0U) << error.what();
      }
      EXPECT_EQ(refusing.batches(), 1);
      EXPECT_EQ(refusing.rows(), 1);

      const ObserverOptions skip{.nonfinite = NonFinitePolicy::kSkip, .range_only = range_only};
      Observer expected(granularity, skip);
      Observer skipping(granularity, skip);
      expected.observe(bad.view());
      skipping.add_counts(Counted(bad, granularity).view());
      if (range_only) {
        expect_same_ranges(skipping, expected);
      } else {
        expect_same(skipping, expected);
      }
    }
  }
}

TEST_P(CountedBatchesTest, CountsMayGoBeyond32Bits) {
  const std::uint64_t many = std::uint64_t{1} << 40;
  const Tensor tensor = make_tensor(GetParam(), {1, 2}, {1, 2});
  for (const Granularity granularity : kGranularities) {
    Counted counted(tensor, granularity);
    counted.rows = static_cast<std::int64_t>(many);
    for (std::uint64_t& count : counted.counts) count = many;
    Observer observer(granularity);
    observer.add_counts(counted.view());
    observer.add_counts(counted.view());
    EXPECT_EQ(observer.value_counts(0), granularity == Granularity::kPerTensor
                                            ? ValueCounts({1, 2}, {2 * many, 2 * many})
                                            : ValueCounts({1}, {2 * many}));
    EXPECT_EQ(observer.rows(), static_cast<std::int64_t>(2 * many));
  }
}

TEST_P(CountedBatchesTest, FieldsThatContradictEachOtherAreRefusedAndChangeNothing) {
  const Tensor tensor = make_tensor(GetParam(), {3, 2}, {1, 2, 3, 4, 1, 4});
  using Spoil = std::function<void(Counted&)>;
  const std::vector<std::pair<Spoil, const char*>> cases = {
      {[](Counted& c) { c.dtype = DType::kFloat32; }, "float32"},
      {[](Counted& c) { c.channels = 0; }, "positive"},
      {[](Counted& c) { c.rows = 0; }, "positive"},
      {[](Counted& c) { c.batches = 0; }, "positive"},
      {[](Counted& c) { c.batches = -1; }, "(-1)"},
      {[](Counted& c) { c.batches = 4; }, "4 batches have 3 rows"},
      {[](Counted& c) { c.rows = std::numeric_limits<std::int64_t>::max(); }, "2^63 - 1"},
      {[](Counted& c) { c.rows = 4; }, "values, not"},
      {[](Counted& c) { c.patterns.pop_back(); }, "patterns have"},
      {[](Counted& c) { c.counts.push_back(1); }, "counts"},
      {[](Counted& c) { c.group_begin.clear(); }, "0 entries"},
      {[](Counted& c) { c.group_begin.push_back(c.counts.size()); }, "entries, one more than"},
      {[](Counted& c) { c.group_begin.front() = 1; }, "does not ascend from 0"},
      {[](Counted& c) { c.group_begin.back() -= 1; }, "does not ascend from 0"},
      {[](Counted& c) { c.counts[0] = 0; }, "is zero"},
      {[](Counted& c) { c.counts[0] += 1; }, "more than its"},
      {[](Counted& c) { c.counts[0] = std::numeric_limits<std::uint64_t>::max(); },
       "more than its"},
      {[](Counted& c) { std::swap(c.patterns[0], c.patterns[1]); }, "do not ascend"},
      {[](Counted& c) { c.patterns[1] = c.patterns[0]; }, "do not ascend"},
  };
  for (const Granularity granularity : kGranularities) {
    for (const auto& [spoil, message] : cases) {
      Counted counted(tensor, granularity);
      spoil(counted);
      Observer observer(granularity);
      expect_error<ValueError>([&] { observer.add_counts(counted.view()); },
                               {"batches counted elsewhere", message});
      EXPECT_EQ(observer.batches(), 0);
      EXPECT_EQ(observer.channels(), 0);
    }
  }
  Counted crossing(tensor, Granularity::kPerChannel);
  crossing.group_begin[1] = crossing.counts.size() + 1;
  expect_error<ValueError>([&] { Observer(Granularity::kPerChannel).add_counts(crossing.view()); },
                           {"does not ascend"});
}

TEST_P(CountedBatchesTest, AnotherNumberOfChannelsIsRefused) {
  for (const Granularity granularity : kGranularities) {
    Observer observer(granularity);
    observer.observe(tensor_of(GetParam(), 2, 4, 7).view());
    const Counted wider(tensor_of(GetParam(), 2, 5, 8), granularity);
    expect_error<StateError>([&] { observer.add_counts(wider.view()); }, {"5 channels", "had 4"});
    EXPECT_EQ(observer.batches(), 1);
    Observer other(granularity);
    other.add_counts(wider.view());
    expect_error<StateError>([&] { other.observe(tensor_of(GetParam(), 2, 4, 7).view()); },
                             {"4 channels", "had 5"});
  }
}

TEST(RangedBatchesTest, AddUpWithBatchesObservedHere) {
  for (const DType dtype : support::kAllDTypes) {
    const Tensor first = tensor_of(dtype, 7, 3, 9);
    const Tensor second = make_tensor(dtype, {2, 3}, {100, kNan, -300, kInf, -kInf, 6});
    for (const Granularity granularity : kGranularities) {
      const ObserverOptions options{.nonfinite = NonFinitePolicy::kSkip, .range_only = true};
      Observer expected(granularity, options);
      expected.observe(first.view());
      expected.observe(second.view());
      Observer observer(granularity, options);
      observer.add_ranges(Ranged(second, granularity).view());
      observer.observe(first.view());
      expect_same_ranges(observer, expected);
      EXPECT_EQ(observer.batches(), 2);
    }
  }
}

TEST(RangedBatchesTest, WhatCannotBeIsRefusedAndChangesNothing) {
  const Tensor tensor = make_tensor(DType::kFloat32, {2, 2}, {1, 2, 3, 4});
  const ObserverOptions options{.range_only = true};
  using Spoil = std::function<void(Ranged&)>;
  const std::vector<std::pair<Spoil, const char*>> cases = {
      {[](Ranged& r) { r.rows = 0; }, "positive"},
      {[](Ranged& r) { r.batches = 3; }, "3 batches have 2 rows"},
      {[](Ranged& r) { r.min.pop_back(); }, "minima"},
      {[](Ranged& r) { r.max.push_back(1); }, "maxima"},
      {[](Ranged& r) { r.non_finite = -1; }, "-1 of 4"},
      {[](Ranged& r) { r.non_finite = 5; }, "5 of 4"},
      {[](Ranged& r) { r.min[0] = 10; }, "group 0"},
      {[](Ranged& r) { r.min[0] = kNan; }, "group 0"},
      {[](Ranged& r) { r.max[0] = kInf; }, "group 0"},
  };
  for (const Granularity granularity : kGranularities) {
    for (const auto& [spoil, message] : cases) {
      Ranged ranged(tensor, granularity);
      spoil(ranged);
      Observer observer(granularity, options);
      expect_error<ValueError>([&] { observer.add_ranges(ranged.view()); }, {message});
      EXPECT_EQ(observer.batches(), 0);
    }
    Ranged ranged(tensor, granularity);
    Observer counting(granularity);
    expect_error<StateError>([&] { counting.add_ranges(ranged.view()); }, {"range_only"});
    Observer wider(granularity, options);
    wider.observe(tensor_of(DType::kFloat32, 1, 3, 1).view());
    expect_error<StateError>([&] { wider.add_ranges(ranged.view()); }, {"2 channels", "had 3"});
    ranged.non_finite = 1;
    Observer refusing(granularity, options);
    expect_error<NonFiniteError>([&] { refusing.add_ranges(ranged.view()); }, {"1 of 4"});
    EXPECT_EQ(refusing.batches(), 0);
  }
}

TEST(RemoteBatchTest, ErrorsAreThoseOfABatchObservedHere) {
  const Tensor good = tensor_of(DType::kFloat32, 2, 4, 10);
  std::vector<float> values = good.values();
  values[5] = kNan;
  values[7] = kInf;
  const Tensor bad = make_tensor(DType::kFloat32, {2, 4}, values);
  const Tensor wider = tensor_of(DType::kFloat32, 2, 5, 11);
  Observer observer(Granularity::kPerTensor);
  observer.observe(good.view());
  const auto expect_same_error = [&]<typename E>(const E& /*tag*/, const TensorView& view,
                                                 const RemoteBatch& batch) {
    EXPECT_EQ(expect_error<E>([&] { observer.check(batch); }, {}),
              expect_error<E>([&] { observer.observe(view); }, {}));
  };
  expect_same_error(NonFiniteError("", 0, 0), bad.view(),
                    {.shape = {2, 4}, .non_finite = 2, .first_index = 5});
  expect_same_error(StateError(""), wider.view(), {.shape = {2, 5}});
  expect_same_error(StateError(""), TensorView::contiguous(nullptr, DType::kFloat32, {0, 4}),
                    {.shape = {0, 4}});
  observer.check({.shape = {2, 4}});
  observer.check({.shape = {7, 1, 4}});

  const Observer fresh(Granularity::kPerTensor);
  fresh.check({.shape = {2, 5}});
  fresh.check({.shape = {}, .channels_before = 1});
  expect_error<StateError>([&] { fresh.check({.shape = {2, 5}, .channels_before = 4}); },
                           {"5 channels", "had 4"});
  const Observer skipping(Granularity::kPerTensor, {.nonfinite = NonFinitePolicy::kSkip});
  skipping.check({.shape = {2, 4}, .non_finite = 2, .first_index = 5});
}

}  // namespace
}  // namespace amct
