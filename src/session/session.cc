#include "amct/session/session.h"

#include "amct/core/error.h"
#include "amct/core/file.h"
#include "amct/core/file_lock.h"
#include "amct/core/text.h"
#include "amct/observe/observer.h"
#include "amct/record/record_file.h"
#include "amct/search/search.h"
#include "amct/session/counts_file.h"

#include <algorithm>
#include <array>
#include <exception>
#include <map>
#include <mutex>
#include <optional>
#include <shared_mutex>
#include <span>
#include <unordered_map>
#include <unordered_set>
#include <utility>

#include <tbb/parallel_for.h>

#include "session/background_tasks.h"
#include "session/layer_result.h"
#include "session/snapshot.h"
#include "session/stopwatch.h"

namespace amct {
namespace {

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
  Layer(LayerConfig layer_config, bool offset, std::int64_t batch_num, std::size_t sample_bytes,
        bool keeps_values)
      : config(std::move(layer_config)),
        with_offset(offset),
        range_only(!keeps_values && find_algorithm(config.algorithm)->search_range != nullptr),
        observer(Observer(observed_granularity(), {.nonfinite = config.nonfinite,
                                                   .range_only = range_only,
                                                   .expected_batches = batch_num,
                                                   .sample_bytes = sample_bytes,
                                                   .heads = config.head_num})) {}

  LayerConfig config;
  bool with_offset;
  bool range_only;                   // whether the range of values is enough
  std::mutex mutex;                  // guards what follows
  std::optional<Observer> observer;  // empty once it has seen all batches
  double observe_seconds = 0;

  /// Weights go to channels, and matter where more than the range does.
  Granularity observed_granularity() const {
    return config.weighs_channels() && !range_only ? Granularity::kPerChannel : config.granularity;
  }

  LayerResult solve(const Observer& seen) const {
    LayerResult result = amct::solve(config, with_offset, seen);
    result.observe_seconds = observe_seconds;
    return result;
  }
};

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
// Layers whose search may wait at a time. More would take fresh memory rather than that of layers
// that are done.
constexpr std::size_t kWaitingSearches = 4;

/// oneTBB waits for itself for ever where memory runs out while it starts. It starts with a
/// session, which has nothing in memory yet, and not with the first batch, which may be more than
/// fits.
void start_threads() {
  tbb::parallel_for(0, 2, [](int /*unused*/) {});
}

bool in_background(const SessionOptions& options) {
  return options.search_in_background && options.writing_share < 1;
}

/// Bytes of float32 values that one of `layers` layers may keep.
std::size_t share_of(const SessionOptions& options, std::int64_t batch_num, std::size_t layers) {
  if (batch_num > 1) return options.memory_budget / std::max<std::size_t>(1, layers);
  // The other half is that of layers that wait for their search.
  return options.memory_budget / (in_background(options) ? 2 : 1);
}

}  // namespace

struct Session::Impl {
  std::optional<FileLock> lock;  // on the record; operators lock it for each write alone
  std::int64_t batch_num = 1;
  std::size_t sample_bytes = 0;  // of a layer
  std::string record_file;
  std::vector<std::string> order;  // the configuration's names; empty for an operator
  std::unordered_map<std::string, std::size_t> places;  // where each stands in it
  CalibrationConfig config;                             // without layers for an operator
  std::string counts_file;                              // empty: none is written
  std::optional<LayerConfig> any_layer;  // how a layer without a name of its own is calibrated

  mutable std::shared_mutex layers_mutex;  // guards the map, not the layers
  std::map<std::string, std::unique_ptr<Layer>, std::less<>> layers;

  mutable std::mutex results_mutex;  // guards what follows
  std::size_t observed = 0;          // layers that have seen all their batches
  std::vector<LayerResult> results;  // in the order they finished
  std::unordered_map<std::string, std::size_t> result_places;  // where each layer's stands in it
  std::vector<LayerRecord> unwritten;  // factors that are not in the file yet
  std::exception_ptr failure;          // of a search in the background; the first one
  RecordPace pace;

  mutable std::mutex counts_mutex;     // guards what follows
  std::optional<CountsWriter> counts;  // of layers that are finished
  bool counts_lost = false;            // since they could not be written
  bool counts_written = false;
  std::unordered_map<std::size_t, std::size_t> counted;  // by their places in the configuration

  // The last member: its end waits for tasks that use the others.
  std::unique_ptr<BackgroundTasks> searches;  // none: searches run where layers are observed

  explicit Impl(const SessionOptions& options) : pace(options.writing_share) {
    start_threads();
    if (in_background(options))
      searches = std::make_unique<BackgroundTasks>(kWaitingSearches, options.memory_budget / 2);
  }

  Layer& layer(const std::string& name) {
    {
      const std::shared_lock lock(layers_mutex);
      if (const auto found = layers.find(name); found != layers.end()) return *found->second;
    }
    if (!any_layer) {
      throw ValueError("layer '" + name + "' is not in the calibration configuration" +
                       suggestion(name, order));
    }
    check_layer_name(name, "a layer of an operator");
    const std::unique_lock lock(layers_mutex);
    if (!layers.contains(name)) check_layer_count(layers.size() + 1, "an operator");
    std::unique_ptr<Layer>& slot = layers[name];
    if (slot == nullptr) {
      LayerConfig config = *any_layer;
      config.name = name;
      const bool with_offset = config.asymmetric.value_or(true);  // parse_operator_params sets it
      slot =
          std::make_unique<Layer>(std::move(config), with_offset, batch_num, sample_bytes, false);
    }
    return *slot;
  }

  /// Adds batches to a layer by add(observer), and finishes the layer where they were the last.
  template <typename Add>
  Observation observe(const std::string& name, std::int64_t batches, Add add) {
    Layer& layer = this->layer(name);
    std::unique_lock lock(layer.mutex);
    if (!layer.observer) return {};

    std::optional<LayerResult> result;
    std::optional<Observer> to_search;
    with_place(name, layer.observer->batches() + batches, [&] {
      const Stopwatch watch;
      add(*layer.observer);
      layer.observe_seconds += watch.seconds();
      if (layer.observer->batches() < batch_num) return;
      // Only values that were left out can make a search fail, and its error belongs to this call.
      if (searches && layer.observer->non_finite_count() == 0) {
        to_search = std::move(layer.observer);
      } else {
        result = layer.solve(*layer.observer);
        save_counts(layer, *layer.observer);
      }
    });
    if (!result && !to_search) return {.kind = Observation::Kind::kAdded, .overwritten = {}};
    layer.observer.reset();  // its memory is not needed any more
    lock.unlock();
    if (to_search) search_later(layer, std::move(*to_search));

    std::unique_lock results_lock(results_mutex);
    if (result) add_result(std::move(*result));
    const bool is_last = ++observed == order.size();
    std::exception_ptr failed;  // which is no reason to keep the factors from the record
    if (is_last) {
      results_lock.unlock();
      try {
        wait_for_searches();
        commit_counts();
      } catch (...) {
        failed = std::current_exception();
      }
      results_lock.lock();
    }
    const bool due = order.empty() || is_last || pace.allows_writing();
    Observation seen{.kind = Observation::Kind::kFinished, .overwritten = {}};
    if (due) seen.overwritten = write_locked();
    if (failed) std::rethrow_exception(failed);
    return seen;
  }

  void search_later(Layer& layer, Observer&& observer) {
    const std::size_t bytes = observer.sample_bytes();
    // Shared, since a std::function needs what can be copied.
    const auto shared = std::make_shared<Observer>(std::move(observer));
    const auto search = [this, &layer, shared] {
      try {
        with_place(layer.config.name, shared->batches(), [&] {
          LayerResult result = layer.solve(*shared);
          save_counts(layer, *shared);
          const std::lock_guard lock(results_mutex);
          add_result(std::move(result));
        });
      } catch (...) {  // memory ran out
        {
          const std::lock_guard lock(layer.mutex);
          layer.observer = std::move(*shared);
        }
        const std::lock_guard lock(results_mutex);
        --observed;
        if (!failure) failure = std::current_exception();
      }
    };
    try {
      searches->run(bytes, search);
    } catch (const std::exception&) {  // nothing could be put in line
      search();
    }
  }

  /// Searches a layer that has seen batches, if it is not finished by now.
  void finish(const std::string& name) {
    Layer& layer = this->layer(name);
    const std::lock_guard lock(layer.mutex);
    if (!layer.observer) return;
    with_place(name, layer.observer->batches(), [&] {
      LayerResult result = layer.solve(*layer.observer);
      save_counts(layer, *layer.observer);
      layer.observer.reset();
      const std::lock_guard results_lock(results_mutex);
      ++observed;
      add_result(std::move(result));
    });
  }

  /// The caller holds results_mutex.
  void add_result(LayerResult&& result) {
    unwritten.push_back(record_of(result));
    result_places.emplace(result.name, results.size());
    results.push_back(std::move(result));
  }

  /// Saves what a finished layer was seen to hold. Where that fails the layer is finished all the
  /// same, and nothing is saved: the error is thrown where searches are waited for.
  void save_counts(const Layer& layer, const Observer& observer) {
    const std::lock_guard lock(counts_mutex);
    if (!counts) return;
    try {
      const std::size_t place = places.at(layer.config.name);
      counts->add(layer.config, place, observer);
      counted.emplace(place, counted.size());
    } catch (const std::exception&) {
      counts.reset();
      counts_lost = true;
      const std::lock_guard results_lock(results_mutex);
      if (!failure) failure = std::current_exception();
    }
  }

  /// Throws StateError where they were lost, each time: whoever mends what was wrong then is not to
  /// take the file for written.
  void commit_counts() {
    const std::lock_guard lock(counts_mutex);
    if (counts_lost) {
      throw StateError("the counts file '" + counts_file +
                       "' could not be written, and what finished layers were seen to hold is "
                       "lost; to have it, calibrate again or go on from a snapshot");
    }
    if (!counts) return;
    CountsWriter writer = std::move(*counts);
    counts.reset();
    counts_lost = true;
    writer.commit();
    counts_lost = false;
    counts_written = true;
  }

  SnapshotHeader snapshot_header(const std::string& data) const {
    return {.config = to_json(config, algorithm_catalog()),
            .data = data,
            .batches_done = 0,
            .sample_bytes = sample_bytes,
            .keeps_counts = !counts_file.empty()};
  }

  /// Throws StateError where finished layers have no counts any more, which a snapshot must have.
  void check_counts_are_kept() const {
    const std::lock_guard lock(counts_mutex);
    if (counts_lost) {
      throw StateError(
          "what finished layers were seen to hold could not be written to the counts file, so a "
          "snapshot has nothing to go on from; the one before stays");
    }
  }

  /// What the counts file has of a finished layer; nothing where none is written. The caller holds
  /// no mutex.
  std::string saved_counts(std::size_t index) const {
    const std::lock_guard lock(counts_mutex);
    const auto found = counted.find(index);
    if (!counts || found == counted.end()) return {};
    return counts->layer(found->second);
  }

  /// Throws ValueError unless what a snapshot has of a layer can be of this session's.
  void check(const LayerSnapshot& saved, const std::string& path) const {
    const auto damaged = [&](const std::string& what) {
      throw ValueError(path + ": the snapshot is damaged: " + what);
    };
    if (saved.index >= order.size()) damaged("it has a layer that the configuration has not");
    const Layer& layer = *layers.at(order[saved.index]);
    if (saved.observer) {
      const Observer& seen = *saved.observer;
      // It may have seen all its batches, where they gave it no finite value to search with.
      if (seen.granularity() != layer.observed_granularity() ||
          seen.is_range_only() != layer.range_only || seen.batches() < 1) {
        damaged("layer '" + layer.config.name + "' was observed in another way");
      }
    }
    if (saved.result && layer.config.granularity == Granularity::kPerTensor &&
        saved.result->params.size() != 1) {
      damaged("layer '" + layer.config.name + "' has factors of several groups");
    }
  }

  /// Goes on with a layer of a snapshot.
  void take_over(LayerSnapshot&& saved) {
    Layer& layer = *layers.at(order[saved.index]);
    const std::lock_guard lock(layer.mutex);
    layer.observe_seconds = saved.observe_seconds;
    layer.observer = std::move(saved.observer);
    if (!saved.result) return;
    LayerResult result = std::move(*saved.result);
    set_configured(&result, layer.config, layer.with_offset);
    {
      const std::lock_guard counts_lock(counts_mutex);
      if (counts) {
        counts->add(saved.counts);
        counted.emplace(saved.index, counted.size());
      }
    }
    const std::lock_guard results_lock(results_mutex);
    add_result(std::move(result));
    ++observed;
  }

  LayerResult result(const std::string& name) const {
    const std::lock_guard lock(results_mutex);
    const auto found = result_places.find(name);
    if (found == result_places.end()) throw StateError("layer '" + name + "' is being finished");
    return results[found->second];
  }

  /// Waits until nothing is searched, and throws what a search threw, once. The caller holds no
  /// mutex.
  void wait_for_searches() {
    if (searches) searches->wait();
    const std::lock_guard lock(results_mutex);
    if (failure) std::rethrow_exception(std::exchange(failure, nullptr));
  }

  /// Writes what is unwritten; it stays so where that fails. The caller holds results_mutex.
  std::vector<std::string> write_locked() {
    if (unwritten.empty()) return {};
    const RecordPace::Write write(pace);
    std::vector<std::string> replaced = merge_into_record(record_file, unwritten, order);
    unwritten.clear();
    if (observed == order.size()) {
      write_missing();
      lock.reset();  // an operator has none
    }
    return replaced;
  }

  /// Writes again what somebody took out of the record meanwhile: the file may have been removed.
  void write_missing() const {
    std::unordered_set<std::string> there;
    for (const LayerRecord& layer : read_record(record_file)) there.insert(layer.name);
    std::vector<LayerRecord> missing;
    for (const LayerResult& result : results)
      if (!there.contains(result.name)) missing.push_back(record_of(result));
    if (!missing.empty()) merge_into_record(record_file, missing, order);
  }
};

Session::Session(CalibrationConfig config, std::string record_file, const SessionOptions& options)
    : impl_(new Impl(options)) {
  check_output_path(record_file);
  if (!options.counts_file.empty())
    check_different_files(std::array{record_file, options.counts_file});
  impl_->lock.emplace(record_file);
  if (config.batch_num < 1) {
    throw ValueError("batch_num must be > 0, not " + std::to_string(config.batch_num));
  }
  impl_->batch_num = config.batch_num;
  impl_->sample_bytes = share_of(options, config.batch_num, config.layers.size());
  impl_->record_file = std::move(record_file);
  impl_->config = config;
  impl_->counts_file = options.counts_file;
  if (!options.counts_file.empty()) {
    impl_->counts.emplace(options.counts_file,
                          CountsHeader{.batch_num = config.batch_num,
                                       .activation_offset = config.activation_offset,
                                       .written_by = {}});
  }
  check_layer_count(config.layers.size(), "the configuration");
  for (LayerConfig& layer : config.layers) {
    check_layer_name(layer.name, "the configuration");
    const bool with_offset = config.with_offset(layer);
    if (find_algorithm(layer.algorithm) == nullptr) {
      throw ValueError("layer '" + layer.name + "': no algorithm '" + layer.algorithm + "'");
    }
    impl_->places.emplace(layer.name, impl_->order.size());
    impl_->order.push_back(layer.name);
    auto made = std::make_unique<Layer>(std::move(layer), with_offset, impl_->batch_num,
                                        impl_->sample_bytes, !options.counts_file.empty());
    if (!impl_->layers.emplace(impl_->order.back(), std::move(made)).second) {
      throw ValueError("layer '" + impl_->order.back() + "' is configured twice");
    }
  }
}

Session::Session(OperatorParams params, std::string record_file, const SessionOptions& options)
    : impl_(new Impl({})) {
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

void Session::add_channel_weights(const std::string& name, std::span<const std::uint64_t> weights) {
  Layer& layer = impl_->layer(name);
  const std::lock_guard lock(layer.mutex);
  if (!layer.observer) return;
  with_place(name, layer.observer->batches() + 1,
             [&] { layer.observer->add_channel_weights(weights); });
}

LayerPlan Session::plan(const std::string& name) const {
  const Layer& layer = impl_->layer(name);
  return {.granularity = layer.observed_granularity(),
          .weighs_channels = layer.config.weighs_channels() && !layer.range_only,
          .channel_factors = layer.config.granularity == Granularity::kPerChannel,
          .range_only = layer.range_only,
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
  const std::shared_lock lock(impl_->layers_mutex);
  const auto found = impl_->layers.find(name);
  if (found == impl_->layers.end()) return false;
  const std::lock_guard layer_lock(found->second->mutex);
  return !found->second->observer;
}

std::vector<std::string> Session::write_record() {
  impl_->wait_for_searches();
  const std::lock_guard lock(impl_->results_mutex);
  return impl_->write_locked();
}

std::vector<std::string> Session::finish() {
  impl_->wait_for_searches();
  std::exception_ptr failure;
  for (const UnfinishedLayer& unfinished : this->unfinished()) {
    if (unfinished.batches == 0) continue;
    try {
      impl_->finish(unfinished.name);
    } catch (const std::exception&) {
      if (!failure) failure = std::current_exception();
    }
  }
  std::vector<std::string> replaced = write_record();
  impl_->commit_counts();
  if (failure) std::rethrow_exception(failure);
  return replaced;
}

void Session::save(const std::string& snapshot, std::int64_t batches_done,
                   const std::string& data) {
  if (impl_->order.empty()) throw StateError("what an operator has seen cannot be saved");
  if (batches_done < 0) throw ValueError("batches_done must not be negative");
  std::vector<std::string> files{snapshot, impl_->record_file};
  if (!impl_->counts_file.empty()) files.push_back(impl_->counts_file);
  check_different_files(files);
  impl_->wait_for_searches();
  if (unfinished().empty())
    throw StateError("all layers are finished; there is nothing to go on with");
  impl_->check_counts_are_kept();
  SnapshotHeader header = impl_->snapshot_header(data);
  header.batches_done = batches_done;
  SnapshotWriter writer(snapshot, header);
  for (std::size_t i = 0; i < impl_->order.size(); ++i) {
    Layer& layer = *impl_->layers.at(impl_->order[i]);
    std::unique_lock lock(layer.mutex);
    if (layer.observer) {
      if (layer.observer->batches() > 0) writer.add(i, layer.observe_seconds, *layer.observer);
      continue;
    }
    lock.unlock();
    writer.add(i, impl_->result(layer.config.name), impl_->saved_counts(i));
  }
  impl_->check_counts_are_kept();  // layers may have been finished meanwhile
  writer.commit();
}

std::int64_t Session::restore(const std::string& snapshot, const std::string& data) {
  if (impl_->order.empty()) throw StateError("an operator cannot go on from a snapshot");
  Snapshot saved = read_snapshot(snapshot, impl_->snapshot_header(data));
  for (const auto& [name, layer] : impl_->layers) {
    const std::lock_guard lock(layer->mutex);
    if (!layer->observer || layer->observer->batches() > 0)
      throw StateError("a run that has begun cannot go on from a snapshot");
  }
  for (const LayerSnapshot& seen : saved.layers) impl_->check(seen, snapshot);
  for (LayerSnapshot& seen : saved.layers) impl_->take_over(std::move(seen));
  return saved.header.batches_done;
}

void Session::save_counts(const std::string& counts) const {
  if (impl_->order.empty()) throw StateError("what an operator has seen cannot be saved");
  std::int64_t batches = 1;
  for (const UnfinishedLayer& layer : unfinished()) batches = std::max(batches, layer.batches);
  CountsWriter writer(counts, {.batch_num = batches,
                               .activation_offset = impl_->config.activation_offset,
                               .written_by = {}});
  for (std::size_t i = 0; i < impl_->order.size(); ++i) {
    Layer& layer = *impl_->layers.at(impl_->order[i]);
    const std::lock_guard lock(layer.mutex);
    if (layer.observer && layer.observer->batches() > 0)
      writer.add(layer.config, i, *layer.observer);
  }
  writer.commit();
}

std::vector<LayerResult> Session::results() const {
  if (impl_->searches) impl_->searches->wait();
  const std::lock_guard lock(impl_->results_mutex);
  std::vector<LayerResult> sorted = impl_->results;
  const auto rank = [&](const LayerResult& result) { return impl_->places.at(result.name); };
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

bool Session::is_complete() const {
  {
    const std::lock_guard lock(impl_->results_mutex);
    if (impl_->results.size() < impl_->order.size() || !impl_->unwritten.empty()) return false;
  }
  const std::lock_guard lock(impl_->counts_mutex);
  return !impl_->order.empty() && (impl_->counts_file.empty() || impl_->counts_written);
}

const std::string& Session::record_file() const { return impl_->record_file; }
const std::string& Session::counts_file() const { return impl_->counts_file; }

}  // namespace amct
