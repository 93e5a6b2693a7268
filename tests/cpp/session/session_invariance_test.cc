// The record holds the same bits however the data came: any split into batches, any order, any
// number of threads, any memory layout.
#include "amct/core/error.h"
#include "amct/record/record_file.h"
#include "amct/search/search.h"
#include "amct/session/session.h"

#include <algorithm>
#include <atomic>
#include <filesystem>
#include <random>
#include <string>
#include <thread>
#include <tuple>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "support/data.h"
#include "support/files.h"

namespace amct {
namespace {

using support::Tensor;

constexpr std::int64_t kRows = 48;
constexpr std::int64_t kChannels = 6;
constexpr int kLayers = 6;

struct Job {
  std::string layer;
  Tensor batch;
};

class InvarianceTest : public testing::TestWithParam<std::tuple<DType, Granularity>> {
 protected:
  InvarianceTest() {
    for (int i = 0; i < kLayers; ++i) {
      const auto kind = support::kAllDistributions[static_cast<std::size_t>(2 * i % 5)];
      data_.push_back(
          support::make_tensor(std::get<0>(GetParam()), {kRows, kChannels},
                               support::sample(kind, kRows * kChannels, static_cast<unsigned>(i))));
    }
  }

  static std::string name(int layer) { return "layers." + std::to_string(layer) + ".k_proj"; }

  /// Layers that differ in algorithm and offset.
  CalibrationConfig config(std::int64_t batch_num) const {
    std::vector<std::string> names;
    for (int i = 0; i < kLayers; ++i) names.push_back(name(i));
    CalibrationConfig config = default_config(names, algorithm_catalog());
    config.batch_num = batch_num;
    for (int i = 0; i < kLayers; ++i) {
      LayerConfig& layer = config.layers[static_cast<std::size_t>(i)];
      layer.granularity = std::get<1>(GetParam());
      if (layer.granularity == Granularity::kPerHead) layer.head_num = 3;
      layer.asymmetric = i % 2 == 0;
      if (i % 3 == 2) {
        layer.algorithm = "hfmg";
        layer.options = find_spec(algorithm_catalog(), "hfmg")->defaults();
      }
    }
    return config;
  }

  /// One job a batch and layer, the rows cut at `cuts`.
  std::vector<Job> jobs(const std::vector<std::int64_t>& cuts) const {
    std::vector<Job> jobs;
    for (int layer = 0; layer < kLayers; ++layer) {
      for (std::size_t i = 0; i + 1 < cuts.size(); ++i) {
        jobs.push_back(
            {name(layer), data_[static_cast<std::size_t>(layer)].rows(cuts[i], cuts[i + 1])});
      }
    }
    return jobs;
  }

  /// The record that `threads` threads write that take the jobs in their order.
  std::string run(const std::vector<Job>& jobs, std::int64_t batch_num, int threads,
                  const SessionOptions& options = {}) {
    const std::string path = folder_ / "record.txt";
    std::filesystem::remove(path);
    Session session(config(batch_num), path, options);
    std::atomic<std::size_t> next{0};
    std::atomic<int> finished{0};
    const auto work = [&] {
      for (std::size_t i = next++; i < jobs.size(); i = next++) {
        const Observation seen = session.observe(jobs[i].layer, jobs[i].batch.view());
        if (seen.kind == Observation::Kind::kFinished) ++finished;
      }
    };
    std::vector<std::thread> pool;
    for (int t = 1; t < threads; ++t) pool.emplace_back(work);
    work();
    for (std::thread& thread : pool) thread.join();
    EXPECT_EQ(finished.load(), kLayers);
    EXPECT_TRUE(session.unfinished().empty());
    const std::vector<LayerResult> results = session.results();
    EXPECT_EQ(results.size(), static_cast<std::size_t>(kLayers));
    const std::vector<LayerRecord> record = read_record(path);
    for (std::size_t i = 0; i < results.size() && i < record.size(); ++i) {
      EXPECT_EQ(record[i], (LayerRecord{results[i].name, results[i].params,
                                        std::get<1>(GetParam()) == Granularity::kPerHead}));
    }
    return support::read_file(path);
  }

  const std::vector<Tensor>& data() const { return data_; }
  const support::TempFolder& folder() const { return folder_; }

 private:
  support::TempFolder folder_;
  std::vector<Tensor> data_;
};

INSTANTIATE_TEST_SUITE_P(AllData, InvarianceTest,
                         testing::Combine(testing::ValuesIn(support::kAllDTypes),
                                          testing::Values(Granularity::kPerTensor,
                                                          Granularity::kPerChannel,
                                                          Granularity::kPerHead)),
                         [](const auto& param) {
                           return std::string(name_of(std::get<0>(param.param))) + "_" +
                                  std::string(name_of(std::get<1>(param.param)));
                         });

TEST_P(InvarianceTest, AnySplitOrderAndNumberOfThreadsWritesTheSameBytes) {
  const std::string expected = run(jobs({0, kRows}), 1, 1);
  ASSERT_FALSE(expected.empty());
  const std::vector<std::vector<std::int64_t>> splits{{0, 24, 48},
                                                      {0, 12, 24, 36, 48},
                                                      {0, 1, 31, 36, 48},
                                                      {0, 47, 48},
                                                      {0, 5, 6, 7, 8, 9, 40, 48}};
  std::mt19937 generator(7);
  int threads = 1;
  for (const std::vector<std::int64_t>& cuts : splits) {
    for (int order = 0; order < 3; ++order) {
      std::vector<Job> work = jobs(cuts);
      if (order > 0) std::shuffle(work.begin(), work.end(), generator);
      const auto batches = static_cast<std::int64_t>(cuts.size()) - 1;
      ASSERT_EQ(
          run(work, batches, threads, {.writing_share = 0.5, .search_in_background = order == 1}),
          expected)
          << batches << " batches, order " << order << ", " << threads << " threads";
      threads = threads % 8 + 1;
    }
  }
}

TEST_P(InvarianceTest, EightThreadsOnOneLayerAtATimeWriteTheSameBytes) {
  const std::string expected = run(jobs({0, kRows}), 1, 1);
  std::vector<std::int64_t> rows(kRows + 1);
  for (std::size_t i = 0; i < rows.size(); ++i) rows[i] = static_cast<std::int64_t>(i);
  // Jobs stand layer by layer, so all threads meet at the same layer.
  for (int round = 0; round < 3; ++round) EXPECT_EQ(run(jobs(rows), kRows, 8), expected);
}

TEST_P(InvarianceTest, RowsMayComeInAnyShapeAndLayout) {
  const std::string expected = run(jobs({0, kRows}), 1, 1);
  const std::string path = folder() / "layouts.txt";
  Session session(config(1), path);
  for (int layer = 0; layer < kLayers; ++layer) {
    const Tensor& tensor = data()[static_cast<std::size_t>(layer)];
    TensorView view = tensor.view();
    const auto width = static_cast<std::int64_t>(size_of(view.dtype));
    if (layer % 3 == 0) {  // rows backwards
      view.data = tensor.bytes.data() + (kRows - 1) * kChannels * width;
      view.strides = {-kChannels, 1};
    } else if (layer % 3 == 1) {  // [4, 2, 6, C] with the first two dimensions swapped
      view.shape = {2, 4, 6, kChannels};
      view.strides = {6 * kChannels, 12 * kChannels, kChannels, 1};
    } else {  // [1, 1, 48, C]
      view.shape = {1, 1, kRows, kChannels};
      view.strides = {0, 77, kChannels, 1};
    }
    session.observe(name(layer), view);
  }
  EXPECT_EQ(support::read_file(path), expected);
}

TEST_P(InvarianceTest, OperatorSessionsGiveTheSameFactors) {
  run(jobs({0, kRows}), 1, 1);
  const LayerRecord expected = read_record(folder() / "record.txt").at(0);
  const Granularity granularity = std::get<1>(GetParam());
  std::vector<std::pair<std::string, OptionValue>> given{
      {"batch_num", std::int64_t{4}}, {"quant_granularity", std::string(name_of(granularity))}};
  if (granularity == Granularity::kPerHead) given.emplace_back("head_num", std::int64_t{3});
  const OperatorParams params = parse_operator_params(given, algorithm_catalog());
  Session session(params, folder() / "operator.txt");
  std::vector<std::thread> pool;
  for (const std::int64_t begin : {0, 12, 24, 36}) {
    pool.emplace_back(
        [&, begin] { session.observe(expected.name, data()[0].rows(begin, begin + 12).view()); });
  }
  for (std::thread& thread : pool) thread.join();
  EXPECT_EQ(read_record(folder() / "operator.txt"), std::vector<LayerRecord>{expected});
}

}  // namespace
}  // namespace amct
