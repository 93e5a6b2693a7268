// What an Observer holds, and how batches are added to it.
#pragma once

#include "amct/core/error.h"
#include "amct/observe/observer.h"

#include <algorithm>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "observe/batch_scan.h"
#include "observe/channel_counts.h"
#include "observe/counted_batches.h"
#include "observe/float_samples.h"
#include "observe/float_sketch.h"
#include "observe/tensor_counts.h"
#include "observe/value_ranges.h"

namespace amct {

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
  std::optional<ValueRanges> ranges;           // range_only: nothing but this
  std::vector<Observer> heads;                 // per head: nothing but these, each per tensor
  std::vector<std::uint64_t> channel_weights;  // none, or one a channel
  bool is_torn = false;                        // whether memory ran out while values were added

  /// Throws StateError where it is not known what was seen.
  void check_whole() const {
    if (!is_torn) return;
    throw StateError(
        "memory ran out while a batch was being added, so what was seen is not known any more; go "
        "on from a snapshot, or calibrate again");
  }
  /// Changes what there is by change(). Errors of the library come before anything is changed;
  /// where another one comes, part of a batch may have been added.
  template <typename Change>
  void guard(Change change) {
    check_whole();
    try {
      change();
    } catch (const Error&) {
      throw;
    } catch (...) {
      is_torn = true;
      throw;
    }
  }

  /// The channels of what was seen; 0 before.
  std::int64_t known_channels() const {
    return channels > 0 ? channels : static_cast<std::int64_t>(channel_weights.size());
  }

  void add_channel_weights(std::span<const std::uint64_t> added) {
    if (added.empty()) return;
    if (granularity != Granularity::kPerChannel)
      throw StateError("only channels that are observed one by one can be weighed");
    check_channels(static_cast<std::int64_t>(added.size()), known_channels());
    std::vector<std::uint64_t> sums(added.begin(), added.end());
    for (std::size_t i = 0; i < channel_weights.size(); ++i) {
      sums[i] += channel_weights[i];
      if (sums[i] < channel_weights[i])
        throw StateError("the weights of channels do not fit 64 bits; calibrate on less");
    }
    channel_weights = std::move(sums);
  }

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
    check_whole();
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

}  // namespace amct
