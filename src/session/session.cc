#include "amct/session/session.h"

#include "amct/core/error.h"
#include "amct/core/file.h"
#include "amct/observe/observer.h"
#include "amct/record/record_file.h"
#include "amct/search/quantization_error.h"
#include "amct/search/search.h"

#include <algorithm>
#include <chrono>
#include <map>
#include <mutex>
#include <optional>
#include <shared_mutex>
#include <utility>

#include <tbb/parallel_for.h>

namespace amct {
namespace {

class Stopwatch {
 public:
  double seconds() const {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
  }

 private:
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

struct Layer {
  Layer(LayerConfig layer_config, bool offset, std::int64_t batch_num)
      : config(std::move(layer_config)),
        with_offset(offset),
        observer(Observer(config.granularity, config.nonfinite)) {
    observer->expect_batches(batch_num);
  }

  LayerConfig config;
  bool with_offset;
  std::mutex mutex;                  // guards what follows
  std::optional<Observer> observer;  // empty once finished
  double observe_seconds = 0;
};

/// What one group contributes to the result of its layer.
struct GroupResult {
  QuantParams params;
  QuantizationError error;
  float min = 0;
  float max = 0;
};

/// Searches every group of a layer that has seen all its batches.
LayerResult solve(const Layer& layer, Observer& observer) {
  const Stopwatch watch;
  const Algorithm& algorithm = *find_algorithm(layer.config.algorithm);
  LayerResult result;
  result.name = layer.config.name;
  result.algorithm = layer.config.algorithm;
  result.granularity = layer.config.granularity;
  result.with_offset = layer.with_offset;
  result.batches = observer.batches();
  result.rows = observer.rows();
  result.channels = observer.channels();
  result.non_finite = observer.non_finite_count();
  std::vector<GroupResult> groups(observer.groups());
  const auto solve_group = [&](std::size_t group) {
    const ValueCounts values = std::move(observer).take_value_counts(group);
    const SearchResult found = algorithm.search(values, layer.with_offset, layer.config.options);
    groups[group] = {found.params, quantization_error(values, kInt8, found.params), values.min(),
                     values.max()};
  };
  if (groups.size() == 1) {
    solve_group(0);
  } else {
    tbb::parallel_for(std::size_t{0}, groups.size(), solve_group);
  }
  // Sums go in channel order, whatever order the threads took.
  QuantizationError error;
  result.min = groups.front().min;
  result.max = groups.front().max;
  for (const GroupResult& group : groups) {
    result.params.push_back(group.params);
    error += group.error;
    result.min = std::min(result.min, group.min);
    result.max = std::max(result.max, group.max);
  }
  result.sqnr_db = error.sqnr_db();
  result.clipped_fraction = error.clipped_fraction();
  result.observe_seconds = layer.observe_seconds;
  result.search_seconds = watch.seconds();
  return result;
}

}  // namespace

struct Session::Impl {
  std::int64_t batch_num = 1;
  std::string record_file;
  std::vector<std::string> order;        // the configuration's names; empty for an operator
  std::optional<LayerConfig> any_layer;  // how a layer without a name of its own is calibrated

  mutable std::shared_mutex layers_mutex;  // guards the map, not the layers
  std::map<std::string, std::unique_ptr<Layer>, std::less<>> layers;

  mutable std::mutex results_mutex;    // guards what follows
  std::vector<LayerResult> results;    // in the order they finished
  std::vector<LayerRecord> unwritten;  // factors that are not in the file yet

  Layer& layer(const std::string& name) {
    {
      const std::shared_lock lock(layers_mutex);
      if (const auto found = layers.find(name); found != layers.end()) return *found->second;
    }
    if (!any_layer) {
      throw ValueError("layer '" + name + "' is not in the calibration configuration" +
                       suggestion(name, order));
    }
    const std::unique_lock lock(layers_mutex);
    std::unique_ptr<Layer>& slot = layers[name];
    if (slot == nullptr) {
      LayerConfig config = *any_layer;
      config.name = name;
      const bool with_offset = config.asymmetric.value_or(true);
      slot = std::make_unique<Layer>(std::move(config), with_offset, batch_num);
    }
    return *slot;
  }

  /// Writes what is unwritten; it stays so where that fails. The caller holds results_mutex.
  std::vector<std::string> write_locked() {
    if (unwritten.empty()) return {};
    std::vector<std::string> replaced = merge_into_record(record_file, unwritten, order);
    unwritten.clear();
    return replaced;
  }
};

Session::Session(CalibrationConfig config, std::string record_file) : impl_(new Impl) {
  check_output_path(record_file);
  if (config.batch_num < 1) {
    throw ValueError("batch_num must be > 0, not " + std::to_string(config.batch_num));
  }
  impl_->batch_num = config.batch_num;
  impl_->record_file = std::move(record_file);
  for (LayerConfig& layer : config.layers) {
    const bool with_offset = config.with_offset(layer);
    if (find_algorithm(layer.algorithm) == nullptr) {
      throw ValueError("layer '" + layer.name + "': no algorithm '" + layer.algorithm + "'");
    }
    impl_->order.push_back(layer.name);
    auto made = std::make_unique<Layer>(std::move(layer), with_offset, impl_->batch_num);
    if (!impl_->layers.emplace(impl_->order.back(), std::move(made)).second) {
      throw ValueError("layer '" + impl_->order.back() + "' is configured twice");
    }
  }
}

Session::Session(OperatorParams params, std::string record_file) : impl_(new Impl) {
  check_output_path(record_file);
  check_mergeable(record_file);  // not only after all batches were observed
  impl_->batch_num = params.batch_num;
  impl_->record_file = std::move(record_file);
  impl_->any_layer = std::move(params.layer);
}

Session::Session(Session&&) noexcept = default;
Session& Session::operator=(Session&&) noexcept = default;
Session::~Session() = default;

Observation Session::observe(const std::string& name, const TensorView& batch) {
  Layer& layer = impl_->layer(name);
  const std::lock_guard lock(layer.mutex);
  if (!layer.observer) return {};

  const Stopwatch watch;
  const std::string where =
      "layer '" + name + "', batch " + std::to_string(layer.observer->batches() + 1) + ": ";
  LayerResult result;
  try {
    layer.observer->observe(batch);
    layer.observe_seconds += watch.seconds();
    if (layer.observer->batches() < impl_->batch_num)
      return {.kind = Observation::Kind::kAdded, .overwritten = {}};
    result = solve(layer, *layer.observer);
  } catch (const NonFiniteError& error) {
    throw NonFiniteError(where + error.what(), error.count(), error.first_index());
  } catch (const StateError& error) {
    throw StateError(where + error.what());
  } catch (const ValueError& error) {
    throw ValueError(where + error.what());
  }
  layer.observer.reset();  // its memory is not needed any more

  const std::lock_guard results_lock(impl_->results_mutex);
  impl_->unwritten.push_back({name, result.params});
  impl_->results.push_back(std::move(result));
  return {.kind = Observation::Kind::kFinished, .overwritten = impl_->write_locked()};
}

bool Session::finished(const std::string& name) const {
  const std::lock_guard lock(impl_->results_mutex);
  return std::ranges::find(impl_->results, name, &LayerResult::name) != impl_->results.end();
}

std::vector<std::string> Session::write_record() {
  const std::lock_guard lock(impl_->results_mutex);
  return impl_->write_locked();
}

std::vector<LayerResult> Session::results() const {
  const std::lock_guard lock(impl_->results_mutex);
  std::vector<LayerResult> sorted = impl_->results;
  const auto rank = [&](const LayerResult& result) {
    return std::ranges::find(impl_->order, result.name) - impl_->order.begin();
  };
  if (!impl_->order.empty()) std::ranges::stable_sort(sorted, {}, rank);
  return sorted;
}

std::vector<UnfinishedLayer> Session::unfinished() const {
  std::vector<UnfinishedLayer> result;
  const std::shared_lock lock(impl_->layers_mutex);
  const auto append = [&](Layer& layer) {
    const std::lock_guard layer_lock(layer.mutex);
    if (layer.observer)
      result.push_back({layer.config.name, layer.observer->batches(), impl_->batch_num});
  };
  if (impl_->order.empty()) {
    for (const auto& [name, layer] : impl_->layers) append(*layer);
  }
  for (const std::string& name : impl_->order) append(*impl_->layers.at(name));
  return result;
}

const std::string& Session::record_file() const { return impl_->record_file; }

}  // namespace amct
