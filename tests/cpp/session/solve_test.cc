#include "amct/session/solve.h"

#include "amct/core/error.h"
#include "amct/core/large_array.h"
#include "amct/observe/value_counts.h"
#include "amct/search/search.h"

#include <cstdint>
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

constexpr std::int64_t kChannels = 12;
constexpr std::int64_t kHeads = 3;

std::vector<Tensor> batches_of(DType dtype) {
  std::vector<Tensor> batches;
  for (unsigned seed = 1; seed <= 2; ++seed) {
    std::vector<float> x =
        support::sample(Distribution::kNormal, static_cast<std::size_t>(200 * kChannels), seed);
    // Channels that differ, so that it matters which share factors.
    for (std::size_t i = 0; i < x.size(); ++i) x[i] *= static_cast<float>(1 + i % kChannels);
    batches.push_back(make_tensor(dtype, {200, kChannels}, x));
  }
  return batches;
}

Observer observed(Granularity granularity, DType dtype, bool range_only = false) {
  Observer observer(granularity, {.range_only = range_only, .heads = kHeads});
  for (const Tensor& batch : batches_of(dtype)) observer.observe(batch.view());
  return observer;
}

LayerConfig config_of(const std::string& algorithm, Granularity granularity) {
  LayerConfig config;
  config.name = "layer";
  config.algorithm = algorithm;
  config.options = find_algorithm(algorithm)->spec.defaults();
  config.granularity = granularity;
  if (granularity == Granularity::kPerHead) config.head_num = kHeads;
  return config;
}

class SolveTest : public testing::TestWithParam<DType> {};

INSTANTIATE_TEST_SUITE_P(DTypes, SolveTest, testing::ValuesIn(support::kAllDTypes),
                         [](const auto& info) { return std::string(name_of(info.param)); });

TEST_P(SolveTest, CoarserFactorsAreThoseOfObservingCoarsely) {
  for (const bool range_only : {false, true}) {
    for (const Granularity wanted : {Granularity::kPerTensor, Granularity::kPerHead}) {
      const LayerConfig config = config_of(range_only ? "minmax" : "ifmr", wanted);
      const LayerResult direct = solve(config, true, observed(wanted, GetParam(), range_only));
      for (const Granularity seen : {Granularity::kPerChannel, Granularity::kPerHead}) {
        const LayerResult result = solve(config, true, observed(seen, GetParam(), range_only));
        EXPECT_EQ(result.params, direct.params);
        EXPECT_EQ(result.min, direct.min);
        EXPECT_EQ(result.max, direct.max);
        EXPECT_EQ(result.granularity, wanted);
        EXPECT_EQ(result.sqnr_db.has_value(), !range_only);
      }
    }
  }
}

/// Weights of which the largest of each head is 1024, so that they count as they are.
const std::vector<std::uint64_t> kWeights{1024, 1, 7, 300, 2, 1024, 5, 5, 900, 1024, 512, 3};

/// The values of all channels of a head (or of all heads), each as often as its channel weighs.
ValueCounts weighed_values(DType dtype, std::size_t begin, std::size_t end) {
  std::map<float, std::uint64_t> counts;
  for (const Tensor& batch : batches_of(dtype)) {
    const std::vector<float> x = batch.values();
    for (std::size_t i = 0; i < x.size(); ++i) {
      const std::size_t channel = i % kChannels;
      if (channel >= begin && channel < end) counts[x[i] == 0 ? 0.0F : x[i]] += kWeights[channel];
    }
  }
  LargeArray<float> values;
  std::vector<std::uint64_t> times;
  for (const auto& [value, count] : counts) {
    values.push_back(value);
    times.push_back(count);
  }
  return {std::move(values), std::move(times)};
}

TEST_P(SolveTest, WeighedChannelsCountAsOftenAsTheyWeigh) {
  Observer observer = observed(Granularity::kPerChannel, GetParam());
  observer.add_channel_weights(kWeights);
  for (const std::string algorithm : {"ifmr", "hfmg", "percentile", "mse", "kl", "minmax"}) {
    for (const Granularity wanted : {Granularity::kPerTensor, Granularity::kPerHead}) {
      LayerConfig config = config_of(algorithm, wanted);
      const LayerResult plain = solve(config, true, observer);
      config.query_weighted = true;
      config.role = KVRole::kValue;  // which no query meets
      EXPECT_EQ(solve(config, true, observer).params, plain.params);
      config.role = KVRole::kKey;
      const LayerResult result = solve(config, true, observer);
      const std::size_t groups = wanted == Granularity::kPerHead ? kHeads : 1;
      ASSERT_EQ(result.params.size(), groups);
      for (std::size_t group = 0; group < groups; ++group) {
        const std::size_t width = kChannels / groups;
        const ValueCounts values = weighed_values(GetParam(), group * width, (group + 1) * width);
        const SearchTarget target{kInt8, true};
        EXPECT_EQ(result.params[group],
                  find_algorithm(algorithm)->search(values, target, config.options).params)
            << algorithm;
      }
      EXPECT_EQ(result.min, plain.min);
      EXPECT_EQ(result.max, plain.max);
      if (algorithm == "minmax") {
        EXPECT_EQ(result.sqnr_db, plain.sqnr_db);
      } else if (algorithm == "mse") {  // which no other factors are better than, but for its steps
        EXPECT_LT(*result.sqnr_db, *plain.sqnr_db + 1e-3);
      }
    }
    const LayerConfig own = config_of(algorithm, Granularity::kPerChannel);
    LayerConfig weighted = own;
    weighted.query_weighted = true;
    weighted.role = KVRole::kKey;
    EXPECT_EQ(solve(weighted, true, observer).params, solve(own, true, observer).params);
  }
}

TEST(SolveErrorTest, ChannelsCannotBeWeighedByNothing) {
  LayerConfig config = config_of("mse", Granularity::kPerTensor);
  config.query_weighted = true;
  config.role = KVRole::kKey;
  const Observer observer = observed(Granularity::kPerChannel, DType::kFloat32);
  expect_error<StateError>([&] { solve(config, true, observer); },
                           {"no queries were seen", "query_weighted"});
  config.algorithm = "minmax";  // of ranges, where weights change nothing
  config.options = {};
  const Observer ranges = observed(Granularity::kPerTensor, DType::kFloat32, true);
  EXPECT_EQ(solve(config, true, ranges).params.size(), 1U);
}

TEST(SolveErrorTest, WhatWasNotObservedCannotBeSolved) {
  const Observer per_tensor = observed(Granularity::kPerTensor, DType::kFloat32);
  expect_error<ValueError>(
      [&] { solve(config_of("mse", Granularity::kPerChannel), true, per_tensor); },
      {"observed per_tensor", "per_channel"});
  LayerConfig heads = config_of("mse", Granularity::kPerHead);
  const Observer per_head = observed(Granularity::kPerHead, DType::kFloat32);
  heads.head_num = 2;
  expect_error<ValueError>([&] { solve(heads, true, per_head); }, {"observed per_head"});
  const Observer per_channel = observed(Granularity::kPerChannel, DType::kFloat32);
  EXPECT_EQ(solve(heads, true, per_channel).params.size(), 2U);
  heads.head_num = 5;
  expect_error<StateError>([&] { solve(heads, true, per_channel); }, {"12 channels", "5 heads"});
  heads.head_num = 0;
  expect_error<ValueError>([&] { solve(heads, true, per_channel); }, {"head_num"});
  const Observer ranges = observed(Granularity::kPerTensor, DType::kFloat32, true);
  expect_error<StateError>([&] { solve(config_of("ifmr", Granularity::kPerTensor), true, ranges); },
                           {"range", "ifmr"});
  expect_error<StateError>(
      [] {
        solve(config_of("ifmr", Granularity::kPerTensor), true, Observer(Granularity::kPerTensor));
      },
      {"no finite value"});
  LayerConfig unknown = config_of("mse", Granularity::kPerTensor);
  unknown.algorithm = "magic";
  expect_error<ValueError>([&] { solve(unknown, true, per_tensor); }, {"magic"});
}

TEST(SolveKnownTest, TheRecordSaysWhatTheResultSays) {
  LayerConfig config = config_of("mse", Granularity::kPerHead);
  config.grid = kFp8E4M3;
  config.tap = Tap::kCache;
  config.role = KVRole::kValue;
  const LayerResult result =
      solve(config, false, observed(Granularity::kPerChannel, DType::kFloat16));
  const LayerRecord record = record_of(result);
  EXPECT_EQ(record.name, "layer");
  EXPECT_EQ(record.params, result.params);
  EXPECT_TRUE(record.per_head);
  EXPECT_EQ(record.grid, kFp8E4M3);
  EXPECT_EQ(record.tap, Tap::kCache);
  EXPECT_EQ(record.role, KVRole::kValue);
  EXPECT_EQ(result.params.size(), static_cast<std::size_t>(kHeads));
}

}  // namespace
}  // namespace amct
