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

/// Keeps the time for writing the record below its share.
class RecordPace {
 public:
  explicit RecordPace(double share = 1) : share_(share) {}

  /// Whether another write is allowed by now; the first one is.
  bool allows_writing() const { return share_ >= 1 || writing_ <= share_ * since_first_.seconds(); }

  /// Times a write, from its construction to its end.
  class Write {
   public:
    explicit Write(RecordPace& pace) : pace_(pace) {
      if (pace.writing_ == 0) pace.since_first_ = watch_;
    }
    Write(const Write&) = delete;
    Write& operator=(const Write&) = delete;
    ~Write() { pace_.writing_ += watch_.seconds(); }

   private:
    RecordPace& pace_;
    Stopwatch watch_;
  };

 private:
  double share_;
  Stopwatch since_first_;  // since the first write began
  double writing_ = 0;     // seconds of all writes
};

struct Layer {
  Layer(LayerConfig layer_config, bool offset, std::int64_t batch_num, std::size_t sample_bytes)
      : config(std::move(layer_config)),
        with_offset(offset),
        algorithm(*find_algorithm(config.algorithm)),
        observer(Observer(config.granularity, {.nonfinite = config.nonfinite,
                                               .range_only = algorithm.search_range != nullptr,
                                               .expected_batches = batch_num,
                                               .sample_bytes = sample_bytes})) {}

  LayerConfig config;
  bool with_offset;
  const Algorithm& algorithm;
  std::mutex mutex;                  // guards what follows
  std::optional<Observer> observer;  // empty once finished
  double observe_seconds = 0;
};

/// What one group contributes to the result of its layer.
struct GroupResult {
  QuantParams params;
  QuantizationError error;
  ValueRange range{};
};

std::vector<GroupResult> solve_ranges(const Layer& layer, const Observer& observer) {
  std::vector<GroupResult> groups(observer.groups());
  for (std::size_t group = 0; group < groups.size(); ++group) {
    const ValueRange range = observer.range(group);
    if (range.min > range.max) require_values({});
    groups[group].range = range;
    groups[group].params =
        layer.algorithm.search_range(range.min, range.max, layer.with_offset, layer.config.options)
            .params;
  }
  return groups;
}

std::vector<GroupResult> solve_counts(const Layer& layer, const Observer& observer) {
  std::vector<GroupResult> groups(observer.groups());
  observer.visit([&](std::size_t group, const ValueCounts& values) {
    const QuantParams params =
        layer.algorithm.search(values, layer.with_offset, layer.config.options).params;
    groups[group] = {.params = params,
                     .error = quantization_error(values, kInt8, params),
                     .range = {values.min(), values.max()}};
  });
  return groups;
}

/// Searches every group of a layer that has seen all its batches.
LayerResult solve(const Layer& layer, const Observer& observer) {
  const Stopwatch watch;
  const bool range_only = layer.algorithm.search_range != nullptr;
  LayerResult result;
  result.name = layer.config.name;
  result.algorithm = layer.config.algorithm;
  result.granularity = layer.config.granularity;
  result.with_offset = layer.with_offset;
  result.batches = observer.batches();
  result.rows = observer.rows();
  result.channels = observer.channels();
  result.non_finite = observer.non_finite_count();
  result.is_sketch = observer.is_sketch();
  const std::vector<GroupResult> groups =
      range_only ? solve_ranges(layer, observer) : solve_counts(layer, observer);
  // Sums go in channel order, whatever order the threads took.
  QuantizationError error;
  result.min = groups.front().range.min;
  result.max = groups.front().range.max;
  for (const GroupResult& group : groups) {
    result.params.push_back(group.params);
    error += group.error;
    result.min = std::min(result.min, group.range.min);
    result.max = std::max(result.max, group.range.max);
  }
  if (!range_only) {
    result.sqnr_db = error.sqnr_db();
    result.clipped_fraction = error.clipped_fraction();
  }
  result.observe_seconds = layer.observe_seconds;
  result.search_seconds = watch.seconds();
  return result;
}

/// Calls body(), and puts the layer and the number of its batch before what an error of it says.
template <typename Body>
void with_place(const std::string& name, std::int64_t batch, Body body) {
  const auto where = [&] { return "layer '" + name + "', batch " + std::to_string(batch) + ": "; };
  try {
    body();
  } catch (const NonFiniteError& error) {
    throw NonFiniteError(where() + error.what(), error.count(), error.first_index());
  } catch (const StateError& error) {
    throw StateError(where() + error.what());
  } catch (const ValueError& error) {
    throw ValueError(where() + error.what());
  }
}

// Layers that an operator's memory budget is cut for.
constexpr std::size_t kOperatorLayers = 64;

/// Bytes of float32 values that one of `layers` layers may keep.
std::size_t share_of(const SessionOptions& options, std::int64_t batch_num, std::size_t layers) {
  if (batch_num == 1) return options.memory_budget;
  return options.memory_budget / std::max<std::size_t>(1, layers);
}

}  // namespace

struct Session::Impl {
  std::int64_t batch_num = 1;
  std::size_t sample_bytes = 0;  // of a layer
  std::string record_file;
  std::vector<std::string> order;        // the configuration's names; empty for an operator
  std::optional<LayerConfig> any_layer;  // how a layer without a name of its own is calibrated

  mutable std::shared_mutex layers_mutex;  // guards the map, not the layers
  std::map<std::string, std::unique_ptr<Layer>, std::less<>> layers;

  mutable std::mutex results_mutex;    // guards what follows
  std::vector<LayerResult> results;    // in the order they finished
  std::vector<LayerRecord> unwritten;  // factors that are not in the file yet
  RecordPace pace;

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
      slot = std::make_unique<Layer>(std::move(config), with_offset, batch_num, sample_bytes);
    }
    return *slot;
  }

  /// Adds batches to a layer by add(observer), and finishes the layer where they were the last.
  template <typename Add>
  Observation observe(const std::string& name, std::int64_t batches, Add add) {
    Layer& layer = this->layer(name);
    const std::lock_guard lock(layer.mutex);
    if (!layer.observer) return {};

    LayerResult result;
    bool finished = false;
    with_place(name, layer.observer->batches() + batches, [&] {
      const Stopwatch watch;
      add(*layer.observer);
      layer.observe_seconds += watch.seconds();
      finished = layer.observer->batches() >= batch_num;
      if (finished) result = solve(layer, *layer.observer);
    });
    if (!finished) return {.kind = Observation::Kind::kAdded, .overwritten = {}};
    layer.observer.reset();  // its memory is not needed any more

    const std::lock_guard results_lock(results_mutex);
    unwritten.push_back({name, result.params});
    results.push_back(std::move(result));
    const bool due = order.empty() || results.size() == order.size() || pace.allows_writing();
    return {.kind = Observation::Kind::kFinished,
            .overwritten = due ? write_locked() : std::vector<std::string>()};
  }

  /// Writes what is unwritten; it stays so where that fails. The caller holds results_mutex.
  std::vector<std::string> write_locked() {
    if (unwritten.empty()) return {};
    const RecordPace::Write write(pace);
    std::vector<std::string> replaced = merge_into_record(record_file, unwritten, order);
    unwritten.clear();
    return replaced;
  }
};

Session::Session(CalibrationConfig config, std::string record_file, const SessionOptions& options)
    : impl_(new Impl) {
  check_output_path(record_file);
  if (config.batch_num < 1) {
    throw ValueError("batch_num must be > 0, not " + std::to_string(config.batch_num));
  }
  impl_->batch_num = config.batch_num;
  impl_->pace = RecordPace(options.writing_share);
  impl_->sample_bytes = share_of(options, config.batch_num, config.layers.size());
  impl_->record_file = std::move(record_file);
  for (LayerConfig& layer : config.layers) {
    const bool with_offset = config.with_offset(layer);
    if (find_algorithm(layer.algorithm) == nullptr) {
      throw ValueError("layer '" + layer.name + "': no algorithm '" + layer.algorithm + "'");
    }
    impl_->order.push_back(layer.name);
    auto made = std::make_unique<Layer>(std::move(layer), with_offset, impl_->batch_num,
                                        impl_->sample_bytes);
    if (!impl_->layers.emplace(impl_->order.back(), std::move(made)).second) {
      throw ValueError("layer '" + impl_->order.back() + "' is configured twice");
    }
  }
}

Session::Session(OperatorParams params, std::string record_file, const SessionOptions& options)
    : impl_(new Impl) {
  check_output_path(record_file);
  check_mergeable(record_file);  // not only after all batches were observed
  impl_->batch_num = params.batch_num;
  impl_->sample_bytes = share_of(options, params.batch_num, kOperatorLayers);
  impl_->record_file = std::move(record_file);
  impl_->any_layer = std::move(params.layer);
}

Session::Session(Session&&) noexcept = default;
Session& Session::operator=(Session&&) noexcept = default;
Session::~Session() = default;

Observation Session::observe(const std::string& name, const TensorView& batch) {
  return impl_->observe(name, 1, [&](Observer& observer) { observer.observe(batch); });
}

Observation Session::observe_counts(const std::string& name, const CountedBatches& batches) {
  return impl_->observe(name, batches.batches,
                        [&](Observer& observer) { observer.add_counts(batches); });
}

Observation Session::observe_ranges(const std::string& name, const RangedBatches& batches) {
  return impl_->observe(name, batches.batches,
                        [&](Observer& observer) { observer.add_ranges(batches); });
}

LayerPlan Session::plan(const std::string& name) const {
  const Layer& layer = impl_->layer(name);
  return {.granularity = layer.config.granularity,
          .range_only = layer.algorithm.search_range != nullptr,
          .nonfinite = layer.config.nonfinite,
          .batch_num = impl_->batch_num};
}

std::optional<std::int64_t> Session::check(const std::string& name, const RemoteBatch& batch,
                                           std::int64_t batches_before) const {
  Layer& layer = impl_->layer(name);
  const std::lock_guard lock(layer.mutex);
  if (!layer.observer) return std::nullopt;
  const std::int64_t seen = layer.observer->batches();
  with_place(name, seen + batches_before + 1, [&] { layer.observer->check(batch); });
  return seen;
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
