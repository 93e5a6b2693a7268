#include "amct/session/session.h"

#include "amct/core/error.h"
#include "amct/record/record_file.h"
#include "amct/search/search.h"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <limits>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "support/data.h"
#include "support/expect_error.h"
#include "support/files.h"
#include "support/reference.h"

namespace amct {
namespace {

using support::expect_error;
using support::make_tensor;
using support::Tensor;
using Kind = Observation::Kind;
using Names = std::vector<std::string>;

Tensor batch(unsigned seed, std::int64_t rows = 8, std::int64_t channels = 4) {
  return make_tensor(DType::kFloat32, {rows, channels},
                     support::sample(support::Distribution::kNormal,
                                     static_cast<std::size_t>(rows * channels), seed));
}

CalibrationConfig config_of(const Names& names, std::int64_t batch_num) {
  CalibrationConfig config = default_config(names, algorithm_catalog());
  config.batch_num = batch_num;
  return config;
}

OperatorParams operator_params(const std::vector<std::pair<std::string, OptionValue>>& params) {
  return parse_operator_params(params, algorithm_catalog());
}

const SessionOptions kBackground{.writing_share = 0.5, .search_in_background = true};

class SessionTest : public support::FolderTest {
 protected:
  const std::string path = folder / "record.txt";
};

TEST_F(SessionTest, CountsFinishesAndThenIgnores) {
  Session session(config_of({"a"}, 2), path);
  EXPECT_EQ(session.record_file(), path);
  EXPECT_EQ(session.observe("a", batch(1).view()).kind, Kind::kAdded);
  EXPECT_FALSE(session.finished("a"));
  EXPECT_FALSE(std::filesystem::exists(path));
  EXPECT_EQ(session.observe("a", batch(2).view()).kind, Kind::kFinished);
  EXPECT_TRUE(session.finished("a"));
  const std::string record = support::read_file(path);
  // Whatever comes now costs nothing and is not even looked at.
  EXPECT_EQ(session.observe("a", batch(3, 8, 7).view()).kind, Kind::kIgnored);
  const TensorView empty = TensorView::contiguous(nullptr, DType::kFloat32, {0, 4});
  EXPECT_EQ(session.observe("a", empty).kind, Kind::kIgnored);
  EXPECT_EQ(support::read_file(path), record);
  EXPECT_TRUE(session.unfinished().empty());
}

TEST_F(SessionTest, ResultsDescribeEachLayer) {
  CalibrationConfig config = config_of({"first", "second"}, 2);
  config.layers[1].algorithm = "minmax";
  config.layers[1].options.clear();
  config.layers[1].granularity = Granularity::kPerChannel;
  config.layers[1].asymmetric = false;
  config.layers[1].nonfinite = NonFinitePolicy::kSkip;
  Session session(config, path);
  std::vector<float> with_nan = batch(1).values();
  with_nan[3] = std::numeric_limits<float>::quiet_NaN();
  session.observe("second", make_tensor(DType::kFloat32, {2, 4, 4}, with_nan).view());
  session.observe("second", batch(2).view());
  session.observe("first", batch(3).view());
  session.observe("first", batch(4).view());
  const std::vector<LayerResult> results = session.results();
  ASSERT_EQ(results.size(), 2U);
  EXPECT_EQ(results[0].name, "first");  // in configuration order, though it finished last
  const LayerResult& second = results[1];
  EXPECT_EQ(second.name, "second");
  EXPECT_EQ(second.algorithm, "minmax");
  EXPECT_EQ(second.granularity, Granularity::kPerChannel);
  EXPECT_FALSE(second.with_offset);
  EXPECT_EQ(second.batches, 2);
  EXPECT_EQ(second.rows, 16);
  EXPECT_EQ(second.channels, 4);
  EXPECT_EQ(second.non_finite, 1);
  ASSERT_EQ(second.params.size(), 4U);
  for (const QuantParams& params : second.params) EXPECT_EQ(params.offset, 0);
  std::vector<float> all = batch(2).values();
  for (const float x : with_nan) {
    if (std::isfinite(x)) all.push_back(x);
  }
  EXPECT_EQ(second.min, *std::min_element(all.begin(), all.end()));
  EXPECT_EQ(second.max, *std::max_element(all.begin(), all.end()));
  EXPECT_FALSE(second.clipped_fraction.has_value());  // min-max keeps the range alone
  EXPECT_FALSE(second.sqnr_db.has_value());
  EXPECT_FALSE(second.is_sketch);
  EXPECT_GE(second.observe_seconds, 0);
  EXPECT_GE(second.search_seconds, 0);
  EXPECT_EQ(read_record(path),
            (std::vector<LayerRecord>{{"first", results[0].params}, {"second", second.params}}));
}

TEST_F(SessionTest, ActivationOffsetDecidesWhereTheLayerDoesNotSay) {
  CalibrationConfig config = config_of({"global", "own"}, 1);
  config.activation_offset = false;
  config.layers[1].asymmetric = true;
  Session session(config, path);
  const Tensor positive = make_tensor(DType::kFloat32, {40, 5},
                                      support::sample(support::Distribution::kPositive, 200, 1));
  session.observe("global", positive.view());
  session.observe("own", positive.view());
  const std::vector<LayerResult> results = session.results();
  EXPECT_FALSE(results.at(0).with_offset);
  EXPECT_EQ(results.at(0).params.at(0).offset, 0);
  EXPECT_TRUE(results.at(1).with_offset);
  EXPECT_EQ(results.at(1).params.at(0).offset, -128);
}

TEST_F(SessionTest, QualityOfTheResultIsThatOfItsFactors) {
  Session session(config_of({"a"}, 1), path);
  const Tensor data = batch(9, 400);
  session.observe("a", data.view());
  const LayerResult result = session.results().at(0);
  const double mse = support::reference_int8_mse(data.values(), result.params.at(0));
  double power = 0;
  for (const float x : data.values()) power += static_cast<double>(x) * x;
  power /= static_cast<double>(data.values().size());
  EXPECT_NEAR(result.sqnr_db.value(), 10 * std::log10(power / mse), 1e-9);
}

TEST_F(SessionTest, UnfinishedLayersAreToldInConfigurationOrder) {
  Session session(config_of({"c", "b", "a"}, 2), path);
  session.observe("a", batch(1).view());
  session.observe("b", batch(1).view());
  session.observe("b", batch(2).view());
  const std::vector<UnfinishedLayer> left = session.unfinished();
  ASSERT_EQ(left.size(), 2U);
  EXPECT_EQ(left[0].name, "c");
  EXPECT_EQ(left[0].batches, 0);
  EXPECT_EQ(left[0].batch_num, 2);
  EXPECT_EQ(left[1].name, "a");
  EXPECT_EQ(left[1].batches, 1);
}

TEST_F(SessionTest, AnUnknownLayerIsRefusedWithASuggestion) {
  Session session(config_of({"model.layers.0.k_proj"}, 1), path);
  expect_error<ValueError>([&] { session.observe("model.layers.0.k_porj", batch(1).view()); },
                           {"'model.layers.0.k_porj'", "did you mean 'model.layers.0.k_proj'?"});
  EXPECT_FALSE(session.finished("model.layers.0.k_porj"));
  EXPECT_FALSE(std::filesystem::exists(path));
}

TEST_F(SessionTest, ErrorsOfABatchNameLayerAndBatchAndLeaveTheLayerUsable) {
  Session session(config_of({"a"}, 3), path);
  session.observe("a", batch(1).view());
  std::vector<float> values = batch(2).values();
  values[6] = std::numeric_limits<float>::infinity();
  try {
    session.observe("a", make_tensor(DType::kFloat32, {8, 4}, values).view());
    FAIL() << "took infinity";
  } catch (const NonFiniteError& error) {
    EXPECT_EQ(error.count(), 1);
    EXPECT_EQ(error.first_index(), 6);
    EXPECT_EQ(std::string(error.what()).find("layer 'a', batch 2: 1 of 32"), 0U) << error.what();
  }
  expect_error<StateError>([&] { session.observe("a", batch(2, 8, 5).view()); },
                           {"layer 'a', batch 2: ", "5 channels"});
  const TensorView empty = TensorView::contiguous(nullptr, DType::kFloat32, {0, 4});
  expect_error<StateError>([&] { session.observe("a", empty); },
                           {"layer 'a', batch 2: ", "[0, 4]"});
  const Tensor good = batch(2);
  const TensorView malformed{good.bytes.data(), DType::kFloat32, {8, 4}, {4}};
  expect_error<ValueError>([&] { session.observe("a", malformed); }, {"layer 'a', batch 2: "});
  EXPECT_EQ(session.unfinished().at(0).batches, 1);

  // As if nothing had happened.
  session.observe("a", good.view());
  EXPECT_EQ(session.observe("a", batch(3).view()).kind, Kind::kFinished);
  Session clean(config_of({"a"}, 3), folder / "clean.txt");
  for (unsigned seed = 1; seed <= 3; ++seed) clean.observe("a", batch(seed).view());
  EXPECT_EQ(support::read_file(path), support::read_file(folder / "clean.txt"));
}

/// 2 rows of 2 channels, [[1, 2], [2, 2]] in bfloat16, as `batches` batches that were counted.
Observation observe_counted(Session& session, const std::string& name, std::int64_t batches) {
  static const std::vector<std::size_t> group_begin{0, 2};
  static const std::vector<std::uint16_t> patterns{0x3F80, 0x4000};
  static const std::vector<std::uint64_t> counts{1, 3};
  return session.observe_counts(name,
                                {DType::kBFloat16, 2, 2, batches, group_begin, patterns, counts});
}

TEST_F(SessionTest, BatchesCountedElsewhereFinishALayerAsOthersDo) {
  const Tensor here = make_tensor(DType::kFloat32, {1, 2}, {-1, 0.5});
  Session session(config_of({"a"}, 3), path);
  session.observe("a", here.view());
  EXPECT_EQ(observe_counted(session, "a", 2).kind, Kind::kFinished);
  EXPECT_EQ(observe_counted(session, "a", 2).kind, Kind::kIgnored);
  EXPECT_EQ(session.results().at(0).batches, 3);
  EXPECT_EQ(session.results().at(0).rows, 3);

  Session clean(config_of({"a"}, 3), folder / "clean.txt");
  clean.observe("a", here.view());
  clean.observe("a", make_tensor(DType::kFloat32, {1, 2}, {1, 2}).view());
  clean.observe("a", make_tensor(DType::kFloat32, {1, 2}, {2, 2}).view());
  EXPECT_EQ(support::read_file(path), support::read_file(folder / "clean.txt"));
}

TEST_F(SessionTest, RangesFromElsewhereFinishALayerOfMinMax) {
  CalibrationConfig config = config_of({"a"}, 2);
  config.layers[0].algorithm = "minmax";
  config.layers[0].options.clear();
  Session session(config, path);
  const std::vector<float> min{-1};
  const std::vector<float> max{3};
  EXPECT_EQ(session.observe_ranges("a", {4, 8, 1, 0, min, max}).kind, Kind::kAdded);
  EXPECT_EQ(session.observe("a", batch(1).view()).kind, Kind::kFinished);
  EXPECT_LE(session.results().at(0).min, -1);
  EXPECT_GE(session.results().at(0).max, 3);
}

TEST_F(SessionTest, ErrorsOfBatchesElsewhereNameLayerAndBatch) {
  Session session(config_of({"a"}, 5), path);
  EXPECT_EQ(session.check("a", {.shape = {8, 3}}, 1), 0);
  session.observe("a", batch(1).view());
  EXPECT_EQ(session.check("a", {.shape = {8, 4}}, 1), 1);
  expect_error<StateError>([&] { observe_counted(session, "a", 1); },
                           {"layer 'a', batch 2: ", "2 channels"});
  expect_error<ValueError>([&] { observe_counted(session, "a", 3); },
                           {"layer 'a', batch 4: ", "3 batches have 2 rows"});
  expect_error<StateError>([&] { session.check("a", {.shape = {8, 3}}, 2); },
                           {"layer 'a', batch 4: ", "3 channels"});
  expect_error<NonFiniteError>(
      [&] { session.check("a", {.shape = {8, 4}, .non_finite = 2, .first_index = 9}, 0); },
      {"layer 'a', batch 2: 2 of 32 values", "index 9 of shape [8, 4]"});
  expect_error<ValueError>([&] { session.check("b", {.shape = {8, 4}}, 0); }, {"'b'"});
  expect_error<ValueError>([&] { session.plan("b"); }, {"'b'"});
  expect_error<ValueError>([&] { observe_counted(session, "b", 1); }, {"'b'"});
  EXPECT_EQ(session.unfinished().at(0).batches, 1);
}

TEST_F(SessionTest, APlanTellsHowALayerIsObserved) {
  CalibrationConfig config = config_of({"a", "b"}, 1);
  config.layers[1].algorithm = "minmax";
  config.layers[1].options.clear();
  config.layers[1].granularity = Granularity::kPerChannel;
  config.layers[1].nonfinite = NonFinitePolicy::kSkip;
  Session session(config, path);
  EXPECT_EQ(session.plan("a").granularity, Granularity::kPerTensor);
  EXPECT_FALSE(session.plan("a").range_only);
  EXPECT_EQ(session.plan("a").nonfinite, NonFinitePolicy::kRaise);
  EXPECT_EQ(session.plan("a").batch_num, 1);
  EXPECT_EQ(session.plan("b").granularity, Granularity::kPerChannel);
  EXPECT_TRUE(session.plan("b").range_only);
  EXPECT_EQ(session.plan("b").nonfinite, NonFinitePolicy::kSkip);
  session.observe("a", batch(1).view());
  EXPECT_EQ(session.check("a", {.shape = {0, 9}}, 0), std::nullopt);  // not even looked at
  EXPECT_EQ(session.plan("a").batch_num, 1);
}

TEST_F(SessionTest, ALayerWithoutOneFiniteValueIsAnErrorThatAGoodBatchMends) {
  CalibrationConfig config = config_of({"dead"}, 1);
  config.layers[0].nonfinite = NonFinitePolicy::kSkip;
  Session session(config, path);
  const Tensor nan = make_tensor(DType::kFloat32, {2, 1},
                                 std::vector<float>(2, std::numeric_limits<float>::quiet_NaN()));
  expect_error<StateError>([&] { session.observe("dead", nan.view()); },
                           {"layer 'dead', batch 1: ", "no finite value"});
  EXPECT_FALSE(session.finished("dead"));
  ASSERT_EQ(session.unfinished().size(), 1U);
  EXPECT_EQ(session.observe("dead", batch(1, 8, 1).view()).kind, Kind::kFinished);
  EXPECT_EQ(session.results().at(0).non_finite, 2);
}

TEST_F(SessionTest, OverwrittenLayersAreReturned) {
  merge_into_record(path, std::vector<LayerRecord>{{"a", {{1, 0}}}, {"kept", {{2, 0}}}}, {});
  Session session(config_of({"a", "b"}, 1), path);
  EXPECT_EQ(session.observe("b", batch(1).view()).overwritten, Names{});
  EXPECT_EQ(session.observe("a", batch(1).view()).overwritten, Names{"a"});
  const std::vector<LayerRecord> record = read_record(path);
  ASSERT_EQ(record.size(), 3U);
  EXPECT_NE(record[0].params[0].scale, 1.0F);
}

TEST_F(SessionTest, AFailedWriteKeepsTheFactorsForLater) {
  support::write_file(folder / "blocked", "a file where a folder is needed");
  const std::string below = folder / "blocked/record.txt";
  Session session(config_of({"a", "b", "c"}, 1), below);
  expect_error<IoError>([&] { session.observe("a", batch(1).view()); }, {folder / "blocked"});
  EXPECT_TRUE(session.finished("a"));
  EXPECT_EQ(session.results().size(), 1U);
  EXPECT_EQ(session.unfinished().size(), 2U);
  EXPECT_EQ(session.observe("a", batch(1).view()).kind, Kind::kIgnored);
  expect_error<IoError>([&] { session.observe("c", batch(3).view()); }, {folder / "blocked"});
  expect_error<IoError>([&] { session.write_record(); }, {folder / "blocked"});

  std::filesystem::remove(folder / "blocked");
  EXPECT_EQ(session.write_record(), Names{});
  std::vector<LayerRecord> record = read_record(below);
  ASSERT_EQ(record.size(), 2U);
  EXPECT_EQ(record[0].name, "a");
  EXPECT_EQ(record[1].name, "c");
  const std::string text = support::read_file(below);
  std::filesystem::remove(below);
  session.write_record();  // nothing left to write
  EXPECT_FALSE(std::filesystem::exists(below));
  support::write_file(below, text);
  session.observe("b", batch(2).view());
  EXPECT_EQ(read_record(below).at(1).name, "b");
}

TEST_F(SessionTest, LayersWaitWhereWritingWouldTakeTooMuchTime) {
  const auto written = [&] {
    Names names;
    for (const LayerRecord& layer : read_record(path)) names.push_back(layer.name);
    return names;
  };
  Session session(config_of({"a", "b", "c", "d"}, 1), path, {.writing_share = 1e-9});
  session.observe("a", batch(1).view());
  EXPECT_EQ(written(), Names{"a"});  // the first one is free
  session.observe("c", batch(3).view());
  EXPECT_EQ(written(), Names{"a"});
  session.write_record();
  EXPECT_EQ(written(), (Names{"a", "c"}));
  session.observe("b", batch(2).view());
  EXPECT_EQ(written(), (Names{"a", "c"}));
  session.observe("d", batch(4).view());  // the last one
  EXPECT_EQ(written(), (Names{"a", "b", "c", "d"}));
}

TEST_F(SessionTest, SearchesInTheBackgroundGiveTheSameResults) {
  Names names;
  for (int i = 0; i < 20; ++i) names.push_back("layer" + std::to_string(i));
  Session here(config_of(names, 1), folder / "here.txt");
  Session there(config_of(names, 1), path, kBackground);
  for (unsigned i = 0; i < names.size(); ++i) {
    here.observe(names[i], batch(i).view());
    EXPECT_EQ(there.observe(names[i], batch(i).view()).kind, Kind::kFinished);
    EXPECT_TRUE(there.finished(names[i]));
    EXPECT_EQ(there.observe(names[i], batch(i).view()).kind, Kind::kIgnored);
    EXPECT_EQ(there.unfinished().size(), names.size() - i - 1);
  }
  EXPECT_EQ(support::read_file(path), support::read_file(folder / "here.txt"));
  const std::vector<LayerResult> results = there.results();
  ASSERT_EQ(results.size(), names.size());
  for (std::size_t i = 0; i < names.size(); ++i) {
    EXPECT_EQ(results[i].params, here.results()[i].params);
    EXPECT_EQ(results[i].sqnr_db, here.results()[i].sqnr_db);
    EXPECT_GT(results[i].search_seconds, 0);
  }
}

TEST_F(SessionTest, WhatIsSearchedInTheBackgroundIsWaitedFor) {
  Session session(config_of({"a", "b", "c"}, 1), path,
                  {.writing_share = 1e-9, .search_in_background = true});
  session.observe("a", batch(1, 4096, 64).view());
  EXPECT_EQ(session.results().size(), 1U);
  session.observe("b", batch(2, 4096, 64).view());
  session.write_record();
  EXPECT_EQ(read_record(path).size(), 2U);
}

TEST_F(SessionTest, AFailedSearchInTheBackgroundLeavesItsLayerUnfinished) {
  CalibrationConfig config = config_of({"a", "b"}, 1);
  config.layers[0].options.clear();  // an error that no caller can make, as running out of memory
  Session session(config, path, kBackground);
  EXPECT_EQ(session.observe("a", batch(1).view()).kind, Kind::kFinished);
  EXPECT_THROW(session.write_record(), std::exception);
  session.write_record();  // it is said once
  EXPECT_FALSE(session.finished("a"));
  ASSERT_EQ(session.unfinished().size(), 2U);
  EXPECT_EQ(session.unfinished()[0].batches, 1);
  EXPECT_EQ(session.observe("b", batch(1).view()).kind, Kind::kFinished);
  session.write_record();
  EXPECT_EQ(read_record(path).size(), 1U);
}

TEST_F(SessionTest, ValuesLeftOutAreMissedByTheCallItselfAlsoWithABackground) {
  CalibrationConfig config = config_of({"a"}, 1);
  config.layers[0].nonfinite = NonFinitePolicy::kSkip;
  Session session(config, path, kBackground);
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const Tensor dead = make_tensor(DType::kFloat32, {2, 1}, {nan, nan});
  expect_error<StateError>([&] { session.observe("a", dead.view()); }, {"'a'", "batch 1"});
  EXPECT_FALSE(session.finished("a"));
}

TEST_F(SessionTest, LayersAreFinishedOnDemandWithWhatTheySaw) {
  Session session(config_of({"a", "b", "c"}, 3), path, kBackground);
  session.observe("a", batch(1).view());
  session.observe("a", batch(2).view());
  for (unsigned i = 0; i < 3; ++i) session.observe("b", batch(i).view());
  EXPECT_EQ(session.finish(), Names{});
  const std::vector<LayerRecord> record = read_record(path);
  ASSERT_EQ(record.size(), 2U);
  ASSERT_EQ(session.unfinished().size(), 1U);
  EXPECT_EQ(session.unfinished()[0].name, "c");
  EXPECT_EQ(session.results().at(0).batches, 2);
  EXPECT_EQ(session.results().at(0).rows, 16);
  EXPECT_EQ(session.observe("a", batch(3).view()).kind, Kind::kIgnored);

  const std::string two = folder / "two.txt";
  Session other(config_of({"a"}, 2), two);
  other.observe("a", batch(1).view());
  other.observe("a", batch(2).view());
  EXPECT_EQ(read_record(two).at(0), record[0]);

  EXPECT_EQ(session.finish(), Names{});  // nothing more to finish
  for (unsigned i = 0; i < 3; ++i) session.observe("c", batch(i).view());
  EXPECT_EQ(read_record(path).size(), 3U);
}

TEST_F(SessionTest, ALayerThatCannotBeFinishedDoesNotKeepTheOthersBack) {
  CalibrationConfig config = config_of({"dead", "good"}, 2);
  for (LayerConfig& layer : config.layers) layer.nonfinite = NonFinitePolicy::kSkip;
  Session session(config, path, kBackground);
  const float nan = std::numeric_limits<float>::quiet_NaN();
  session.observe("dead", make_tensor(DType::kFloat32, {2, 1}, {nan, nan}).view());
  session.observe("good", batch(1).view());
  expect_error<StateError>([&] { session.finish(); }, {"'dead'", "batch 1"});
  ASSERT_EQ(read_record(path).size(), 1U);
  EXPECT_EQ(read_record(path)[0].name, "good");
  EXPECT_EQ(session.unfinished().size(), 1U);
}

/// What is not written yet is left out, and nothing is half of one: a search ends before what it
/// uses does.
TEST_F(SessionTest, AnEndWaitsForTheBackground) {
  for (unsigned i = 0; i < 20; ++i) {
    const auto seen = batch(i, 4096, 64);
    std::filesystem::remove(path);
    {
      Session session(config_of({"a", "b"}, 1), path, kBackground);
      session.observe("a", seen.view());
    }
    Session alone(config_of({"a", "b"}, 1), folder / "alone.txt");
    alone.observe("a", seen.view());
    if (std::filesystem::exists(path)) {
      EXPECT_EQ(support::read_file(path), support::read_file(folder / "alone.txt"));
    }
    EXPECT_FALSE(std::filesystem::exists(folder / ".record.txt.lock"));
  }
}

TEST_F(SessionTest, IsCompleteWhenTheFilesHaveAllLayers) {
  const std::string counts = folder / "all.counts";
  Session session(config_of({"a", "b"}, 1), path, {.counts_file = counts});
  EXPECT_FALSE(session.is_complete());
  session.observe("a", batch(1).view());
  EXPECT_FALSE(session.is_complete());
  support::write_file(path, "garbage");
  expect_error<ValueError>([&] { session.observe("b", batch(1).view()); }, {path});
  EXPECT_TRUE(session.unfinished().empty());
  EXPECT_FALSE(session.is_complete());
  std::filesystem::remove(path);
  session.write_record();
  EXPECT_TRUE(session.is_complete());
  EXPECT_TRUE(std::filesystem::exists(counts));
  EXPECT_EQ(session.counts_file(), counts);
  Session operators(operator_params({}), folder / "operators.txt");
  operators.observe("a", batch(1).view());
  EXPECT_FALSE(operators.is_complete());
}

/// Said again at the end, since whoever writes the record after the first error has no counts.
TEST_F(SessionTest, ALostCountsFileIsSaidUntilTheEnd) {
  const std::string counts = folder / "all.counts";
  const int code = support::with_file_size_limit(2000, [&] {
    Session session(config_of({"a", "b"}, 1), path, {.counts_file = counts});
    session.observe("a", batch(1, 4096, 64).view());
    try {
      session.observe("b", batch(2).view());
      return 1;
    } catch (const IoError& error) {
      if (error.path() != counts) return 2;
    }
    if (read_record(path).size() != 2) return 3;  // nothing keeps the factors from it
    session.write_record();
    if (session.is_complete()) return 4;
    try {
      session.finish();
      return 5;
    } catch (const StateError& error) {
      if (std::string(error.what()).find(counts) == std::string::npos) return 6;
    }
    return std::filesystem::exists(counts) ? 7 : 0;
  });
  EXPECT_EQ(code, 0);
}

TEST_F(SessionTest, ARecordThatWasRemovedHasAllLayersInTheEnd) {
  Session session(config_of({"a", "b", "c"}, 1), path);
  session.observe("a", batch(1).view());
  session.observe("b", batch(2).view());
  const std::vector<LayerRecord> before = read_record(path);
  ASSERT_EQ(before.size(), 2U);
  std::filesystem::remove(path);
  session.observe("c", batch(3).view());
  const std::vector<LayerRecord> record = read_record(path);
  ASSERT_EQ(record.size(), 3U);
  EXPECT_EQ(record[0].params, before[0].params);
  EXPECT_EQ(record[1].params, before[1].params);
}

TEST_F(SessionTest, UnwrittenFactorsGoInWithTheNextLayer) {
  support::write_file(path, "garbage");
  Session session(config_of({"a", "b"}, 1), path);
  expect_error<ValueError>([&] { session.observe("b", batch(1).view()); }, {path});
  EXPECT_EQ(support::read_file(path), "garbage");
  std::filesystem::remove(path);
  EXPECT_EQ(session.observe("a", batch(2).view()).kind, Kind::kFinished);
  const std::vector<LayerRecord> record = read_record(path);
  ASSERT_EQ(record.size(), 2U);
  EXPECT_EQ(record[0].name, "a");
  EXPECT_EQ(record[1].name, "b");
}

TEST_F(SessionTest, ConfigurationsThatCannotRunAreRefusedAtOnce) {
  expect_error<ValueError>([&] { Session(config_of({"a", "b", "a"}, 1), path); }, {"'a'", "twice"});
  CalibrationConfig magic = config_of({"a"}, 1);
  magic.layers[0].algorithm = "magic";
  expect_error<ValueError>([&] { Session(magic, path); }, {"'a'", "magic"});
  expect_error<ValueError>([&] { Session(config_of({"a"}, 0), path); }, {"batch_num"});
  expect_error<ValueError>([&] { Session(config_of({"a"}, 1), ""); }, {"empty"});
  expect_error<ValueError>([&] { Session(config_of({"a"}, 1), folder.path()); }, {"folder"});
  expect_error<ValueError>([&] { Session(operator_params({}), folder.path()); }, {"folder"});
}

using OperatorSessionTest = SessionTest;

TEST_F(SessionTest, ChannelsOfKeysAreWeighed) {
  const std::vector<std::uint64_t> weights{1, 1000, 1, 1};
  CalibrationConfig config = config_of({"keys", "values", "ranges"}, 1);
  for (LayerConfig& layer : config.layers) {
    layer.tap = Tap::kCache;
    layer.role = layer.name == "values" ? KVRole::kValue : KVRole::kKey;
    layer.query_weighted = true;
  }
  config.layers[2].algorithm = "minmax";
  config.layers[2].options = {};
  Session session(config, path);
  EXPECT_EQ(session.plan("keys").granularity, Granularity::kPerChannel);
  EXPECT_TRUE(session.plan("keys").weighs_channels);
  EXPECT_FALSE(session.plan("keys").channel_factors);
  for (const char* name : {"values", "ranges"}) {
    EXPECT_EQ(session.plan(name).granularity, Granularity::kPerTensor);
    EXPECT_FALSE(session.plan(name).weighs_channels);
  }
  const Tensor x = batch(1, 400);
  expect_error<StateError>([&] { session.observe("keys", x.view()); }, {"layer 'keys'", "queries"});
  Session weighed(config, path);
  weighed.add_channel_weights("keys", weights);
  EXPECT_EQ(weighed.observe("keys", x.view()).kind, Kind::kFinished);
  weighed.add_channel_weights("keys", weights);  // too late, and so nothing
  weighed.observe("values", x.view());
  const std::vector<LayerResult> results = weighed.results();
  Observer observer(Granularity::kPerChannel);
  observer.add_channel_weights(weights);
  observer.observe(x.view());
  EXPECT_EQ(results[0].params, solve(config.layers[0], true, observer).params);
  EXPECT_NE(results[0].params, results[1].params);
  EXPECT_EQ(results[0].granularity, Granularity::kPerTensor);
  Session other(config, path);
  expect_error<StateError>(
      [&] {
        other.add_channel_weights("keys", std::vector<std::uint64_t>{1, 2});
        other.observe("keys", x.view());
      },
      {"layer 'keys', batch 1", "4 channels"});
  expect_error<ValueError>([&] { other.add_channel_weights("nothing", weights); }, {"'nothing'"});
}

TEST_F(OperatorSessionTest, CalibratesWhateverLayerComes) {
  Session session(operator_params({{"batch_num", std::int64_t{2}},
                                   {"act_algo", std::string("hfmg")},
                                   {"quant_granularity", std::string("per_channel")}}),
                  path);
  EXPECT_TRUE(session.unfinished().empty());
  session.observe("late", batch(1).view());
  session.observe("early", batch(2).view());
  EXPECT_EQ(session.unfinished().size(), 2U);
  EXPECT_EQ(session.observe("early", batch(3).view()).kind, Kind::kFinished);
  EXPECT_EQ(session.observe("early", batch(3).view()).kind, Kind::kIgnored);
  ASSERT_EQ(session.unfinished().size(), 1U);
  EXPECT_EQ(session.unfinished()[0].name, "late");
  EXPECT_EQ(session.observe("late", batch(4).view()).kind, Kind::kFinished);
  const std::vector<LayerRecord> record = read_record(path);
  ASSERT_EQ(record.size(), 2U);
  EXPECT_EQ(record[0].name, "early");  // in the order they finished
  EXPECT_EQ(record[1].name, "late");
  EXPECT_EQ(record[0].params.size(), 4U);
  EXPECT_EQ(session.results().at(0).name, "early");
  EXPECT_EQ(session.results().at(0).algorithm, "hfmg");
}

TEST_F(OperatorSessionTest, SeveralOperatorsShareARecord) {
  Session plain(operator_params({}), path);
  Session symmetric(operator_params({{"with_offset", false}}), path);
  plain.observe("a", batch(1).view());
  symmetric.observe("b", batch(1).view());
  EXPECT_EQ(symmetric.observe("a", batch(1).view()).overwritten, Names{"a"});
  const std::vector<LayerRecord> record = read_record(path);
  ASSERT_EQ(record.size(), 2U);
  EXPECT_EQ(record[0].params, record[1].params);
  EXPECT_EQ(record[0].params[0].offset, 0);
}

TEST_F(OperatorSessionTest, MovedSessionGoesOn) {
  Session session(operator_params({{"batch_num", std::int64_t{2}}}), path);
  session.observe("a", batch(1).view());
  Session moved(std::move(session));
  EXPECT_EQ(moved.observe("a", batch(2).view()).kind, Kind::kFinished);
}

}  // namespace
}  // namespace amct
