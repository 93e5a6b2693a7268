#include "amct/observe/observer.h"

#include "amct/core/error.h"

#include <algorithm>
#include <string>
#include <utility>

#include <tbb/parallel_for.h>

#include "observe/observer_state.h"

namespace amct {

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
  State::check_shape(batch.shape, state.known_channels());
  state.check_heads(batch.channels());
  state.guard([&] {
    const std::int64_t non_finite = state.add(batch);
    state.note(batch.channels(), batch.rows(), 1, non_finite);
  });
}

void Observer::add_counts(const CountedBatches& batches) {
  State& state = *state_;
  validate(batches, state.granularity);
  State::check_channels(batches.channels, state.known_channels());
  const std::size_t groups = batches.group_begin.size() - 1;
  std::vector<kernels::ScanResult> scans(groups);
  std::int64_t non_finite = 0;
  for (std::size_t group = 0; group < groups; ++group) {
    scans[group] = scan(batches, group);
    non_finite += scans[group].non_finite;
  }
  state.check_finite(non_finite, batches.rows * batches.channels);
  state.guard([&] {
    if (state.options.range_only) {
      state.add_ranges(scans);
    } else if (state.granularity == Granularity::kPerTensor) {
      state.tensor_counts(batches.dtype).add(batches.patterns, batches.counts);
    } else {
      state.channel_counts(batches.dtype, batches.channels).add(batches);
    }
    state.note(batches.channels, batches.rows, batches.batches, non_finite);
  });
}

void Observer::add_ranges(const RangedBatches& batches) {
  State& state = *state_;
  if (!state.options.range_only)
    throw StateError("ranges cannot be added to an observer that keeps more (not range_only)");
  validate(batches, state.granularity);
  State::check_channels(batches.channels, state.known_channels());
  state.check_finite(batches.non_finite, batches.rows * batches.channels);
  std::vector<kernels::ScanResult> ranges(batches.min.size());
  for (std::size_t group = 0; group < ranges.size(); ++group)
    ranges[group] = {batches.min[group], batches.max[group], 0};
  state.guard([&] {
    state.add_ranges(ranges);
    state.note(batches.channels, batches.rows, batches.batches, batches.non_finite);
  });
}

void Observer::add_channel_weights(std::span<const std::uint64_t> weights) {
  state_->add_channel_weights(weights);
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
  from.check_whole();
  if (from.channels == 0) return;
  State::check_channels(from.channels, state.known_channels());
  if (state.heads.size() != from.heads.size()) throw StateError("cannot merge other heads");
  state.guard([&] {
    for (std::size_t i = 0; i < from.heads.size(); ++i) state.heads[i].merge(from.heads[i]);
    state.add_channel_weights(from.channel_weights);
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
  });
}

Granularity Observer::granularity() const { return state_->granularity; }
std::int64_t Observer::batches() const { return state_->batches; }
std::int64_t Observer::rows() const { return state_->rows; }
std::int64_t Observer::channels() const { return state_->channels; }
std::span<const std::uint64_t> Observer::channel_weights() const { return state_->channel_weights; }
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
  state.check_whole();
  state.check_group(group);
  if (!state.heads.empty()) return state.heads[group].range(0);
  const kernels::ScanResult range =
      state.ranges ? state.ranges->range(group) : kernels::empty_scan();
  return {range.min, range.max};
}

}  // namespace amct
