#include "amct/observe/observer.h"

#include "amct/core/error.h"

#include <algorithm>
#include <optional>
#include <span>
#include <string>
#include <utility>

#include <tbb/parallel_for.h>

#include "observe/batch_scan.h"
#include "observe/channel_counts.h"
#include "observe/counted_batches.h"
#include "observe/float_samples.h"
#include "observe/float_sketch.h"
#include "observe/tensor_counts.h"
#include "observe/value_ranges.h"

namespace amct {
namespace {

/// The finite values of one 16-bit type, one storage a granularity.
struct HalfStorage {
  std::optional<TensorCounts> tensor;
  std::optional<ChannelCounts> channel;

  explicit operator bool() const { return tensor.has_value() || channel.has_value(); }
  ValueCounts value_counts(std::size_t group) const {
    if (tensor) return tensor->value_counts();
    return channel ? channel->value_counts(group) : ValueCounts();
  }
  void visit(const Observer::Visit& visit) const {
    if (tensor) visit(0, tensor->value_counts());
    if (channel) channel->visit(visit);
  }
};

}  // namespace

struct Observer::State {
  State(Granularity g, const ObserverOptions& o) : granularity(g), options(o) {}

  Granularity granularity;
  ObserverOptions options;
  std::int64_t batches = 0;
  std::int64_t rows = 0;
  std::int64_t channels = 0;
  std::int64_t skipped = 0;
  // What there is of values, each made when it is first needed.
  HalfStorage float16;
  HalfStorage bfloat16;
  std::optional<FloatSamples> samples;  // at most one of these two
  std::optional<FloatSketch> sketch;
  std::optional<ValueRanges> ranges;  // range_only: nothing but this
  std::vector<Observer> heads;        // per head: nothing but these, each per tensor

  std::size_t groups() const {
    if (channels == 0) return 0;
    if (granularity == Granularity::kPerHead) return heads.size();
    return granularity == Granularity::kPerTensor ? 1 : static_cast<std::size_t>(channels);
  }

  /// How much `amount` a batch comes to over all expected batches.
  std::int64_t expected(std::int64_t amount, std::int64_t limit) const {
    const std::int64_t batches_to_come = std::max<std::int64_t>(1, options.expected_batches);
    return amount > limit / batches_to_come ? limit : amount * batches_to_come;
  }

  TensorCounts& tensor_counts(DType dtype) {
    HalfStorage& storage = dtype == DType::kFloat16 ? float16 : bfloat16;
    if (!storage.tensor) storage.tensor.emplace(dtype);
    return *storage.tensor;
  }
  ChannelCounts& channel_counts(DType dtype, std::int64_t of_channels) {
    HalfStorage& storage = dtype == DType::kFloat16 ? float16 : bfloat16;
    if (!storage.channel) storage.channel.emplace(dtype, of_channels);
    return *storage.channel;
  }

  std::size_t sample_limit() const { return options.sample_bytes / sizeof(float); }

  /// Makes `extra` more float32 values fit: past the limit, samples become a sketch.
  void make_room(std::size_t extra) {
    const std::size_t held = samples ? samples->size() : 0;
    if (held > sample_limit() || extra > sample_limit() - held) sketch_samples();
  }
  void add_to_sketch(const FloatSamples& added) {
    added.visit_samples(
        [&](std::size_t group, std::span<const float> values) { sketch->add(group, values); });
  }
  void sketch_samples() {
    if (sketch) return;
    sketch.emplace(groups());
    if (samples) add_to_sketch(*samples);
    samples.reset();
  }

  void check_group(std::size_t group) const {
    if (group < groups()) return;
    throw ValueError("group " + std::to_string(group) + " does not exist; there are " +
                     std::to_string(groups()));
  }

  void check_keeps_values() const {
    if (!options.range_only) return;
    throw StateError("only the range of the values was kept (range_only), not their counts");
  }

  /// Throws unless a batch of this shape may follow ones with `before` channels (0: there are
  /// none).
  static void check_shape(const std::vector<std::int64_t>& shape, std::int64_t before) {
    if (std::ranges::find(shape, 0) != shape.end()) {
      throw StateError("a batch of shape " + to_string(shape) +
                       " has no values; leave empty batches out");
    }
    check_channels(shape.empty() ? 1 : shape.back(), before);
  }
  static void check_channels(std::int64_t channels, std::int64_t before) {
    if (before == 0 || channels == before) return;
    throw StateError("this batch has " + std::to_string(channels) +
                     " channels, the ones before had " + std::to_string(before) +
                     "; a layer keeps its last dimension from batch to batch");
  }

  bool refuses(std::int64_t non_finite) const {
    return non_finite > 0 && options.nonfinite == NonFinitePolicy::kRaise;
  }
  void check_finite(std::int64_t non_finite, const TensorView& batch) const {
    if (refuses(non_finite)) throw_non_finite(non_finite, first_non_finite(batch), batch.shape);
  }
  [[noreturn]] static void throw_non_finite(std::int64_t count, std::int64_t first,
                                            std::vector<std::int64_t> shape) {
    const TensorView batch = TensorView::contiguous(nullptr, DType::kFloat32, std::move(shape));
    throw NonFiniteError(std::to_string(count) + " of " + std::to_string(batch.size()) +
                             " values of the batch are NaN or infinite, the first at index " +
                             std::to_string(first) + " of shape " + to_string(batch.shape) +
                             "; mend the model's input, or set nonfinite to 'skip'",
                         count, first);
  }
  /// The same for values of which nobody knows where they were.
  void check_finite(std::int64_t non_finite, std::int64_t values) const {
    if (!refuses(non_finite)) return;
    throw NonFiniteError(std::to_string(non_finite) + " of " + std::to_string(values) +
                             " values are NaN or infinite; mend the model's input, or set "
                             "nonfinite to 'skip'",
                         non_finite, -1);
  }

  void make_heads() {
    ObserverOptions of_head = options;
    const auto count = static_cast<std::size_t>(options.heads);
    of_head.sample_bytes /= count;
    for (std::size_t i = 0; i < count; ++i) heads.emplace_back(Granularity::kPerTensor, of_head);
  }

  void check_heads(std::int64_t of_channels) const {
    if (granularity != Granularity::kPerHead || of_channels % options.heads == 0) return;
    throw StateError("this batch has " + std::to_string(of_channels) +
                     " channels, which cannot be cut into " + std::to_string(options.heads) +
                     " heads");
  }

  /// Adds the channels of each head to its observer; returns how many values are not finite.
  std::int64_t add_by_head(const TensorView& batch) {
    const kernels::ScanResult scanned = scan(batch);  // of all heads before any is changed
    check_finite(scanned.non_finite, batch);
    channels = batch.channels();
    const std::int64_t width = channels / options.heads;
    TensorView head = batch;
    std::ptrdiff_t step = 0;
    if (!batch.shape.empty()) {
      head.shape.back() = width;
      step = width * batch.strides.back() * static_cast<std::ptrdiff_t>(size_of(batch.dtype));
    }
    for (Observer& observer : heads) {
      observer.observe(head);
      head.data = static_cast<const std::byte*>(head.data) + step;
    }
    return scanned.non_finite;
  }

  /// Adds the values of a batch, and returns how many are not finite.
  std::int64_t add(const TensorView& batch) {
    if (granularity == Granularity::kPerHead) return add_by_head(batch);
    // A count finds non-finite values by itself; everything else is scanned first.
    const bool by_tables = !options.range_only && granularity == Granularity::kPerTensor &&
                           batch.dtype != DType::kFloat32 && TensorCounts::suits_tables(batch);
    if (by_tables) {
      TensorCounts::Batch counted = TensorCounts::count(batch);
      const auto non_finite = static_cast<std::int64_t>(counted.non_finite());
      check_finite(non_finite, batch);
      channels = batch.channels();
      tensor_counts(batch.dtype).add(std::move(counted));
      return non_finite;
    }
    const kernels::ScanResult scanned = scan(batch);
    check_finite(scanned.non_finite, batch);
    channels = batch.channels();
    if (options.range_only) {
      if (!ranges) ranges.emplace(groups());
      ranges->add(batch, scanned);
    } else if (batch.dtype == DType::kFloat32) {
      add_float32(batch, scanned.non_finite > 0);
    } else if (granularity == Granularity::kPerTensor) {
      tensor_counts(batch.dtype).add(batch);
    } else {
      ChannelCounts& counts = channel_counts(batch.dtype, channels);
      if (batches == 0) counts.reserve(expected(batch.rows(), ChannelCounts::kStagedRows));
      counts.add(batch);
    }
    return scanned.non_finite;
  }

  void add_ranges(const std::vector<kernels::ScanResult>& added) {
    if (!ranges) ranges.emplace(added.size());
    ranges->add(added);
  }

  /// Notes batches whose values were added.
  void note(std::int64_t of_channels, std::int64_t added_rows, std::int64_t added_batches,
            std::int64_t non_finite) {
    channels = of_channels;
    rows += added_rows;
    batches += added_batches;
    skipped += non_finite;
  }

  void add_float32(const TensorView& batch, bool any_non_finite) {
    make_room(static_cast<std::size_t>(batch.size()));
    if (sketch) {
      sketch->add(batch);
      return;
    }
    if (!samples) {
      samples.emplace(groups(), sample_limit());
      const auto limit = static_cast<std::int64_t>(sample_limit());
      samples->reserve(static_cast<std::size_t>(expected(batch.size(), limit)));
    }
    samples->add(batch, any_non_finite);
  }

  void merge_float32(const State& from) {
    if (from.samples) {
      make_room(from.samples->size());
      if (&from == this && sketch) {  // its samples went there just now
        sketch->merge(*sketch);
        return;
      }
    }
    if (from.sketch) sketch_samples();
    if (from.sketch && sketch) {
      sketch->merge(*from.sketch);
    } else if (from.samples && sketch) {
      add_to_sketch(*from.samples);
    } else if (from.samples) {
      if (!samples) samples.emplace(groups(), sample_limit());
      samples->merge(*from.samples);
    }
  }

  int storages() const {
    return (float16 ? 1 : 0) + (bfloat16 ? 1 : 0) + (samples ? 1 : 0) + (sketch ? 1 : 0);
  }
};

Observer::Observer(Granularity granularity, const ObserverOptions& options)
    : state_(std::make_unique<State>(granularity, options)) {
  if (granularity != Granularity::kPerHead) return;
  if (options.heads < 1) throw ValueError("there must be heads where factors are per head");
  state_->make_heads();
}
Observer::Observer(Observer&&) noexcept = default;
Observer& Observer::operator=(Observer&&) noexcept = default;
Observer::~Observer() = default;

void Observer::observe(const TensorView& batch) {
  State& state = *state_;
  batch.validate();
  State::check_shape(batch.shape, state.channels);
  state.check_heads(batch.channels());
  const std::int64_t non_finite = state.add(batch);
  state.note(batch.channels(), batch.rows(), 1, non_finite);
}

void Observer::add_counts(const CountedBatches& batches) {
  State& state = *state_;
  validate(batches, state.granularity);
  State::check_channels(batches.channels, state.channels);
  const std::size_t groups = batches.group_begin.size() - 1;
  std::vector<kernels::ScanResult> scans(groups);
  std::int64_t non_finite = 0;
  for (std::size_t group = 0; group < groups; ++group) {
    scans[group] = scan(batches, group);
    non_finite += scans[group].non_finite;
  }
  state.check_finite(non_finite, batches.rows * batches.channels);
  if (state.options.range_only) {
    state.add_ranges(scans);
  } else if (state.granularity == Granularity::kPerTensor) {
    state.tensor_counts(batches.dtype).add(batches.patterns, batches.counts);
  } else {
    state.channel_counts(batches.dtype, batches.channels).add(batches);
  }
  state.note(batches.channels, batches.rows, batches.batches, non_finite);
}

void Observer::add_ranges(const RangedBatches& batches) {
  State& state = *state_;
  if (!state.options.range_only)
    throw StateError("ranges cannot be added to an observer that keeps more (not range_only)");
  validate(batches, state.granularity);
  State::check_channels(batches.channels, state.channels);
  state.check_finite(batches.non_finite, batches.rows * batches.channels);
  std::vector<kernels::ScanResult> ranges(batches.min.size());
  for (std::size_t group = 0; group < ranges.size(); ++group)
    ranges[group] = {batches.min[group], batches.max[group], 0};
  state.add_ranges(ranges);
  state.note(batches.channels, batches.rows, batches.batches, batches.non_finite);
}

void Observer::check(const RemoteBatch& batch) const {
  const State& state = *state_;
  State::check_shape(batch.shape, state.channels > 0 ? state.channels : batch.channels_before);
  if (state.refuses(batch.non_finite))
    State::throw_non_finite(batch.non_finite, batch.first_index, batch.shape);
}

void Observer::merge(const Observer& other) {
  State& state = *state_;
  const State& from = *other.state_;
  if (state.granularity != from.granularity) {
    throw StateError("cannot merge " + std::string(name_of(from.granularity)) +
                     " observations into " + std::string(name_of(state.granularity)) + " ones");
  }
  if (state.options.range_only != from.options.range_only)
    throw StateError("cannot merge ranges with counts");
  if (from.channels == 0) return;
  State::check_channels(from.channels, state.channels);
  if (state.heads.size() != from.heads.size()) throw StateError("cannot merge other heads");
  for (std::size_t i = 0; i < from.heads.size(); ++i) state.heads[i].merge(from.heads[i]);
  state.channels = from.channels;
  if (from.ranges) {
    if (!state.ranges) state.ranges.emplace(state.groups());
    state.ranges->merge(*from.ranges);
  }
  for (const DType dtype : {DType::kFloat16, DType::kBFloat16}) {
    const HalfStorage& storage = dtype == DType::kFloat16 ? from.float16 : from.bfloat16;
    if (storage.tensor) state.tensor_counts(dtype).merge(*storage.tensor);
    if (storage.channel) state.channel_counts(dtype, state.channels).merge(*storage.channel);
  }
  state.merge_float32(from);
  state.batches += from.batches;
  state.rows += from.rows;
  state.skipped += from.skipped;
}

Granularity Observer::granularity() const { return state_->granularity; }
std::int64_t Observer::batches() const { return state_->batches; }
std::int64_t Observer::rows() const { return state_->rows; }
std::int64_t Observer::channels() const { return state_->channels; }
std::int64_t Observer::non_finite_count() const { return state_->skipped; }
std::size_t Observer::groups() const { return state_->groups(); }
bool Observer::is_sketch() const {
  return state_->sketch.has_value() || std::ranges::any_of(state_->heads, &Observer::is_sketch);
}
bool Observer::is_range_only() const { return state_->options.range_only; }
std::size_t Observer::sample_bytes() const {
  std::size_t bytes = state_->samples ? state_->samples->size() * sizeof(float) : 0;
  for (const Observer& head : state_->heads) bytes += head.sample_bytes();
  return bytes;
}

void Observer::visit(const Visit& visit) const {
  const State& state = *state_;
  state.check_keeps_values();
  if (!state.heads.empty()) {
    tbb::parallel_for(std::size_t{0}, groups(), [&](std::size_t head) {
      state.heads[head].visit([&](std::size_t, const ValueCounts& values) { visit(head, values); });
    });
  } else if (groups() == 1) {
    visit(0, value_counts(0));
  } else if (state.storages() > 1) {
    tbb::parallel_for(std::size_t{0}, groups(),
                      [&](std::size_t group) { visit(group, value_counts(group)); });
  } else if (state.float16 || state.bfloat16) {
    (state.float16 ? state.float16 : state.bfloat16).visit(visit);
  } else if (state.samples) {
    state.samples->visit(visit);
  } else if (state.sketch) {
    state.sketch->visit(visit);
  }
}

ValueCounts Observer::value_counts(std::size_t group) const {
  const State& state = *state_;
  state.check_keeps_values();
  state.check_group(group);
  if (!state.heads.empty()) return state.heads[group].value_counts(0);
  ValueCounts result;
  if (state.float16) result = state.float16.value_counts(group);
  if (state.bfloat16) result = ValueCounts::merged(result, state.bfloat16.value_counts(group));
  if (state.samples) result = ValueCounts::merged(result, state.samples->value_counts(group));
  if (state.sketch) result = ValueCounts::merged(result, state.sketch->value_counts(group));
  return result;
}

ValueRange Observer::range(std::size_t group) const {
  const State& state = *state_;
  if (!state.options.range_only)
    throw StateError("range() is for observers that keep nothing else (range_only)");
  state.check_group(group);
  if (!state.heads.empty()) return state.heads[group].range(0);
  const kernels::ScanResult range =
      state.ranges ? state.ranges->range(group) : kernels::empty_scan();
  return {range.min, range.max};
}

}  // namespace amct
