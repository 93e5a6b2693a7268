#include "amct/session/counts_file.h"

#include "amct/core/error.h"
#include "amct/record/record_file.h"
#include "amct/search/search.h"
#include "amct/session/session.h"

#include <algorithm>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "support/data.h"
#include "support/expect_error.h"
#include "support/files.h"

namespace amct {
namespace {

using support::expect_error;
using support::make_tensor;
using support::Tensor;
using Names = std::vector<std::string>;

constexpr std::int64_t kBatches = 4;

Tensor batch(unsigned seed, DType dtype = DType::kBFloat16) {
  return make_tensor(dtype, {16, 4}, support::sample(support::Distribution::kNormal, 64, seed));
}

CalibrationConfig config_of(std::int64_t batch_num) {
  CalibrationConfig config = default_config(Names{"a", "b"}, algorithm_catalog());
  config.batch_num = batch_num;
  config.activation_offset = false;
  config.layers[1].algorithm = "minmax";  // which needs no counts by itself
  config.layers[1].options.clear();
  config.layers[1].granularity = Granularity::kPerChannel;
  return config;
}

std::vector<LayerCounts> layers_of(const std::string& path) {
  CountsReader reader(path);
  std::vector<LayerCounts> layers;
  while (std::optional<LayerCounts> layer = reader.next()) layers.push_back(std::move(*layer));
  EXPECT_FALSE(reader.next());  // stays at the end
  return layers;
}

class CountsFileTest : public support::FolderTest {
 protected:
  /// A run over batches with these seeds, of both layers.
  void calibrate(const std::string& counts, const std::vector<unsigned>& seeds,
                 bool in_background = false) const {
    Session session(config_of(static_cast<std::int64_t>(seeds.size())), record,
                    {.writing_share = in_background ? 0.5 : 1.0,
                     .search_in_background = in_background,
                     .counts_file = counts});
    for (const unsigned seed : seeds) {
      session.observe("b", batch(seed, DType::kFloat32).view());
      session.observe("a", batch(seed).view());
    }
  }

  const std::string record = folder / "record.txt";
  const std::string path = folder / "all.counts";
};

TEST_F(CountsFileTest, HoldsWhatASessionSaw) {
  for (const bool in_background : {false, true}) {
    calibrate(path, {1, 2, 3, 4}, in_background);
    CountsReader reader(path);
    EXPECT_EQ(reader.header().batch_num, kBatches);
    EXPECT_FALSE(reader.header().activation_offset);
    EXPECT_EQ(reader.header().written_by.substr(0, 5), "amct ");
    std::vector<LayerCounts> layers = layers_of(path);
    ASSERT_EQ(layers.size(), 2U);
    std::ranges::sort(layers, {}, &LayerCounts::index);
    const CalibrationConfig config = config_of(kBatches);
    for (std::size_t i = 0; i < layers.size(); ++i) {
      EXPECT_EQ(layers[i].index, i);
      EXPECT_EQ(layers[i].config, config.layers[i]);
      EXPECT_EQ(layers[i].observer.batches(), kBatches);
      // Solving gives what the session wrote.
      EXPECT_EQ(record_of(solve(layers[i].config, false, layers[i].observer)),
                read_record(record)[i]);
    }
    EXPECT_FALSE(layers[1].observer.is_range_only());
  }
}

TEST_F(CountsFileTest, IsThereOnlyOnceItIsWhole) {
  {
    Session session(config_of(1), record, {.counts_file = path});
    session.observe("a", batch(1).view());
    EXPECT_FALSE(std::filesystem::exists(path));
  }
  EXPECT_EQ(folder.names(), Names{"record.txt"});  // and no temporary is left
  Session session(config_of(2), record, {.counts_file = path});
  session.observe("a", batch(1).view());
  session.finish();  // with what was seen
  const std::vector<LayerCounts> layers = layers_of(path);
  ASSERT_EQ(layers.size(), 1U);
  EXPECT_EQ(layers[0].config.name, "a");
  EXPECT_EQ(layers[0].observer.batches(), 1);
}

TEST_F(CountsFileTest, AFolderAsCountsFileIsRefusedAtOnce) {
  expect_error<ValueError>([&] { Session(config_of(1), record, {.counts_file = folder.path()}); },
                           {"folder"});
}

TEST_F(CountsFileTest, EveryCutAndEveryFlippedBitIsSeen) {
  calibrate(path, {1});
  const std::string whole = support::read_file(path);
  const std::string other = folder / "other.counts";
  for (std::size_t size = 0; size < whole.size(); size += 1 + size / 40) {
    support::write_file(other, whole.substr(0, size));
    EXPECT_THROW(layers_of(other), ValueError) << size;
  }
  for (std::size_t at = 0; at < whole.size(); at += 1 + at / 60) {
    std::string damaged = whole;
    damaged[at] ^= 4;
    support::write_file(other, damaged);
    EXPECT_THROW(layers_of(other), ValueError) << at;
  }
  support::write_file(other, whole + "x");
  expect_error<ValueError>([&] { layers_of(other); }, {other, "goes on after"});
}

TEST_F(CountsFileTest, SaysWhatIsWrong) {
  support::write_file(path, "record { }");
  expect_error<ValueError>([&] { layers_of(path); }, {path, "not a counts file"});
  support::write_file(path, std::string("AMCTcnt\x02", 8));
  expect_error<ValueError>([&] { layers_of(path); }, {path, "version 2", "newer"});
  expect_error<IoError>([&] { layers_of(folder / "none"); }, {"none"});
  expect_error<ValueError>([&] { layers_of(folder.path()); }, {"folder"});
}

TEST_F(CountsFileTest, MergedFilesAreThoseOfOneRun) {
  calibrate(path, {1, 2, 3, 4});
  calibrate(folder / "first", {1, 2});
  calibrate(folder / "second", {4});
  calibrate(folder / "third", {3});
  const std::string merged = folder / "merged";
  for (Names order : {Names{"first", "second", "third"}, Names{"third", "first", "second"}}) {
    for (std::string& name : order) name = folder / name;
    merge_counts(order, merged);
    std::vector<LayerCounts> one_run = layers_of(path);
    std::ranges::sort(one_run, {}, &LayerCounts::index);
    const std::vector<LayerCounts> sum = layers_of(merged);
    ASSERT_EQ(sum.size(), one_run.size());
    EXPECT_EQ(CountsReader(merged).header().batch_num, kBatches);
    for (std::size_t i = 0; i < sum.size(); ++i) {
      EXPECT_EQ(sum[i].config, one_run[i].config);
      EXPECT_EQ(sum[i].observer.batches(), kBatches);
      EXPECT_EQ(solve(sum[i].config, true, sum[i].observer).params,
                solve(one_run[i].config, true, one_run[i].observer).params);
    }
  }
}

TEST_F(CountsFileTest, IsSolvedAgainInOtherWays) {
  calibrate(path, {1, 2});
  std::vector<LayerRecord> same;
  for (const LayerResult& result : solve_counts(path)) same.push_back(record_of(result));
  EXPECT_EQ(same, read_record(record));

  using Changes = std::vector<std::pair<std::string, OptionValue>>;
  const Changes changes{{"act_algo", std::string("mse")},
                        {"dst_type", std::string("INT4")},
                        {"quant_granularity", std::int64_t{0}},
                        {"asymmetric", true}};
  const std::vector<LayerResult> results = solve_counts(path, changes);
  ASSERT_EQ(results.size(), 2U);
  EXPECT_EQ(results[0].name, "a");
  for (const LayerResult& result : results) {
    EXPECT_EQ(result.algorithm, "mse");
    EXPECT_EQ(result.grid, kInt4);
    EXPECT_TRUE(result.with_offset);
    EXPECT_EQ(result.params.size(), 1U);
  }
  const Changes finer{{"quant_granularity", std::int64_t{1}}};
  expect_error<ValueError>([&] { solve_counts(path, finer); },
                           {path, "layer 'a'", "observed per_tensor"});
  const Changes unknown{{"colour", std::string("red")}};
  expect_error<ValueError>([&] { solve_counts(path, unknown); }, {"layer 'b'", "colour"});
}

TEST_F(CountsFileTest, NothingCountsTwiceInSilence) {
  for (const char* name : {"a", "b"}) CountsWriter(folder / name, {}).commit();
  const std::string before = support::read_file(folder / "a");
  const auto merge = [&](const Names& names, const std::string& output) {
    Names inputs;
    for (const std::string& name : names) inputs.push_back(folder / name);
    merge_counts(inputs, folder / output);
  };
  expect_error<ValueError>([&] { merge({"a", "b", "./a"}, "all"); }, {"a' and '", "one file"});
  expect_error<ValueError>([&] { merge({"a", "b"}, "a"); }, {"a' is given twice"});
  EXPECT_EQ(support::read_file(folder / "a"), before);
  EXPECT_FALSE(std::filesystem::exists(folder / "all"));
  EXPECT_NO_THROW(merge({"a", "b"}, "all"));
}

TEST_F(CountsFileTest, OtherWaysOfObservingAreNotMerged) {
  calibrate(path, {1});
  const std::string other = folder / "other";
  const auto expect_refused = [&](const char* setting, auto change) {
    CalibrationConfig config = config_of(1);
    change(config.layers[0]);
    {
      Session session(config, record, {.counts_file = other});
      for (const char* name : {"a", "b"}) session.observe(name, batch(2).view());
    }
    expect_error<ValueError>([&] { merge_counts(Names{path, other}, folder / "sum"); },
                             {other, "layer 'a'", setting});
    EXPECT_FALSE(std::filesystem::exists(folder / "sum"));
  };
  expect_refused("granularity", [](LayerConfig& a) { a.granularity = Granularity::kPerChannel; });
  expect_refused("role", [](LayerConfig& a) { a.role = KVRole::kKey; });
  expect_refused("tap", [](LayerConfig& a) {
    a.tap = Tap::kCache;
    a.role = KVRole::kKey;
  });
  expect_refused("max_position", [](LayerConfig& a) { a.max_position = 7; });
}

TEST_F(CountsFileTest, ALayerThatStandsTwiceIsDamage) {
  calibrate(path, {1});
  const std::vector<LayerCounts> layers = layers_of(path);
  const auto written = [&](std::uint64_t index, const std::string& name) {
    CountsWriter writer(folder / "twice", CountsReader(path).header());
    writer.add(layers[0].config, 0, layers[0].observer);
    LayerConfig second = layers[1].config;
    second.name = name;
    writer.add(second, index, layers[1].observer);
    writer.commit();
    CountsReader reader(folder / "twice");
    std::size_t count = 0;
    while (reader.next()) ++count;
    return count;
  };
  EXPECT_EQ(written(1, "other"), 2U);
  expect_error<ValueError>([&] { written(0, "b"); }, {"twice: the counts file is damaged", "'b'"});
  expect_error<ValueError>([&] { written(1, layers[0].config.name); },
                           {"twice: the counts file is damaged"});
}

TEST_F(CountsFileTest, WhatUnfinishedLayersSawIsSavedWithoutASearch) {
  const std::string whole = folder / "whole.counts";
  calibrate(whole, {1, 2, 3, 4});
  std::vector<std::string> parts;
  for (const std::vector<unsigned>& seeds : {std::vector<unsigned>{1, 3, 4}, {2}}) {
    parts.push_back(folder / ("part" + std::to_string(seeds.size())));
    Session session(config_of(1000), folder / "none.txt", {.counts_file = folder / "lost.counts"});
    for (const unsigned seed : seeds) {
      session.observe("a", batch(seed).view());
      session.observe("b", batch(seed, DType::kFloat32).view());
    }
    session.save_counts(parts.back());
    EXPECT_EQ(session.unfinished().size(), 2U);
  }
  const std::string merged = folder / "merged.counts";
  merge_counts(parts, merged);
  EXPECT_EQ(CountsReader(merged).header().batch_num, kBatches);
  const std::vector<LayerResult> results = solve_counts(merged);
  const std::vector<LayerResult> expected = solve_counts(whole);
  ASSERT_EQ(results.size(), 2U);
  for (std::size_t i = 0; i < 2; ++i) {
    EXPECT_EQ(results[i].params, expected[i].params);
    EXPECT_EQ(results[i].batches, kBatches);
    EXPECT_EQ(results[i].sqnr_db, expected[i].sqnr_db);
  }
  Session of_operator(OperatorParams{}, folder / "none.txt");
  expect_error<StateError>([&] { of_operator.save_counts(merged); }, {"operator"});
}

}  // namespace
}  // namespace amct
