#include "amct/session/solve.h"

#include "amct/core/error.h"
#include "amct/search/search.h"

#include <string>
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
