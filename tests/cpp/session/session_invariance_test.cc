// The record holds the same bits however the data came: any split into batches, any order, any
// number of threads, any memory layout.
#include "amct/core/error.h"
#include "amct/record/record_file.h"
#include "amct/search/search.h"
#include "amct/session/session.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <random>
#include <string>
#include <thread>
#include <tuple>
#include <utility>
#include <vector>

#include <gtest/gtest.h>
#include <tbb/global_control.h>
#include <tbb/task_arena.h>

#include "support/data.h"
#include "support/files.h"

namespace amct {
namespace {

using support::Tensor;

// More float32 values in each group than are sorted before a search.
constexpr std::int64_t kRows = 1200;
constexpr std::int64_t kChannels = 6;
constexpr std::array kGranularities{Granularity::kPerTensor, Granularity::kPerChannel,
                                    Granularity::kPerHead};
constexpr int kAlgorithms = 6;
constexpr int kLayers = 3 * kAlgorithms;
constexpr std::array kKinds{
    support::Distribution::kNormal,   support::Distribution::kHeavyTailed,
    support::Distribution::kTiny,     support::Distribution::kShifted,
    support::Distribution::kConstant, support::Distribution::kFewValues,
};

struct Job {
  std::string layer;
  Tensor batch;
};

class InvarianceTest : public testing::TestWithParam<std::tuple<DType, Granularity>> {
 protected:
  InvarianceTest() {
    EXPECT_EQ(algorithms().size(), std::size_t{kAlgorithms});
    for (int i = 0; i < kLayers; ++i) {
      // Another kind each time that an algorithm comes round.
      const auto kind = kKinds[static_cast<std::size_t>(i + 2 * (i / kAlgorithms)) % kKinds.size()];
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
      const Algorithm& algorithm = algorithms()[static_cast<std::size_t>(i % kAlgorithms)];
      layer.algorithm = algorithm.spec.name;
      layer.options = algorithm.spec.defaults();
      layer.granularity = std::get<1>(GetParam());
      if (layer.granularity == Granularity::kPerHead) layer.head_num = 3;
      layer.asymmetric = (i + i / kAlgorithms) % 2 == 0;
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
    sketches_ = std::ranges::count_if(results, &LayerResult::is_sketch);
    const std::vector<LayerRecord> record = read_record(path);
    for (std::size_t i = 0; i < results.size() && i < record.size(); ++i) {
      EXPECT_EQ(record[i], (LayerRecord{results[i].name, results[i].params,
                                        std::get<1>(GetParam()) == Granularity::kPerHead}));
    }
    return support::read_file(path);
  }

  /// Cuts the data into batches, in order and shuffled, for 1 to 8 threads. `share`: what float32
  /// values of a layer may take, if it is less than there is.
  void expect_in_any_split_and_order(const std::string& expected,
                                     std::optional<std::size_t> share) {
    const std::vector<std::vector<std::int64_t>> splits{
        {0, kRows / 2, kRows},
        {0, kRows / 4, kRows / 2, 3 * kRows / 4, kRows},
        {0, 1, 775, 900, kRows},
        {0, kRows - 1, kRows},
        {0, 125, 126, 127, 128, 129, 1000, kRows}};
    std::mt19937 generator(7);
    int threads = 1;
    for (const std::vector<std::int64_t>& cuts : splits) {
      for (int order = 0; order < 3; ++order) {
        std::vector<Job> work = jobs(cuts);
        if (order > 0) std::shuffle(work.begin(), work.end(), generator);
        const auto batches = static_cast<std::int64_t>(cuts.size()) - 1;
        SessionOptions options{.writing_share = 0.5, .search_in_background = order == 1};
        if (share) options.memory_budget = kLayers * *share;
        ASSERT_EQ(run(work, batches, threads, options), expected)
            << batches << " batches, order " << order << ", " << threads << " threads";
        threads = threads % 8 + 1;
      }
    }
  }

  const std::vector<Tensor>& data() const { return data_; }
  std::ptrdiff_t sketches() const { return sketches_; }  // layers of the last run()
  const support::TempFolder& folder() const { return folder_; }

 private:
  support::TempFolder folder_{support::folder_in_memory()};
  std::vector<Tensor> data_;
  std::ptrdiff_t sketches_ = 0;
};

INSTANTIATE_TEST_SUITE_P(AllData, InvarianceTest,
                         testing::Combine(testing::ValuesIn(support::kAllDTypes),
                                          testing::ValuesIn(kGranularities)),
                         [](const auto& param) {
                           return std::string(name_of(std::get<0>(param.param))) + "_" +
                                  std::string(name_of(std::get<1>(param.param)));
                         });

TEST_P(InvarianceTest, AnySplitOrderAndNumberOfThreadsWritesTheSameBytes) {
  const std::string expected = run(jobs({0, kRows}), 1, 1);
  ASSERT_FALSE(expected.empty());
  expect_in_any_split_and_order(expected, {});
}

/// float32 values beyond the memory budget: which of them are kept until then is a matter of split
/// and order.
class SketchInvarianceTest : public InvarianceTest {};

INSTANTIATE_TEST_SUITE_P(Float32, SketchInvarianceTest,
                         testing::Combine(testing::Values(DType::kFloat32),
                                          testing::ValuesIn(kGranularities)),
                         [](const auto& param) {
                           return std::string(name_of(std::get<1>(param.param)));
                         });

TEST_P(SketchInvarianceTest, AnySplitOrderAndNumberOfThreadsWritesTheSameBytes) {
  constexpr std::size_t kShare = kRows * kChannels * 4 / 3;
  const std::string exact = run(jobs({0, kRows}), 1, 1);
  EXPECT_EQ(sketches(), 0);
  // A layer that is done after one batch has all of the budget.
  const std::string expected = run(jobs({0, kRows}), 1, 1, {.memory_budget = kShare});
  const std::ptrdiff_t range_only = kLayers / kAlgorithms;  // min-max needs no sketch
  EXPECT_EQ(sketches(), kLayers - range_only);
  EXPECT_NE(expected, exact);
  expect_in_any_split_and_order(expected, kShare);
  EXPECT_EQ(sketches(), kLayers - range_only);
}

/// So many values that one batch, and one search, is the work of several threads.
TEST_P(InvarianceTest, LoopsOfAnyNumberOfThreadsWriteTheSameBytes) {
  constexpr std::int64_t kManyRows = 100'000;
  constexpr std::int64_t kFewChannels = 4;
  const Tensor batch = support::make_tensor(
      std::get<0>(GetParam()), {kManyRows, kFewChannels},
      support::sample(support::Distribution::kHeavyTailed, kManyRows * kFewChannels, 1));
  CalibrationConfig config = this->config(1);
  config.layers.resize(kAlgorithms);
  for (LayerConfig& layer : config.layers) {
    if (layer.head_num > 0) layer.head_num = 2;
  }
  std::string expected;
  // More than once: threads that come late find nothing to do.
  for (const int threads : {1, 2, 2, 2, 5, 5, 5}) {
    const tbb::global_control limit(tbb::global_control::max_allowed_parallelism,
                                    static_cast<std::size_t>(threads));
    const std::string path = folder() / "loops.txt";
    std::filesystem::remove(path);
    // Of its own: the other one has as many places as the machine has cores.
    tbb::task_arena(threads).execute([&] {
      Session session(config, path);
      for (const LayerConfig& layer : config.layers) session.observe(layer.name, batch.view());
    });
    EXPECT_EQ(read_record(path).size(), algorithms().size());
    if (threads == 1) expected = support::read_file(path);
    EXPECT_EQ(support::read_file(path), expected) << threads << " threads";
  }
}

TEST_P(InvarianceTest, EightThreadsOnOneLayerAtATimeWriteTheSameBytes) {
  const std::string expected = run(jobs({0, kRows}), 1, 1);
  constexpr std::int64_t kBatches = 48;
  std::vector<std::int64_t> cuts;
  for (std::int64_t i = 0; i <= kBatches; ++i) cuts.push_back(i * kRows / kBatches);
  // Jobs stand layer by layer, so all threads meet at the same layer.
  for (int round = 0; round < 3; ++round) EXPECT_EQ(run(jobs(cuts), kBatches, 8), expected);
}

TEST_P(InvarianceTest, RowsMayComeInAnyShapeAndLayout) {
  const std::string expected = run(jobs({0, kRows}), 1, 1);
  const std::string path = folder() / "layouts.txt";
  Session session(config(1), path);
  for (int layer = 0; layer < kLayers; ++layer) {
    const Tensor& tensor = data()[static_cast<std::size_t>(layer)];
    TensorView view = tensor.view();
    const auto width = static_cast<std::int64_t>(size_of(view.dtype));
    // Each algorithm gets each of them.
    const int layout = (layer + layer / kAlgorithms) % 3;
    if (layout == 0) {  // rows backwards
      view.data = tensor.bytes.data() + (kRows - 1) * kChannels * width;
      view.strides = {-kChannels, 1};
    } else if (layout == 1) {  // [R/12, 2, 6, C] with the first two dimensions swapped
      view.shape = {2, kRows / 12, 6, kChannels};
      view.strides = {6 * kChannels, 12 * kChannels, kChannels, 1};
    } else {  // [1, 1, R, C]
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
  for (int part = 0; part < 4; ++part) {
    pool.emplace_back([&, begin = part * kRows / 4] {
      session.observe(expected.name, data()[0].rows(begin, begin + kRows / 4).view());
    });
  }
  for (std::thread& thread : pool) thread.join();
  EXPECT_EQ(read_record(folder() / "operator.txt"), std::vector<LayerRecord>{expected});
}

}  // namespace
}  // namespace amct
