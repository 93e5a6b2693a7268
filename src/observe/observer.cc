#include "amct/observe/observer.h"

#include "amct/core/error.h"

#include <algorithm>
#include <optional>
#include <string>

#include "observe/elements.h"
#include "observe/float_samples.h"
#include "observe/half_counts.h"
#include "observe/non_finite.h"

namespace amct {

struct Observer::State {
  State(Granularity g, NonFinitePolicy policy) : granularity(g), nonfinite(policy) {}

  Granularity granularity;
  NonFinitePolicy nonfinite;
  std::int64_t batches = 0;
  std::int64_t rows = 0;
  std::int64_t channels = 0;
  std::int64_t skipped = 0;
  std::int64_t expected_batches = 1;
  // One storage a dtype, made when the dtype first comes.
  std::optional<HalfCounts> float16;
  std::optional<HalfCounts> bfloat16;
  std::optional<FloatSamples> float32;

  std::size_t groups() const {
    if (channels == 0) return 0;
    return granularity == Granularity::kPerTensor ? 1 : static_cast<std::size_t>(channels);
  }
  /// Samples to make room for, by the size of the first batch.
  std::size_t expected_samples(std::int64_t batch_size) const {
    constexpr std::int64_t kLimit = std::int64_t{1} << 28;
    return static_cast<std::size_t>(
        batch_size > kLimit / expected_batches ? 0 : batch_size * expected_batches);
  }
  HalfCounts& counts_for(DType dtype) {
    std::optional<HalfCounts>& storage = dtype == DType::kFloat16 ? float16 : bfloat16;
    if (!storage) storage.emplace(dtype, groups());
    return *storage;
  }
  FloatSamples& samples() {
    if (!float32) float32.emplace(groups());
    return *float32;
  }

  void check_group(std::size_t group) const {
    if (group < groups()) return;
    throw ValueError("group " + std::to_string(group) + " does not exist; there are " +
                     std::to_string(groups()));
  }

  void check_channels(std::int64_t other) const {
    if (channels == 0 || other == channels) return;
    throw StateError("this batch has " + std::to_string(other) + " channels, the ones before had " +
                     std::to_string(channels) +
                     "; a layer keeps its last dimension from batch to batch");
  }
};

Observer::Observer(Granularity granularity, NonFinitePolicy nonfinite)
    : state_(std::make_unique<State>(granularity, nonfinite)) {}
Observer::Observer(Observer&&) noexcept = default;
Observer& Observer::operator=(Observer&&) noexcept = default;
Observer::~Observer() = default;

void Observer::observe(const TensorView& batch) {
  State& state = *state_;
  batch.validate();
  if (batch.size() == 0) {
    throw StateError("a batch of shape " + to_string(batch.shape) +
                     " has no values; leave empty batches out");
  }
  state.check_channels(batch.channels());
  const NonFinite bad = find_non_finite(batch);
  if (bad.count > 0 && state.nonfinite == NonFinitePolicy::kRaise) {
    throw NonFiniteError(std::to_string(bad.count) + " of " + std::to_string(batch.size()) +
                             " values of the batch are NaN or infinite, the first at index " +
                             std::to_string(bad.first_index) + " of shape " +
                             to_string(batch.shape) +
                             "; mend the model's input, or set nonfinite to 'skip'",
                         bad.count, bad.first_index);
  }

  state.channels = batch.channels();
  if (batch.dtype == DType::kFloat32) {
    const bool first = !state.float32;
    FloatSamples& samples = state.samples();
    if (first) samples.reserve(state.expected_samples(batch.size()));
    samples.add(batch, bad.count > 0);
  } else {
    state.counts_for(batch.dtype).add(batch);
  }
  state.batches += 1;
  state.rows += batch.rows();
  state.skipped += bad.count;
}

void Observer::merge(const Observer& other) {
  State& state = *state_;
  const State& from = *other.state_;
  if (state.granularity != from.granularity) {
    throw StateError("cannot merge " + std::string(name_of(from.granularity)) +
                     " observations into " + std::string(name_of(state.granularity)) + " ones");
  }
  if (from.channels == 0) return;
  state.check_channels(from.channels);
  state.channels = from.channels;
  if (from.float16) state.counts_for(DType::kFloat16).merge(*from.float16);
  if (from.bfloat16) state.counts_for(DType::kBFloat16).merge(*from.bfloat16);
  if (from.float32) state.samples().merge(*from.float32);
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

void Observer::expect_batches(std::int64_t count) {
  state_->expected_batches = std::max<std::int64_t>(1, count);
}

ValueCounts Observer::value_counts(std::size_t group) const {
  state_->check_group(group);
  ValueCounts result;
  if (state_->float16) result = state_->float16->value_counts(group);
  if (state_->bfloat16) result = ValueCounts::merged(result, state_->bfloat16->value_counts(group));
  if (state_->float32) result = ValueCounts::merged(result, state_->float32->value_counts(group));
  return result;
}

ValueCounts Observer::take_value_counts(std::size_t group) && {
  const bool samples_alone = state_->float32 && !state_->float16 && !state_->bfloat16;
  if (!samples_alone || groups() != 1) return value_counts(group);
  state_->check_group(group);
  return state_->float32->take_value_counts();
}

}  // namespace amct
