// A run that went on from a snapshot ends as one that was never broken.
#include "amct/core/error.h"
#include "amct/record/record_file.h"
#include "amct/search/search.h"
#include "amct/session/counts_file.h"
#include "amct/session/session.h"

#include <algorithm>
#include <limits>
#include <map>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include <gtest/gtest.h>

#include "support/data.h"
#include "support/expect_error.h"
#include "support/files.h"

namespace amct {
namespace {

using support::expect_error;
using support::Tensor;
using Names = std::vector<std::string>;

constexpr std::int64_t kBatches = 5;
constexpr int kForwards = 2 * kBatches;  // layer "rare" sees every other one
constexpr std::int64_t kChannels = 6;

Tensor batch_of(DType dtype, int forward, unsigned layer) {
  return support::make_tensor(dtype, {16, kChannels},
                              support::sample(support::Distribution::kNormal, 16 * kChannels,
                                              static_cast<unsigned>(forward) * 8 + layer));
}

/// What a counts file holds, whatever the order in which layers were searched.
std::map<std::string, std::string> layers_of(const std::string& path) {
  CountsReader reader(path);
  std::map<std::string, std::string> layers;
  while (const std::optional<LayerCounts> layer = reader.next()) {
    layers[layer->config.name] = std::to_string(layer->index) + layer->observer.serialize();
  }
  return layers;
}

CalibrationConfig config(Granularity granularity = Granularity::kPerTensor) {
  CalibrationConfig config = default_config(Names{"rare", "ifmr", "range"}, algorithm_catalog());
  config.batch_num = kBatches;
  for (LayerConfig& layer : config.layers) {
    layer.granularity = granularity;
    if (granularity == Granularity::kPerHead) layer.head_num = 2;
  }
  config.layers[2].algorithm = "minmax";
  config.layers[2].options.clear();
  return config;
}

/// Shows a session the forwards from `begin` to `end`.
void show(Session& session, DType dtype, int begin, int end) {
  for (int forward = begin; forward < end; ++forward) {
    if (forward % 2 == 0) session.observe("rare", batch_of(dtype, forward, 0).view());
    session.observe("ifmr", batch_of(dtype, forward, 1).view());
    session.observe("range", batch_of(dtype, forward, 2).view());
  }
}

class SnapshotTest : public support::FolderTest {
 protected:
  /// The same for a session of which only the snapshot matters.
  void save_at(int forward, DType dtype = DType::kBFloat16, const SessionOptions& options = {}) {
    Session session(config(), folder / "other.txt", options);
    show(session, dtype, 0, forward);
    session.save(snapshot, forward);
  }

  const std::string snapshot = folder / "run.snapshot";
};

using Case = std::tuple<DType, Granularity, bool>;

class SnapshotEveryTest : public testing::TestWithParam<Case> {
 protected:
  support::TempFolder folder;
  const std::string snapshot = folder / "run.snapshot";
};

INSTANTIATE_TEST_SUITE_P(All, SnapshotEveryTest,
                         testing::Combine(testing::ValuesIn(support::kAllDTypes),
                                          testing::Values(Granularity::kPerTensor,
                                                          Granularity::kPerChannel,
                                                          Granularity::kPerHead),
                                          testing::Bool()),
                         [](const auto& info) {
                           return std::string(name_of(std::get<0>(info.param))) + "_" +
                                  std::string(name_of(std::get<1>(info.param))) +
                                  (std::get<2>(info.param) ? "_counts" : "");
                         });

/// Broken after any forward, and sketched or not.
TEST_P(SnapshotEveryTest, EndsWithTheSameBits) {
  const DType dtype = std::get<0>(GetParam());
  const Granularity granularity = std::get<1>(GetParam());
  const bool keeps_counts = std::get<2>(GetParam());
  for (const std::size_t budget : {std::size_t{1} << 20, std::size_t{600}}) {
    const auto options = [&](const std::string& counts) {
      return SessionOptions{.memory_budget = budget,
                            .writing_share = 0.5,
                            .search_in_background = true,
                            .counts_file = keeps_counts ? counts : std::string()};
    };
    const std::string whole = folder / "whole.txt";
    const std::string whole_counts = folder / "whole.counts";
    Session unbroken(config(granularity), whole, options(whole_counts));
    show(unbroken, dtype, 0, kForwards);
    for (const int cut : {1, 2, 5, 8}) {
      SCOPED_TRACE(cut);
      const std::string counts = folder / "broken.counts";
      const std::string record = folder / ("broken" + std::to_string(cut) + ".txt");
      {
        Session first(config(granularity), folder / "lost.txt", options(folder / "lost.counts"));
        show(first, dtype, 0, cut);
        first.save(snapshot, cut);
        show(first, dtype, cut, std::min(cut + 2, kForwards - 1));  // and is lost
      }
      Session second(config(granularity), record, options(counts));
      ASSERT_EQ(second.restore(snapshot), cut);
      show(second, dtype, cut, kForwards);
      EXPECT_TRUE(second.unfinished().empty());
      ASSERT_EQ(support::read_file(record), support::read_file(whole));
      if (keeps_counts) {
        ASSERT_EQ(layers_of(counts), layers_of(whole_counts));
      }
      const std::vector<LayerResult> results = second.results();
      const std::vector<LayerResult> expected = unbroken.results();
      ASSERT_EQ(results.size(), expected.size());
      for (std::size_t i = 0; i < results.size(); ++i) {
        EXPECT_EQ(results[i].name, expected[i].name);
        EXPECT_EQ(results[i].algorithm, expected[i].algorithm);
        EXPECT_EQ(results[i].granularity, expected[i].granularity);
        EXPECT_EQ(results[i].rows, expected[i].rows);
        EXPECT_EQ(results[i].batches, expected[i].batches);
        EXPECT_EQ(results[i].min, expected[i].min);
        EXPECT_EQ(results[i].max, expected[i].max);
        EXPECT_EQ(results[i].sqnr_db, expected[i].sqnr_db);
        EXPECT_EQ(results[i].clipped_fraction, expected[i].clipped_fraction);
        EXPECT_EQ(results[i].is_sketch, expected[i].is_sketch);
        EXPECT_GT(results[i].observe_seconds, 0);
      }
    }
  }
}

TEST_F(SnapshotTest, ASecondBreakIsSurvivedToo) {
  const std::string whole = folder / "whole.txt";
  Session unbroken(config(), whole);
  show(unbroken, DType::kFloat16, 0, kForwards);
  save_at(2, DType::kFloat16);
  {
    Session second(config(), folder / "second.txt");
    second.restore(snapshot);
    show(second, DType::kFloat16, 2, 7);
    second.save(snapshot, 7);
  }
  const std::string record = folder / "third.txt";
  Session third(config(), record);
  EXPECT_EQ(third.restore(snapshot), 7);
  show(third, DType::kFloat16, 7, kForwards);
  EXPECT_EQ(support::read_file(record), support::read_file(whole));
}

TEST_F(SnapshotTest, FactorsOfFinishedLayersAreWrittenAtOnce) {
  save_at(7);
  const std::string record = folder / "record.txt";
  Session session(config(), record);
  session.restore(snapshot);
  EXPECT_TRUE(session.finished("ifmr"));
  session.write_record();
  EXPECT_EQ(read_record(record).size(), 2U);
}

TEST_F(SnapshotTest, OfAnotherCalibrationItIsRefused) {
  save_at(2);
  const auto refused = [&](const CalibrationConfig& other, const SessionOptions& options,
                           const std::string& why) {
    Session session(other, folder / "record.txt", options);
    expect_error<ValueError>([&] { session.restore(snapshot); }, {why});
    EXPECT_EQ(session.unfinished().front().batches, 0);
  };
  CalibrationConfig other = config();
  other.layers[1].asymmetric = false;
  refused(other, {}, "the configuration differs at '/");
  other = config();
  other.batch_num = 9;
  refused(other, {}, "the configuration differs at '/batch_num'");
  Session of_others(config(), folder / "record.txt");
  expect_error<ValueError>([&] { of_others.restore(snapshot, "digest"); },
                           {"other batches were shown, or to another model"});
  refused(config(), {.memory_budget = 1000}, "memory budget");
  refused(config(), {.counts_file = folder / "all.counts"}, "a counts file was not asked for");
  save_at(2, DType::kBFloat16, {.counts_file = folder / "all.counts"});
  refused(config(), {}, "a counts file was asked for");
}

TEST_F(SnapshotTest, ARunThatHasBegunIsNotReplaced) {
  save_at(2);
  Session session(config(), folder / "record.txt");
  show(session, DType::kBFloat16, 0, 1);
  expect_error<StateError>([&] { session.restore(snapshot); }, {"has begun"});
}

/// A layer that saw all its batches, and no finite value in them, goes on waiting for one.
TEST_F(SnapshotTest, ALayerWithoutFiniteValuesIsNoDamage) {
  CalibrationConfig skipping = config();
  skipping.layers.resize(2);
  skipping.batch_num = 1;
  for (LayerConfig& layer : skipping.layers) layer.nonfinite = NonFinitePolicy::kSkip;
  const std::vector<float> nothing(12, std::numeric_limits<float>::quiet_NaN());
  const std::vector<float> something(12, 0.5F);
  const auto view = [](const std::vector<float>& values) {
    return TensorView::contiguous(values.data(), DType::kFloat32, {3, 4});
  };
  const std::string name = skipping.layers[0].name;
  {
    Session session(skipping, folder / "record.txt");
    EXPECT_THROW(session.observe(name, view(nothing)), StateError);
    session.save(snapshot, 1);
  }
  Session next(skipping, folder / "record.txt");
  EXPECT_EQ(next.restore(snapshot), 1);
  EXPECT_EQ(next.unfinished().front().batches, 1);
  EXPECT_EQ(next.observe(name, view(something)).kind, Observation::Kind::kFinished);
}

TEST_F(SnapshotTest, WhatCannotBeSaved) {
  Session session(config(), folder / "record.txt");
  expect_error<ValueError>([&] { session.save(snapshot, -1); }, {"negative"});
  expect_error<ValueError>([&] { session.save(folder.path(), 0); }, {"is a folder"});
  show(session, DType::kBFloat16, 0, kForwards);
  expect_error<StateError>([&] { session.save(snapshot, kForwards); }, {"all layers are finished"});
  Session of_operator(OperatorParams{}, folder / "record.txt");
  expect_error<StateError>([&] { of_operator.save(snapshot, 0); }, {"operator"});
  expect_error<StateError>([&] { of_operator.restore(snapshot); }, {"operator"});
}

TEST_F(SnapshotTest, WithTheNameOfAnotherFileOfTheRunItIsRefused) {
  const std::string record = folder / "record.txt";
  const std::string counts = folder / "all.counts";
  expect_error<ValueError>(
      [&] { const Session session(config(), record, {.counts_file = record}); },
      {"record.txt' is given twice"});
  Session session(config(), record, {.counts_file = counts});
  show(session, DType::kBFloat16, 0, 2);
  for (const std::string& other : {record, counts})
    expect_error<ValueError>([&] { session.save(other, 2); }, {other, "is given twice"});
}

/// A snapshot without the counts of finished layers could not be gone on from.
TEST_F(SnapshotTest, WhereCountsWereLostTheOneBeforeStays) {
  const SessionOptions options{.counts_file = folder / "all.counts"};
  save_at(3, DType::kFloat32, options);
  const std::string before = support::read_file(snapshot);
  const auto lose_counts = [&] {
    Session session(config(), folder / "record.txt", options);
    session.restore(snapshot);
    show(session, DType::kFloat32, 3, kBatches);
    try {
      session.write_record();
      return 1;
    } catch (const IoError& error) {
      if (error.path() != options.counts_file) return 2;
    }
    try {
      session.save(snapshot, kBatches);
      return 3;
    } catch (const StateError& error) {
      if (std::string(error.what()).find("counts file") == std::string::npos) return 4;
    }
    return 0;
  };
  EXPECT_EQ(support::with_file_size_limit(1000, lose_counts), 0);
  EXPECT_EQ(support::read_file(snapshot), before);
  Session next(config(), folder / "record.txt", options);
  EXPECT_EQ(next.restore(snapshot), 3);
}

/// Any byte that is another, and any end that is missing, is told of, and nothing is taken over.
TEST_F(SnapshotTest, ADamagedOneIsRefused) {
  save_at(7, DType::kBFloat16, {.counts_file = folder / "all.counts"});
  const std::string right = support::read_file(snapshot);
  Session session(config(), folder / "record.txt", {.counts_file = folder / "more.counts"});
  const auto refused = [&](const std::string& content) {
    support::write_file(snapshot, content);
    EXPECT_THROW(session.restore(snapshot), ValueError);
  };
  for (std::size_t i = 0; i < right.size(); i += i < 600 ? 1 : 37) {
    std::string wrong = right;
    wrong[i] = static_cast<char>(wrong[i] ^ 0x10);
    refused(wrong);
    refused(right.substr(0, i));
  }
  refused(right + '\0');
  support::write_file(snapshot, "");
  expect_error<ValueError>([&] { session.restore(snapshot); }, {"this is not a snapshot"});
  std::string later = right;
  later[7] = 2;
  support::write_file(snapshot, later);
  expect_error<ValueError>([&] { session.restore(snapshot); }, {"has version 2 of its format"});
  EXPECT_THROW(session.restore(folder / "none"), IoError);
  support::write_file(snapshot, right);
  EXPECT_EQ(session.restore(snapshot), 7);
}

}  // namespace
}  // namespace amct
