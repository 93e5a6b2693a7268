// Counts files of processes that each have a part of every layer.
#include "amct/config/calibration_config.h"
#include "amct/core/error.h"
#include "amct/search/search.h"
#include "amct/session/counts_file.h"
#include "amct/session/session.h"

#include <filesystem>
#include <functional>
#include <initializer_list>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "support/data.h"
#include "support/expect_error.h"
#include "support/files.h"

namespace amct {
namespace {

using support::expect_error;
using support::make_tensor;
using Names = std::vector<std::string>;
using Change = std::function<void(CalibrationConfig&)>;

constexpr std::int64_t kHead = 2;  // channels
constexpr std::int64_t kRows = 8;

/// Heads [begin, end) of four, of one batch.
support::Tensor heads_of(unsigned seed, std::int64_t begin, std::int64_t end) {
  constexpr std::int64_t kAll = 4 * kHead;
  const std::vector<float> all =
      support::sample(support::Distribution::kNormal, static_cast<std::size_t>(kRows * kAll), seed);
  std::vector<float> values;
  for (std::int64_t row = 0; row < kRows; ++row) {
    for (std::int64_t channel = begin * kHead; channel < end * kHead; ++channel)
      values.push_back(all[static_cast<std::size_t>(row * kAll + channel)]);
  }
  return make_tensor(DType::kBFloat16, {kRows, (end - begin) * kHead}, values);
}

class JoinCountsTest : public support::FolderTest {
 protected:
  struct Heads {
    std::int64_t begin;
    std::int64_t end;
  };

  /// What a process with some heads of two layers sees of batches with these seeds.
  void see(
      const std::string& file, Heads heads, const std::vector<unsigned>& seeds,
      const Change& change = [](CalibrationConfig&) {}) const {
    CalibrationConfig config = default_config(Names{"a", "b"}, algorithm_catalog());
    config.batch_num = 1000;
    config.layers[1].granularity = Granularity::kPerHead;
    config.layers[1].head_num = heads.end - heads.begin;
    change(config);
    Session session(config, folder / "none.txt", {.counts_file = folder / "lost.counts"});
    for (const unsigned seed : seeds) {
      for (const LayerConfig& layer : config.layers)
        session.observe(layer.name, heads_of(seed, heads.begin, heads.end).view());
    }
    session.save_counts(file);
  }

  Names files(std::size_t count) const {
    Names paths;
    for (std::size_t i = 0; i < count; ++i) paths.push_back(folder / ("rank" + std::to_string(i)));
    return paths;
  }

  void expect_whole(const std::map<std::string, WholeLayer>& known, const Names& shards) const {
    join_counts(shards, folder / "joined", known);
    const std::vector<LayerResult> joined = solve_counts(folder / "joined");
    const std::vector<LayerResult> one = solve_counts(folder / "whole");
    ASSERT_EQ(joined.size(), one.size());
    for (std::size_t i = 0; i < one.size(); ++i) {
      EXPECT_EQ(joined[i].params, one[i].params);
      EXPECT_EQ(joined[i].sqnr_db, one[i].sqnr_db);
      EXPECT_EQ(joined[i].batches, one[i].batches);
      EXPECT_EQ(joined[i].rows, one[i].rows);
      EXPECT_EQ(joined[i].channels, one[i].channels);
    }
    // The sum with others is that of two processes with whole layers.
    merge_counts(Names{folder / "joined", folder / "whole"}, folder / "sum");
    EXPECT_EQ(solve_counts(folder / "sum")[1].rows, 2 * one[1].rows);
  }

  const std::map<std::string, WholeLayer> known{{"a", {4 * kHead, kHead, {}}},
                                                {"b", {4 * kHead, kHead, {}}}};
};

TEST_F(JoinCountsTest, GivesWhatOneProcessSaw) {
  see(folder / "whole", {0, 4}, {1, 2, 3});
  const Names two = files(2);
  see(two[0], {0, 2}, {1, 2, 3});
  see(two[1], {2, 4}, {1, 2, 3});
  expect_whole(known, two);
  expect_whole({}, two);
  expect_error<ValueError>([&] { join_counts(two, two[0], known); }, {"is given twice"});

  const Names uneven = files(3);
  see(uneven[0], {0, 1}, {1, 2, 3});
  see(uneven[1], {1, 2}, {1, 2, 3});
  see(uneven[2], {2, 4}, {1, 2, 3});
  expect_whole(known, uneven);
}

TEST_F(JoinCountsTest, CountsCopiesOnce) {
  see(folder / "whole", {0, 4}, {1, 2});
  const Names four = files(4);
  for (std::size_t i = 0; i < 4; ++i) {
    const std::int64_t begin = i < 2 ? 0 : 2;
    see(four[i], {begin, begin + 2}, {1, 2});
  }
  expect_whole(known, four);
  const Names all = files(2);
  for (const std::string& path : all) see(path, {0, 4}, {1, 2});
  expect_whole(known, all);
}

TEST_F(JoinCountsTest, AddsTheWeightsOfCopies) {
  const Names two = files(2);
  for (const std::string& path : two) {
    CalibrationConfig config = default_config(Names{"a"}, algorithm_catalog());
    config.batch_num = 1000;
    config.layers[0].tap = Tap::kCache;
    config.layers[0].role = KVRole::kKey;
    config.layers[0].query_weighted = true;
    Session session(config, folder / "none.txt", {.counts_file = folder / "lost.counts"});
    session.observe("a", heads_of(1, 0, 1).view());
    session.add_channel_weights("a", std::vector<std::uint64_t>{3, path == two[0] ? 4U : 5U});
    session.save_counts(path);
  }
  join_counts(two, folder / "joined", {{"a", {kHead, kHead, {}}}});
  std::optional<LayerCounts> layer = CountsReader(folder / "joined").next();
  ASSERT_TRUE(layer);
  ASSERT_EQ(layer->observer.channel_weights().size(), 2U);
  EXPECT_EQ(layer->observer.channel_weights()[0], 6U);
  EXPECT_EQ(layer->observer.channel_weights()[1], 9U);
  EXPECT_EQ(layer->observer.rows(), kRows);
}

TEST_F(JoinCountsTest, SaysWhereSlicesLieInTheWhole) {
  const Names two = files(2);
  const auto fused = [](CalibrationConfig& config) {
    config.layers.resize(1);
    config.layers[0].name = "qkv.key";
    config.layers[0].role = KVRole::kKey;
    config.layers[0].slice = ChannelSlice{.begin = 4, .end = 8, .groups = 1};
  };
  see(two[0], {0, 2}, {1}, fused);
  see(two[1], {2, 4}, {1}, fused);
  const ChannelSlice whole{.begin = 8, .end = 16, .groups = 1};
  join_counts(two, folder / "joined", {{"qkv.key", {4 * kHead, kHead, whole}}});
  EXPECT_EQ(CountsReader(folder / "joined").next()->config.slice, whole);
}

TEST_F(JoinCountsTest, RefusesWhatMakesNoWhole) {
  const Names two = files(2);
  const auto expect_refused = [&](const std::map<std::string, WholeLayer>& whole,
                                  std::initializer_list<std::string_view> words) {
    expect_error<ValueError>([&] { join_counts(two, folder / "joined", whole); }, words);
    EXPECT_FALSE(std::filesystem::exists(folder / "joined"));
  };
  see(two[0], {0, 2}, {1, 2});
  see(two[1], {2, 4}, {1, 2});
  expect_refused({{"b", {6, kHead, {}}}}, {"layer 'b'", "4, 4 channels", "the 6 channels"});
  expect_refused({{"a", {3, kHead, {}}}}, {"layer 'a'", "4, 4 channels", "the 3 channels"});
  // By these numbers each has all heads, but what they saw is not the same.
  expect_refused({{"a", {2 * kHead, kHead, {}}}},
                 {"layer 'a'", "shards 0 and 1", "copies", "total_num_kv_heads"});
  // Heads of the whole model, where those of a shard are needed.
  expect_refused({{"b", {4 * kHead, 2 * kHead, {}}}}, {"layer 'b'", "4 heads of its 8 channels"});

  see(two[1], {2, 4}, {1, 2},
      [](CalibrationConfig& config) { config.layers[0].granularity = Granularity::kPerChannel; });
  expect_refused(known, {"shard 1", "layer 'a'", "granularity"});
  see(two[1], {2, 4}, {1, 2}, [](CalibrationConfig& config) { config.layers.resize(1); });
  expect_refused(known, {"shard 1 has no further layer where shard 0 has layer 'b'"});
  see(two[1], {2, 4}, {1, 2},
      [](CalibrationConfig& config) { std::swap(config.layers[0], config.layers[1]); });
  expect_refused(known, {"shard 1 has layer 'b' where shard 0 has layer 'a'"});
  see(two[1], {2, 4}, {1});
  expect_error<StateError>([&] { join_counts(two, folder / "joined", known); },
                           {"layer 'a'", "different batches"});
  EXPECT_FALSE(std::filesystem::exists(folder / "joined"));
  expect_error<ValueError>([&] { join_counts({}, folder / "joined", known); }, {"no shards"});
}

}  // namespace
}  // namespace amct
