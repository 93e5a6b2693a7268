// Watches the tensors of one layer and keeps what the searches need.
#pragma once

#include "amct/core/granularity.h"
#include "amct/core/non_finite_policy.h"
#include "amct/core/tensor_view.h"
#include "amct/observe/counted_batches.h"
#include "amct/observe/value_counts.h"

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#pragma GCC visibility push(default)
namespace amct {

struct ObserverOptions {
  NonFinitePolicy nonfinite = NonFinitePolicy::kRaise;
  /// Keep the range of the values alone, for searches that need no more: no memory to speak of.
  bool range_only = false;
  /// How many batches like the first one will come, so that values get their memory in one piece.
  /// Only a hint.
  std::int64_t expected_batches = 1;
  /// Bytes of float32 values that are kept as they are; past them they are sketched.
  std::size_t sample_bytes = std::size_t{1} << 30;
  /// Heads that the channels are cut into, > 0, where the granularity is per head.
  std::int64_t heads = 1;
};

/// Smallest and largest value; min > max where there is none.
struct ValueRange {
  float min;
  float max;
};

/// Observes the batches of one layer. A layer may change its dtype from batch to batch.
///
/// float16 and bfloat16 values are counted exactly, by their 65,536 patterns, in memory that does
/// not grow with the number of batches: at most 512 KiB per tensor. Per channel each channel takes
/// 512 bytes to 2 KiB, as its counts need, for each 256 patterns of which some occur, and 24 KiB
/// for rows that are not counted yet and the table of its counters: at most 536 KiB.
///
/// float32 values are kept as they are up to `sample_bytes`. With more than that in all, they are
/// counted in log-linear bins, 2^-10 of a value wide per tensor and 2^-8 per channel; the range
/// stays exact. That takes at most 1 MiB per tensor.
///
/// Per head each head is kept as a tensor of its own.
///
/// The result depends only on the multiset of values: not on how they were cut into batches, nor on
/// the batches' order, nor on the number of threads. Not thread-safe; Session locks.
///
/// Where memory runs out while values are added (std::bad_alloc), it is not known what was seen,
/// and every call from then on throws StateError.
class Observer {
 public:
  using Visit = std::function<void(std::size_t group, const ValueCounts& values)>;

  explicit Observer(Granularity granularity, const ObserverOptions& options = {});
  Observer(Observer&&) noexcept;
  Observer& operator=(Observer&&) noexcept;
  ~Observer();

  /// Adds one batch. Either all of it is added or, when an error is thrown, nothing.
  /// Throws StateError for a tensor without elements, with channels that cannot be cut into the
  /// heads or, from the second batch on, with another number of channels; NonFiniteError by the
  /// policy; ValueError for a malformed view.
  void observe(const TensorView& batch);

  /// Adds batches that were counted elsewhere: what observe() would do with each of them, all at
  /// once. Either all of it is added or, when an error is thrown, nothing. Throws ValueError for
  /// fields that contradict each other, and for all batches per head; StateError for another number
  /// of channels; NonFiniteError by the policy, with first_index -1, since counts do not tell where
  /// a value was.
  void add_counts(const CountedBatches& batches);
  /// The same for batches of which only the ranges were kept, of any dtype. Throws StateError also
  /// where this observer keeps more than ranges.
  void add_ranges(const RangedBatches& batches);
  /// Adds to how much each channel counts where it shares factors with others: sums over what is
  /// seen, one a channel, of which only the ratios matter. Observers per channel only (else
  /// StateError). Throws StateError for another number of channels, and for a sum beyond 64 bits.
  void add_channel_weights(std::span<const std::uint64_t> weights);
  /// Throws what observe() would throw for a batch of this shape and with these non-finite values.
  void check(const RemoteBatch& batch) const;

  /// Adds everything `other` (which may be this object) has seen, batches included. Throws
  /// StateError where the granularity, range_only or the number of channels differs.
  void merge(const Observer& other);

  /// One observer of a tensor whose channels several observers saw in parts: groups stand side by
  /// side in the order of the shards (per tensor their values are added up), and rows and batches
  /// are those of one shard, since all saw the same tokens. It holds what one observer of the whole
  /// tensor would, sketches included; the first shard's sample_bytes bound it. Throws ValueError
  /// without shards; StateError where they were observed in different ways, saw other numbers of
  /// batches or rows, or have heads of another width.
  static Observer side_by_side(std::span<const Observer> shards);
  /// Adds the weights of another observer's channels, and nothing else: of one that saw the same
  /// keys beside other queries. Throws as add_channel_weights does, and StateError where one of the
  /// two has weights and the other has none.
  void take_weights_of(const Observer& copy);
  /// Whether both saw the same values in as many batches, whatever the weights and the order.
  bool same_values(const Observer& other) const;

  /// Everything the observer holds, as bytes of an ObserverState (value_counts.proto).
  std::string serialize() const;
  /// The observer that was serialized: it goes on as that one would have, to the same bits. Throws
  /// ValueError for bytes that no observer gives.
  static Observer deserialize(std::string_view bytes);

  Granularity granularity() const;
  std::int64_t batches() const;           ///< batches added
  std::int64_t rows() const;              ///< rows (tokens) added: elements / channels
  std::int64_t channels() const;          ///< size of the last dimension; 0 before the first batch
  std::int64_t non_finite_count() const;  ///< values left out under kSkip
  /// Number of groups that get factors of their own: 1, channels() or the heads; 0 before the first
  /// batch.
  std::size_t groups() const;
  /// One a channel, or none where nobody added any.
  std::span<const std::uint64_t> channel_weights() const;
  /// Whether float32 values went beyond sample_bytes, so that counts are those of a sketch.
  bool is_sketch() const;
  bool is_range_only() const;        ///< see ObserverOptions
  std::size_t sample_bytes() const;  ///< bytes of float32 values that are kept as they are

  /// Calls visit(group, values) once for every group, on several threads at once, which costs less
  /// than asking group by group. Throws StateError where only ranges were kept.
  void visit(const Visit& visit) const;
  /// The values of one group < groups() over all batches. Throws ValueError for another one, and
  /// StateError where only ranges were kept.
  ValueCounts value_counts(std::size_t group) const;
  /// The range of one group, of range_only observers. Throws as value_counts does.
  ValueRange range(std::size_t group) const;

 private:
  struct [[gnu::visibility("hidden")]] State;
  struct [[gnu::visibility("hidden")]] Bytes;
  struct [[gnu::visibility("hidden")]] Shards;
  std::unique_ptr<State> state_;
};

}  // namespace amct
#pragma GCC visibility pop
