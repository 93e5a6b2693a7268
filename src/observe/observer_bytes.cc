// Observers as bytes.
#include "amct/core/error.h"
#include "amct/core/limits.h"
#include "amct/observe/observer.h"

#include <cmath>
#include <cstdint>
#include <limits>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "observe/observer_state.h"
#include "value_counts.pb.h"

namespace amct {
namespace {

using AMCTCounts::ObserverState;
using google::protobuf::RepeatedField;

constexpr std::int64_t kMaxCount = std::numeric_limits<std::int64_t>::max();

[[noreturn]] void malformed(const char* what) {
  throw ValueError(std::string("the counts are malformed: ") + what);
}

/// Writes ascending numbers as their differences, which are small.
template <typename Number>
void set_ascending(const std::vector<Number>& numbers, RepeatedField<std::uint32_t>& field) {
  field.Reserve(static_cast<int>(numbers.size()));
  std::uint32_t before = 0;
  for (const Number number : numbers) {
    field.Add(number - before);
    before = number;
  }
}

template <typename Number>
std::vector<Number> ascending(const RepeatedField<std::uint32_t>& field) {
  std::vector<Number> numbers;
  numbers.reserve(static_cast<std::size_t>(field.size()));
  std::uint64_t sum = 0;
  for (const std::uint32_t difference : field) {
    if (difference == 0 && !numbers.empty()) malformed("an entry stands twice");
    sum += difference;
    if (sum > std::numeric_limits<Number>::max()) malformed("an entry is out of range");
    numbers.push_back(static_cast<Number>(sum));
  }
  return numbers;
}

std::vector<PatternCounts> patterns_of(const HalfStorage& storage) {
  if (storage.tensor) return {storage.tensor->patterns()};
  return storage.channel ? storage.channel->patterns() : std::vector<PatternCounts>();
}

void set_patterns(const HalfStorage& storage,
                  google::protobuf::RepeatedPtrField<AMCTCounts::PatternCounts>& field) {
  for (const PatternCounts& counted : patterns_of(storage)) {
    AMCTCounts::PatternCounts& message = *field.Add();
    set_ascending(counted.patterns, *message.mutable_patterns());
    message.mutable_counts()->Assign(counted.counts.begin(), counted.counts.end());
  }
}

void set_sketch(const FloatSketch& sketch, std::size_t groups, ObserverState& message) {
  for (std::size_t group = 0; group < groups; ++group) {
    const FloatSketch::Keys keys = sketch.keys(group);
    AMCTCounts::Sketch& written = *message.add_sketch();
    set_ascending(keys.keys, *written.mutable_keys());
    written.mutable_counts()->Assign(keys.counts.begin(), keys.counts.end());
    written.set_min(keys.min);
    written.set_max(keys.max);
  }
}

/// 16-bit counts of all groups as the lists that storages take.
class HalfCounts {
 public:
  HalfCounts(const google::protobuf::RepeatedPtrField<AMCTCounts::PatternCounts>& field,
             std::size_t groups) {
    if (std::cmp_not_equal(field.size(), groups)) malformed("groups are missing");
    std::uint64_t total = 0;
    for (const AMCTCounts::PatternCounts& counted : field) {
      const auto added = ascending<std::uint16_t>(counted.patterns());
      if (counted.counts_size() != counted.patterns_size()) malformed("counts are missing");
      patterns_.insert(patterns_.end(), added.begin(), added.end());
      for (const std::uint64_t count : counted.counts()) {
        if (count == 0 || count > kMaxCount - total) malformed("a count is out of range");
        total += count;
        counts_.push_back(count);
      }
      begin_.push_back(patterns_.size());
    }
  }

  std::span<const std::uint16_t> patterns() const { return patterns_; }
  std::span<const std::uint64_t> counts() const { return counts_; }
  std::span<const std::size_t> begin() const { return begin_; }

 private:
  std::vector<std::uint16_t> patterns_;
  std::vector<std::uint64_t> counts_;
  std::vector<std::size_t> begin_{0};
};

}  // namespace

/// Between an observer's state and its message.
struct Observer::Bytes {
  static void write(const Observer& observer, ObserverState& message) {
    const State& state = *observer.state_;
    message.set_granularity(static_cast<std::uint32_t>(state.granularity));
    message.set_skip_non_finite(state.options.nonfinite == NonFinitePolicy::kSkip);
    message.set_range_only(state.options.range_only);
    message.set_sample_bytes(state.options.sample_bytes);
    message.set_batches(state.batches);
    message.set_rows(state.rows);
    message.set_channels(state.channels);
    message.set_non_finite(state.skipped);
    set_patterns(state.float16, *message.mutable_float16());
    set_patterns(state.bfloat16, *message.mutable_bfloat16());
    if (state.samples) {
      for (const std::vector<float>& values : state.samples->values())
        message.add_float32()->mutable_values()->Assign(values.begin(), values.end());
      message.set_any_non_finite_float32(state.samples->any_non_finite());
    }
    if (state.sketch) set_sketch(*state.sketch, state.groups(), message);
    for (std::size_t group = 0; state.ranges && group < state.groups(); ++group) {
      AMCTCounts::Range& range = *message.add_ranges();
      range.set_min(state.ranges->range(group).min);
      range.set_max(state.ranges->range(group).max);
    }
    for (const Observer& head : state.heads) write(head, *message.add_heads());
    message.mutable_channel_weights()->Assign(state.channel_weights.begin(),
                                              state.channel_weights.end());
  }

  static Observer read(const ObserverState& message, bool is_head) {
    Observer observer(granularity_of(message, is_head), options_of(message));
    State& state = *observer.state_;
    for (const std::int64_t number :
         {message.batches(), message.rows(), message.channels(), message.non_finite()}) {
      if (number < 0) malformed("a number is negative");
    }
    if (message.channels() > kMaxCountedChannels) malformed("there are too many channels");
    state.note(message.channels(), message.rows(), message.batches(), message.non_finite());
    const auto weights = static_cast<std::int64_t>(message.channel_weights_size());
    if (weights > 0 && (state.granularity != Granularity::kPerChannel ||
                        (state.channels > 0 && weights != state.channels)))
      malformed("weights do not fit the channels");
    state.channel_weights.assign(message.channel_weights().begin(),
                                 message.channel_weights().end());
    if (state.channels == 0) return observer;
    if (state.granularity == Granularity::kPerHead) {
      state.check_heads(state.channels);
      state.heads.clear();
      for (const ObserverState& head : message.heads()) state.heads.push_back(read(head, true));
      return observer;
    }
    read_half(message.float16(), DType::kFloat16, state);
    read_half(message.bfloat16(), DType::kBFloat16, state);
    read_float32(message, state);
    read_ranges(message, state);
    if (state.storages() == 0 && !state.ranges) malformed("there is nothing of what was seen");
    return observer;
  }

 private:
  static Granularity granularity_of(const ObserverState& message, bool is_head) {
    if (message.granularity() > 2 || (is_head && message.granularity() != 0))
      malformed("there is no such granularity");
    const auto granularity = static_cast<Granularity>(message.granularity());
    if ((granularity == Granularity::kPerHead) != (message.heads_size() > 0) ||
        message.heads_size() > kMaxCountedHeads)
      malformed("heads do not fit the granularity");
    return granularity;
  }

  static ObserverOptions options_of(const ObserverState& message) {
    return {
        .nonfinite = message.skip_non_finite() ? NonFinitePolicy::kSkip : NonFinitePolicy::kRaise,
        .range_only = message.range_only(),
        .sample_bytes = message.sample_bytes(),
        .heads = std::max(1, message.heads_size())};
  }

  static void read_half(const google::protobuf::RepeatedPtrField<AMCTCounts::PatternCounts>& field,
                        DType dtype, State& state) {
    if (field.empty()) return;
    if (state.options.range_only) malformed("there are counts beside ranges");
    const HalfCounts counts(field, state.groups());
    if (state.granularity == Granularity::kPerTensor) {
      state.tensor_counts(dtype).add(counts.patterns(), counts.counts());
      return;
    }
    state.channel_counts(dtype, state.channels)
        .add(CountedBatches{.dtype = dtype,
                            .channels = state.channels,
                            .rows = state.rows,
                            .batches = state.batches,
                            .group_begin = counts.begin(),
                            .patterns = counts.patterns(),
                            .counts = counts.counts()});
  }

  static void read_float32(const ObserverState& message, State& state) {
    if (message.sketch_size() > 0) {
      if (state.options.range_only || message.float32_size() > 0 ||
          std::cmp_not_equal(message.sketch_size(), state.groups()))
        malformed("the sketch does not fit the rest");
      state.sketch.emplace(state.groups());
      for (int group = 0; group < message.sketch_size(); ++group) {
        const AMCTCounts::Sketch& sketch = message.sketch(group);
        state.sketch->add(static_cast<std::size_t>(group),
                          {.keys = ascending<std::uint32_t>(sketch.keys()),
                           .counts = {sketch.counts().begin(), sketch.counts().end()},
                           .min = sketch.min(),
                           .max = sketch.max()});
      }
    }
    const auto groups = static_cast<std::size_t>(message.float32_size());
    if (groups == 0) return;
    const auto size = static_cast<std::size_t>(message.float32(0).values_size());
    if (state.options.range_only || groups != state.groups() ||
        size > state.sample_limit() / groups)
      malformed("the samples do not fit the rest");
    std::vector<float> rows(groups * size);
    for (std::size_t group = 0; group < groups; ++group) {
      const auto& values = message.float32(static_cast<int>(group)).values();
      if (std::cmp_not_equal(values.size(), size)) malformed("groups have different samples");
      for (std::size_t row = 0; row < size; ++row)
        rows[row * groups + group] = values[static_cast<int>(row)];
    }
    const bool any_non_finite =
        std::ranges::any_of(rows, [](float value) { return !std::isfinite(value); });
    if (any_non_finite && !message.any_non_finite_float32()) malformed("a sample is not finite");
    state.samples.emplace(groups, state.sample_limit());
    state.samples->add(TensorView::contiguous(
                           rows.data(), DType::kFloat32,
                           {static_cast<std::int64_t>(size), static_cast<std::int64_t>(groups)}),
                       any_non_finite);
  }

  static void read_ranges(const ObserverState& message, State& state) {
    if (message.ranges_size() == 0) return;
    if (!state.options.range_only || std::cmp_not_equal(message.ranges_size(), state.groups()))
      malformed("the ranges do not fit the rest");
    std::vector<kernels::ScanResult> ranges;
    for (const AMCTCounts::Range& range : message.ranges()) {
      const bool is_empty = range.min() > range.max();
      if (std::isnan(range.min()) || std::isnan(range.max())) malformed("a range is not a number");
      if (!is_empty && !(std::isfinite(range.min()) && std::isfinite(range.max())))
        malformed("a range is infinite");
      ranges.push_back(is_empty ? kernels::empty_scan()
                                : kernels::ScanResult{range.min(), range.max(), 0});
    }
    state.add_ranges(ranges);
  }
};

std::string Observer::serialize() const {
  state_->check_whole();
  ObserverState message;
  Bytes::write(*this, message);
  std::string bytes;
  if (!message.SerializeToString(&bytes))
    throw StateError("the counts of this layer are too large to be saved: more than 2 GiB");
  return bytes;
}

Observer Observer::deserialize(std::string_view bytes) {
  ObserverState message;
  if (bytes.size() > static_cast<std::size_t>(std::numeric_limits<int>::max()) ||
      !message.ParseFromArray(bytes.data(), static_cast<int>(bytes.size())))
    malformed("they are no ObserverState");
  return Bytes::read(message, false);
}

}  // namespace amct
