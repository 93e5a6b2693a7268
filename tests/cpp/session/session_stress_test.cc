// Many threads at one session, as the hooks of a model that runs on several of them: made for
// ThreadSanitizer, which `make tsan` runs it under.
#include "amct/core/error.h"
#include "amct/record/record_file.h"
#include "amct/search/search.h"
#include "amct/session/session.h"

#include <array>
#include <atomic>
#include <compare>
#include <cstddef>
#include <cstdint>
#include <latch>
#include <map>
#include <set>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "support/data.h"
#include "support/files.h"

namespace amct {
namespace {

using support::Tensor;

constexpr int kThreads = 16;
constexpr int kLayers = 200;
constexpr std::int64_t kBatches = 3;
constexpr std::int64_t kRows = 16;
constexpr std::int64_t kChannels = 4;

/// What layer `layer` sees in batch `batch`.
struct Job {
  int layer;
  Tensor batch;
};

std::string name_of(int layer) { return "layers." + std::to_string(layer) + ".k_proj"; }

/// What sets layers apart: each dtype with each algorithm, granularity and offset, as digits of
/// their number.
struct Kind {
  DType dtype;
  std::size_t algorithm;
  Granularity granularity;
  bool asymmetric;

  friend auto operator<=>(const Kind&, const Kind&) = default;
};

Kind kind_of(int layer) {
  constexpr std::array kGranularities{Granularity::kPerTensor, Granularity::kPerChannel,
                                      Granularity::kPerHead};
  auto rest = static_cast<std::size_t>(layer);
  const auto digit = [&rest](std::size_t base) { return std::exchange(rest, rest / base) % base; };
  Kind kind{};
  kind.dtype = support::kAllDTypes[digit(support::kAllDTypes.size())];
  kind.algorithm = digit(algorithms().size());
  kind.granularity = kGranularities[digit(kGranularities.size())];
  kind.asymmetric = digit(2) == 1;
  return kind;
}

std::vector<Job> all_jobs() {
  std::vector<Job> jobs;
  for (int layer = 0; layer < kLayers; ++layer) {
    const DType dtype = kind_of(layer).dtype;
    for (int batch = 0; batch < kBatches; ++batch) {
      jobs.push_back(
          {layer,
           support::make_tensor(dtype, {kRows, kChannels},
                                support::sample(support::Distribution::kNormal, kRows * kChannels,
                                                static_cast<unsigned>(layer * kBatches + batch)))});
    }
  }
  return jobs;
}

CalibrationConfig config_of_all() {
  std::vector<std::string> names;
  for (int i = 0; i < kLayers; ++i) names.push_back(name_of(i));
  CalibrationConfig config = default_config(names, algorithm_catalog());
  config.batch_num = kBatches;
  for (int i = 0; i < kLayers; ++i) {
    LayerConfig& layer = config.layers[static_cast<std::size_t>(i)];
    const Kind kind = kind_of(i);
    const Algorithm& algorithm = algorithms()[kind.algorithm];
    layer.algorithm = algorithm.spec.name;
    layer.options = algorithm.spec.defaults();
    layer.granularity = kind.granularity;
    if (layer.granularity == Granularity::kPerHead) layer.head_num = 2;
    layer.asymmetric = kind.asymmetric;
  }
  return config;
}

std::string record_of_one_thread(const std::vector<Job>& jobs, const std::string& path) {
  Session session(config_of_all(), path);
  for (const Job& job : jobs) session.observe(name_of(job.layer), job.batch.view());
  EXPECT_TRUE(session.unfinished().empty());
  return support::read_file(path);
}

class SessionStressTest : public testing::TestWithParam<SessionOptions> {
 protected:
  support::TempFolder folder{support::folder_in_memory()};
};

INSTANTIATE_TEST_SUITE_P(All, SessionStressTest,
                         testing::Values(SessionOptions{},
                                         SessionOptions{.writing_share = 0.1,
                                                        .search_in_background = true}),
                         [](const auto& param) {
                           return std::string(param.param.search_in_background ? "InBackground"
                                                                               : "WhereObserved");
                         });

TEST(SessionStressKindsTest, LayersAreOfEveryKind) {
  std::set<Kind> kinds;
  for (int layer = 0; layer < kLayers; ++layer) kinds.insert(kind_of(layer));
  EXPECT_EQ(kinds.size(), support::kAllDTypes.size() * algorithms().size() * 3 * 2);
}

TEST_P(SessionStressTest, SixteenThreadsObserveTwoHundredLayersAtOnce) {
  const std::vector<Job> jobs = all_jobs();
  const std::string expected = record_of_one_thread(jobs, folder / "one.txt");

  const std::string path = folder / "many.txt";
  Session session(config_of_all(), path, GetParam());
  std::latch start(kThreads + 2);
  std::atomic<std::size_t> next{0};
  std::atomic<bool> done{false};
  std::atomic<int> saved{0};
  std::vector<std::thread> threads;
  // Layer after layer in each batch, so that threads meet at layers as well as beside each other.
  const auto observe = [&] {
    start.arrive_and_wait();
    for (std::size_t i = next++; i < jobs.size(); i = next++) {
      // One layer is not finished before others are, and a snapshot was begun and ended meanwhile.
      if (i == jobs.size() - kLayers) {
        for (const int before = saved; saved < before + 2;) std::this_thread::yield();
      }
      const std::size_t at = i % kLayers * kBatches + i / kLayers;
      session.observe(name_of(jobs[at].layer), jobs[at].batch.view());
    }
  };
  // Everything else that a session can be asked meanwhile.
  const auto ask = [&] {
    start.arrive_and_wait();
    while (!done) {
      EXPECT_LE(session.results().size(), std::size_t{kLayers});
      EXPECT_LE(session.unfinished().size(), std::size_t{kLayers});
      const std::string name = name_of(static_cast<int>(next % kLayers));
      EXPECT_EQ(session.plan(name).batch_num, kBatches);
      session.finished(name);
      session.write_record();
      std::this_thread::yield();
    }
  };
  const auto save = [&] {
    start.arrive_and_wait();
    while (!done) {
      try {
        session.save(folder / "state", 0);
        ++saved;
      } catch (const StateError& error) {
        // Its observers are let go of while the last layers are searched; nothing else is refused.
        EXPECT_NE(std::string(error.what()).find("finished"), std::string::npos) << error.what();
      }
      std::this_thread::yield();
    }
  };
  for (int i = 0; i < kThreads; ++i) threads.emplace_back(observe);
  std::thread asking(ask);
  std::thread saving(save);
  for (std::thread& thread : threads) thread.join();
  done = true;
  asking.join();
  saving.join();

  EXPECT_TRUE(session.unfinished().empty());
  session.write_record();
  EXPECT_EQ(support::read_file(path), expected);

  // The last snapshot is of some moment: no batch is half in it, and what a layer that had seen all
  // of its own had is what it has now.
  Session restored(config_of_all(), folder / "restored.txt");
  EXPECT_EQ(restored.restore(folder / "state"), 0);
  restored.finish();
  std::map<std::string, LayerRecord> all;
  for (LayerRecord& layer : read_record(path)) all.emplace(layer.name, layer);
  std::map<std::string, LayerRecord> some;
  for (LayerRecord& layer : read_record(folder / "restored.txt")) some.emplace(layer.name, layer);
  EXPECT_EQ(some.size(), std::size_t{kLayers});  // each had seen one at least
  int whole = 0;
  for (const LayerResult& layer : restored.results()) {
    EXPECT_EQ(layer.rows, kRows * layer.batches) << layer.name;
    if (layer.batches != kBatches) continue;
    EXPECT_EQ(some.at(layer.name), all.at(layer.name)) << layer.name;
    ++whole;
  }
  EXPECT_GT(whole, 0);
}

}  // namespace
}  // namespace amct
