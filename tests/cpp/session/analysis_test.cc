#include "amct/session/analysis.h"

#include "amct/core/error.h"
#include "amct/search/search.h"
#include "amct/session/session.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "support/data.h"
#include "support/expect_error.h"
#include "support/files.h"
#include "support/reference.h"

namespace amct {
namespace {

using support::expect_error;

constexpr std::size_t kChannels = 6;

/// Channels of different widths.
std::vector<float> values_of(unsigned seed) {
  std::vector<float> x = support::sample(support::Distribution::kNormal, 100 * kChannels, seed);
  for (std::size_t i = 0; i < x.size(); ++i) x[i] *= static_cast<float>(1 + i % kChannels);
  return x;
}

Observer observed(Granularity granularity) {
  Observer observer(granularity, {.heads = 3});
  const support::Tensor batch =
      support::make_tensor(DType::kFloat32, {100, kChannels}, values_of(1));
  observer.observe(batch.view());
  return observer;
}

std::vector<float> column(const std::vector<float>& x, std::size_t channel) {
  std::vector<float> values;
  for (std::size_t i = channel; i < x.size(); i += kChannels) values.push_back(x[i]);
  return values;
}

TEST(AnalysisTest, PerChannelByHand) {
  const std::vector<float> x = values_of(1);
  LayerRecord record{.name = "a", .params = {}};
  for (std::size_t i = 0; i < kChannels; ++i)
    record.params.push_back({0.01F * static_cast<float>(i + 1), static_cast<int>(i) - 2});
  const LayerAnalysis analysis = analyse(record, observed(Granularity::kPerChannel), 32);
  EXPECT_EQ(analysis.name, "a");
  ASSERT_EQ(analysis.groups.size(), kChannels);
  ASSERT_EQ(analysis.channel_max_abs.size(), kChannels);
  double squared = 0;
  for (std::size_t i = 0; i < kChannels; ++i) {
    const std::vector<float> values = column(x, i);
    const GroupAnalysis& group = analysis.groups[i];
    EXPECT_EQ(group.min, *std::ranges::min_element(values));
    EXPECT_EQ(group.max, *std::ranges::max_element(values));
    EXPECT_EQ(group.params, record.params[i]);
    EXPECT_NEAR(group.clip_low, (-128.0 - record.params[i].offset) * record.params[i].scale, 1e-9);
    EXPECT_NEAR(group.clip_high, (127.0 - record.params[i].offset) * record.params[i].scale, 1e-9);
    const double mse = support::reference_mse(values, kInt8, record.params[i]);
    EXPECT_NEAR(group.error.mse(), mse, 1e-9 * mse);
    squared += mse * 100;
    EXPECT_EQ(analysis.channel_max_abs[i], std::max(-group.min, group.max));
  }
  EXPECT_NEAR(analysis.error.squared_error, squared, 1e-9 * squared);
  EXPECT_EQ(analysis.histogram.size(), 32U);
  EXPECT_EQ(std::accumulate(analysis.histogram.begin(), analysis.histogram.end(), 0ULL),
            100 * kChannels);
  EXPECT_EQ(analysis.histogram_low, *std::ranges::min_element(x));
  EXPECT_GT(analysis.histogram.front(), 0U);
  EXPECT_GT(analysis.histogram.back(), 0U);
}

TEST(AnalysisTest, TheCurveIsThatOfMinMaxTimesItsFactors) {
  const std::vector<float> x = values_of(1);
  const auto [low, high] = std::ranges::minmax(x);
  for (const int offset : {0, 3}) {
    const LayerRecord record{.name = "a", .params = {{0.1F, offset}}};
    const LayerAnalysis analysis = analyse(record, observed(Granularity::kPerChannel));
    ASSERT_EQ(analysis.curve.size(), 10U);
    EXPECT_EQ(analysis.curve.front().factor, 0.125);
    EXPECT_EQ(analysis.curve.back().factor, 1.25);
    for (const LossPoint& point : analysis.curve) {
      const QuantParams params =
          support::reference_minmax(static_cast<float>(low * point.factor),
                                    static_cast<float>(high * point.factor), offset != 0);
      const double mse = support::reference_mse(x, kInt8, params);
      EXPECT_NEAR(point.loss, mse, 1e-9 * mse) << point.factor;
    }
  }
}

TEST(AnalysisTest, CoarserFactorsThanWereObserved) {
  const LayerRecord heads{
      .name = "a", .params = {{1, 0}, {2, 0}, {3, 0}}, .per_head = true, .grid = kFp8E4M3};
  for (const Granularity seen : {Granularity::kPerChannel, Granularity::kPerHead}) {
    const LayerAnalysis analysis = analyse(heads, observed(seen));
    ASSERT_EQ(analysis.groups.size(), 3U);
    EXPECT_EQ(analysis.groups[1].clip_high, 896);
    EXPECT_EQ(analysis.groups[1].error.total, 200);
    EXPECT_EQ(analysis.channel_max_abs.empty(), seen == Granularity::kPerHead);
  }
}

TEST(AnalysisTest, AConstantHasAHistogramOfSomeWidth) {
  Observer observer(Granularity::kPerTensor);
  observer.observe(support::make_tensor(DType::kFloat32, {4, 1}, {3, 3, 3, 3}).view());
  const LayerAnalysis analysis = analyse({.name = "a", .params = {{1, 0}}}, observer);
  EXPECT_EQ(analysis.histogram_low, 2);
  EXPECT_EQ(analysis.histogram_high, 4);
}

TEST(AnalysisErrorTest, WhatDoesNotFit) {
  const LayerRecord three{.name = "a", .params = {{1, 0}, {2, 0}, {3, 0}}};
  expect_error<ValueError>([&] { analyse(three, observed(Granularity::kPerChannel)); },
                           {"3 factors", "6 channels"});
  const LayerRecord one{.name = "a", .params = {{1, 0}}};
  Observer ranges(Granularity::kPerTensor, {.range_only = true});
  expect_error<ValueError>([&] { analyse(one, ranges); }, {"range"});
  Observer none(Granularity::kPerTensor, {.nonfinite = NonFinitePolicy::kSkip});
  none.observe(
      support::make_tensor(DType::kFloat32, {1, 1}, {std::numeric_limits<float>::infinity()})
          .view());
  expect_error<StateError>([&] { analyse(one, none); }, {"finite"});
  expect_error<ValueError>([&] { analyse(one, observed(Granularity::kPerTensor), 0); }, {"bin"});
}

using AnalysisFilesTest = support::FolderTest;

TEST_F(AnalysisFilesTest, InTheOrderOfTheRecord) {
  const std::string record = folder / "record.txt";
  const std::string counts = folder / "all.counts";
  Session session(default_config(std::vector<std::string>{"a", "b"}, algorithm_catalog()), record,
                  {.counts_file = counts});
  for (const char* name : {"b", "a"}) {
    const support::Tensor batch =
        support::make_tensor(DType::kFloat32, {100, kChannels}, values_of(2));
    session.observe(name, batch.view());
  }
  const std::vector<LayerAnalysis> layers = analyse_files(record, counts);
  ASSERT_EQ(layers.size(), 2U);
  EXPECT_EQ(layers[0].name, "a");
  EXPECT_NEAR(layers[0].error.sqnr_db(), *session.results()[0].sqnr_db, 1e-6);
  support::write_file(record, "record { key: 'x' kv_cache_value { scale: 1 offset: 0 } }");
  expect_error<ValueError>([&] { analyse_files(record, counts); },
                           {"no layer", "different models"});
}

}  // namespace
}  // namespace amct
