// Observing batches and searching factors, as a calibration does it: end to end, the search alone
// from counts that are there, and single tokens.
#include "amct/observe/observer.h"
#include "amct/search/search.h"

#include <map>
#include <memory>
#include <string>
#include <tuple>
#include <utility>

#include <tbb/global_control.h>

#include "support.h"

namespace amct::bench {
namespace {

/// Data is made once for all benchmarks of a shape.
const Batches& shared_batches(DType dtype, std::int64_t batches, std::int64_t rows,
                              std::int64_t channels) {
  static std::map<std::tuple<DType, std::int64_t, std::int64_t, std::int64_t>,
                  std::unique_ptr<Batches>>
      made;
  std::unique_ptr<Batches>& slot = made[{dtype, batches, rows, channels}];
  if (slot == nullptr) slot = std::make_unique<Batches>(dtype, batches, rows, channels);
  return *slot;
}

Observer observed(const Batches& batches, Granularity granularity, bool range_only = false) {
  Observer observer(granularity, {.range_only = range_only,
                                  .expected_batches = static_cast<std::int64_t>(batches.size())});
  for (std::size_t i = 0; i < batches.size(); ++i) observer.observe(batches.view(i));
  return observer;
}

void search_all(const Observer& observer, const Algorithm& algorithm) {
  const OptionMap options = algorithm.spec.defaults();
  if (algorithm.search_range != nullptr) {
    for (std::size_t group = 0; group < observer.groups(); ++group) {
      const ValueRange range = observer.range(group);
      benchmark::DoNotOptimize(
          algorithm.search_range(range.min, range.max, {kInt8, true}, options));
    }
    return;
  }
  observer.visit([&](std::size_t, const ValueCounts& values) {
    benchmark::DoNotOptimize(algorithm.search(values, {kInt8, true}, options));
  });
}

void calibrate(benchmark::State& state, DType dtype, Granularity granularity,
               const Algorithm& algorithm, std::int64_t batch_num, std::int64_t rows,
               std::int64_t channels, int threads) {
  const tbb::global_control limit(tbb::global_control::max_allowed_parallelism,
                                  static_cast<std::size_t>(threads));
  const Batches& batches = shared_batches(dtype, batch_num, rows, channels);
  const double read = read_pass_seconds(batches);
  for (auto _ : state) {
    Observer observer = observed(batches, granularity, algorithm.search_range != nullptr);
    search_all(observer, algorithm);
  }
  report(state, batches.elements(), read);
}

void search_alone(benchmark::State& state, DType dtype, Granularity granularity,
                  const Algorithm& algorithm) {
  const Batches& batches = shared_batches(dtype, 4, 2048, 1024);
  const Observer observer = observed(batches, granularity);
  const OptionMap options = algorithm.spec.defaults();
  for (auto _ : state) {
    observer.visit([&](std::size_t, const ValueCounts& values) {
      benchmark::DoNotOptimize(algorithm.search(values, {kInt8, true}, options));
    });
  }
}

/// One token a call, as in decoding; ns_per_element is then dominated by what a call costs.
void observe_tokens(benchmark::State& state, DType dtype, Granularity granularity) {
  const Batches& batches = shared_batches(dtype, 256, 1, 1024);
  const double read = read_pass_seconds(batches);
  Observer observer(granularity);
  for (auto _ : state) {
    // float32 keeps its values, so the observer starts anew before they fill the memory.
    if (observer.rows() > (1 << 16)) observer = Observer(granularity);
    for (std::size_t i = 0; i < batches.size(); ++i) observer.observe(batches.view(i));
  }
  report(state, batches.elements(), read);
  state.counters["ns_per_call"] = benchmark::Counter(
      static_cast<double>(batches.size()) * 1e-9,
      benchmark::Counter::kIsIterationInvariantRate | benchmark::Counter::kInvert);
}

std::string name_of_run(const std::string& kind, DType dtype, Granularity granularity,
                        const std::string& what) {
  return kind + "/" + std::string(name_of(granularity)) + "/" + std::string(name_of(dtype)) + "/" +
         what;
}

constexpr DType kDTypes[] = {DType::kBFloat16, DType::kFloat16, DType::kFloat32};
constexpr Granularity kGranularities[] = {Granularity::kPerTensor, Granularity::kPerChannel};

const int registered = [] {
  for (const Granularity granularity : kGranularities) {
    for (const DType dtype : kDTypes) {
      for (const Algorithm& algorithm : algorithms()) {
        const std::string& name = algorithm.spec.name;
        benchmark::RegisterBenchmark(name_of_run("calibrate", dtype, granularity, name).c_str(),
                                     calibrate, dtype, granularity, algorithm, 4, 2048, 1024, 2)
            ->Unit(benchmark::kMillisecond)
            ->UseRealTime();
        benchmark::RegisterBenchmark(name_of_run("search", dtype, granularity, name).c_str(),
                                     search_alone, dtype, granularity, algorithm)
            ->Unit(benchmark::kMillisecond)
            ->UseRealTime();
      }
      benchmark::RegisterBenchmark(name_of_run("tokens", dtype, granularity, "1").c_str(),
                                   observe_tokens, dtype, granularity)
          ->UseRealTime();
    }
  }
  // How time grows: with tokens, with channels, with threads.
  for (const std::int64_t rows : {1, 16, 256, 4096, 65536, 1048576}) {
    benchmark::RegisterBenchmark(
        ("tokens_ifmr/per_tensor/bfloat16/" + std::to_string(rows)).c_str(), calibrate,
        DType::kBFloat16, Granularity::kPerTensor, algorithms()[0], 1, rows, 64, 2)
        ->Unit(benchmark::kMillisecond)
        ->UseRealTime();
  }
  for (const std::int64_t channels : {64, 256, 1024, 4096, 16384}) {
    benchmark::RegisterBenchmark(
        ("channels_ifmr/per_channel/bfloat16/" + std::to_string(channels)).c_str(), calibrate,
        DType::kBFloat16, Granularity::kPerChannel, algorithms()[0], 1, 1024, channels, 2)
        ->Unit(benchmark::kMillisecond)
        ->UseRealTime();
  }
  for (const int threads : {1, 2, 4, 8}) {
    benchmark::RegisterBenchmark(
        ("threads_ifmr/per_channel/bfloat16/" + std::to_string(threads)).c_str(), calibrate,
        DType::kBFloat16, Granularity::kPerChannel, algorithms()[0], 4, 2048, 1024, threads)
        ->Unit(benchmark::kMillisecond)
        ->UseRealTime();
  }
  return 0;
}();

}  // namespace
}  // namespace amct::bench
