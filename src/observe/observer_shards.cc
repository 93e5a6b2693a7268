// Observers of shards of one tensor, put side by side.
#include "amct/core/error.h"
#include "amct/observe/observer.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "observe/observer_state.h"

namespace amct {
namespace {

/// 16-bit counts of all channels of some shards, in the form that ChannelCounts takes.
class SideBySide {
 public:
  void append(const std::vector<PatternCounts>& channels) {
    for (const PatternCounts& channel : channels) {
      patterns_.insert(patterns_.end(), channel.patterns.begin(), channel.patterns.end());
      counts_.insert(counts_.end(), channel.counts.begin(), channel.counts.end());
      begin_.push_back(patterns_.size());
    }
  }
  CountedBatches batches(DType dtype, std::int64_t rows, std::int64_t count) const {
    return {.dtype = dtype,
            .channels = static_cast<std::int64_t>(begin_.size()) - 1,
            .rows = rows,
            .batches = count,
            .group_begin = begin_,
            .patterns = patterns_,
            .counts = counts_};
  }

 private:
  std::vector<std::uint16_t> patterns_;
  std::vector<std::uint64_t> counts_;
  std::vector<std::size_t> begin_{0};
};

/// The counts of a sketch with fewer bits of the mantissa: a shard of one channel has those of a
/// tensor.
FloatSketch::Keys coarser(const FloatSketch::Keys& fine) {
  constexpr int kShift = FloatSketch::kTensorBits - FloatSketch::kChannelBits;
  FloatSketch::Keys result{.keys = {}, .counts = {}, .min = fine.min, .max = fine.max};
  for (std::size_t i = 0; i < fine.keys.size(); ++i) {
    const std::uint32_t key = fine.keys[i] >> kShift;
    if (result.keys.empty() || result.keys.back() != key) {
      result.keys.push_back(key);
      result.counts.push_back(0);
    }
    result.counts.back() += fine.counts[i];
  }
  return result;
}

}  // namespace

/// What of several states becomes one.
struct Observer::Shards {
  std::span<const Observer> shards;

  const State& state(std::size_t i) const { return *shards[i].state_; }
  const State& first() const { return state(0); }

  void check() const {
    for (std::size_t i = 0; i < shards.size(); ++i) {
      const State& shard = state(i);
      shard.check_whole();
      const auto refuse = [&](const std::string& what) {
        throw StateError("shards 0 and " + std::to_string(i) + " of it " + what);
      };
      if (shard.granularity != first().granularity || shard.heads.empty() != first().heads.empty())
        refuse("were observed with different granularities");
      if (shard.options.range_only != first().options.range_only ||
          shard.options.nonfinite != first().options.nonfinite)
        refuse("were observed in different ways");
      if (shard.batches != first().batches || shard.rows != first().rows) {
        refuse("saw different batches: " + std::to_string(first().batches) + " with " +
               std::to_string(first().rows) + " rows, and " + std::to_string(shard.batches) +
               " with " + std::to_string(shard.rows) +
               "; all processes that hold shards must see the same");
      }
      if (shard.channel_weights.empty() != first().channel_weights.empty())
        refuse("have weights of channels, and none");
      if (shard.heads.empty() || shard.channels == 0) continue;
      const auto width = [](const State& of) {
        return of.channels / static_cast<std::int64_t>(of.heads.size());
      };
      if (width(shard) != width(first())) {
        refuse("have heads of " + std::to_string(width(first())) + " and of " +
               std::to_string(width(shard)) + " channels");
      }
    }
  }

  /// Adds what there is to an observer without any: its storages are those of the whole tensor.
  void join_into(State& whole) const {
    for (const Observer& shard : shards) {
      whole.channels += shard.state_->channels;
      whole.skipped += shard.state_->skipped;
      whole.channel_weights.insert(whole.channel_weights.end(),
                                   shard.state_->channel_weights.begin(),
                                   shard.state_->channel_weights.end());
    }
    whole.rows = first().rows;
    whole.batches = first().batches;
    if (whole.channels == 0) return;
    switch (whole.granularity) {
      case Granularity::kPerTensor: {
        for (std::size_t i = 0; i < shards.size(); ++i) add_values(state(i), whole);
        return;
      }
      case Granularity::kPerHead: {
        std::size_t head = 0;
        for (const Observer& shard : shards) {
          for (const Observer& of_shard : shard.state_->heads) whole.heads[head++].merge(of_shard);
        }
        return;
      }
      case Granularity::kPerChannel: {
        join_ranges(whole);
        for (const DType dtype : {DType::kFloat16, DType::kBFloat16}) join_half(dtype, whole);
        join_float32(whole);
        return;
      }
    }
  }

 private:
  /// Adds the values of a tensor's shard; whole.channels are those of the whole one.
  static void add_values(const State& shard, State& whole) {
    if (shard.ranges) whole.add_ranges({shard.ranges->range(0)});
    for (const DType dtype : {DType::kFloat16, DType::kBFloat16}) {
      const HalfStorage& storage = dtype == DType::kFloat16 ? shard.float16 : shard.bfloat16;
      if (storage.tensor) whole.tensor_counts(dtype).merge(*storage.tensor);
    }
    whole.merge_float32(shard);
  }

  void join_ranges(State& whole) const {
    if (!whole.options.range_only) return;
    std::vector<kernels::ScanResult> ranges;
    for (const Observer& shard : shards) {
      for (std::size_t group = 0; group < shard.groups(); ++group) {
        const ValueRange range = shard.range(group);
        ranges.push_back({range.min, range.max, 0});
      }
    }
    whole.add_ranges(ranges);
  }

  void join_half(DType dtype, State& whole) const {
    SideBySide counts;
    bool any = false;
    for (const Observer& shard : shards) {
      const HalfStorage& storage =
          dtype == DType::kFloat16 ? shard.state_->float16 : shard.state_->bfloat16;
      any = any || storage.channel.has_value();
      counts.append(storage.channel ? storage.channel->patterns()
                                    : std::vector<PatternCounts>(shard.groups()));
    }
    if (!any) return;
    whole.channel_counts(dtype, whole.channels)
        .add(counts.batches(dtype, whole.rows, whole.batches));
  }

  void join_float32(State& whole) const {
    std::size_t values = 0;
    bool sketched = false;
    for (const Observer& shard : shards) {
      const State& of = *shard.state_;
      values += of.samples ? of.samples->size() : 0;
      sketched = sketched || of.sketch.has_value();
    }
    // A shard has no more values than the whole, so that none is sketched where the whole is not.
    if (sketched || values > whole.sample_limit()) {
      FloatSketch sketch(whole.groups());
      join_sketches(sketch);
      whole.sketch = std::move(sketch);
    } else if (values > 0) {
      join_samples(values / whole.groups(), whole);
    }
  }

  void join_sketches(FloatSketch& whole) const {
    std::size_t begin = 0;
    for (const Observer& shard : shards) {
      const std::size_t groups = shard.groups();
      const State& of = *shard.state_;
      if (of.sketch) add_keys(*of.sketch, groups, groups == 1 && shards.size() > 1, begin, whole);
      if (of.samples) add_samples(*of.samples, begin, whole);
      begin += groups;
    }
  }
  static void add_keys(const FloatSketch& shard, std::size_t groups, bool is_finer,
                       std::size_t begin, FloatSketch& whole) {
    for (std::size_t group = 0; group < groups; ++group) {
      const FloatSketch::Keys keys = shard.keys(group);
      whole.add(begin + group, is_finer ? coarser(keys) : keys);
    }
  }
  static void add_samples(const FloatSamples& shard, std::size_t begin, FloatSketch& whole) {
    shard.visit_samples([&](std::size_t group, std::span<const float> values) {
      whole.add(begin + group, values);
    });
  }

  void join_samples(std::size_t rows, State& whole) const {
    const std::size_t channels = whole.groups();
    std::vector<float> side_by_side(rows * channels);
    std::size_t channel = 0;
    bool any_non_finite = false;
    for (std::size_t i = 0; i < shards.size(); ++i) {
      const std::optional<FloatSamples>& shard = state(i).samples;
      if (!shard) throw StateError(different_values(i));
      any_non_finite = any_non_finite || shard->any_non_finite();
      for (const std::vector<float>& values : shard->values()) {
        if (values.size() != rows) throw StateError(different_values(i));
        for (std::size_t row = 0; row < rows; ++row)
          side_by_side[row * channels + channel] = values[row];
        ++channel;
      }
    }
    FloatSamples samples(channels, whole.sample_limit());
    samples.add(TensorView::contiguous(side_by_side.data(), DType::kFloat32,
                                       {static_cast<std::int64_t>(rows), whole.channels}),
                any_non_finite);
    whole.samples = std::move(samples);
  }

  static std::string different_values(std::size_t shard) {
    return "shard " + std::to_string(shard) +
           " of it has another number of float32 values a channel than others have";
  }
};

Observer Observer::side_by_side(std::span<const Observer> shards) {
  if (shards.empty()) throw ValueError("there are no shards to put side by side");
  const Shards all{shards};
  all.check();
  ObserverOptions options = all.first().options;
  if (all.first().granularity == Granularity::kPerHead) {
    options.heads = 0;
    for (std::size_t i = 0; i < shards.size(); ++i)
      options.heads += static_cast<std::int64_t>(all.state(i).heads.size());
  }
  Observer whole(all.first().granularity, options);
  all.join_into(*whole.state_);
  return whole;
}

void Observer::take_weights_of(const Observer& copy) {
  State& state = *state_;
  if (state.channel_weights.empty() != copy.state_->channel_weights.empty())
    throw StateError("copies of it have weights of channels, and none");
  state.add_channel_weights(copy.state_->channel_weights);
}

bool Observer::same_values(const Observer& other) const {
  const State& state = *state_;
  const State& from = *other.state_;
  if (state.granularity != from.granularity || state.channels != from.channels ||
      state.batches != from.batches || state.rows != from.rows || state.skipped != from.skipped ||
      state.options.range_only != from.options.range_only || groups() != other.groups())
    return false;
  if (state.options.range_only) {
    for (std::size_t group = 0; group < groups(); ++group) {
      const ValueRange a = range(group);
      const ValueRange b = other.range(group);
      if (a.min != b.min || a.max != b.max) return false;
    }
    return true;
  }
  std::vector<ValueCounts> values(groups());
  visit([&](std::size_t group, const ValueCounts& seen) { values[group] = seen; });
  std::vector<char> differs(groups());  // a byte each, for threads
  other.visit([&](std::size_t group, const ValueCounts& seen) {
    differs[group] = seen == values[group] ? 0 : 1;
  });
  return std::ranges::none_of(differs, [](char differ) { return differ != 0; });
}

}  // namespace amct
