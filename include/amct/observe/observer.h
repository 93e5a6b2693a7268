// Watches the tensors of one layer and keeps what the searches need.
#pragma once

#include "amct/core/granularity.h"
#include "amct/core/non_finite_policy.h"
#include "amct/core/tensor_view.h"
#include "amct/observe/value_counts.h"

#include <cstddef>
#include <cstdint>
#include <memory>

namespace amct {

/// Observes the batches of one layer.
///
/// float16 and bfloat16 values are counted exactly: memory is bounded by their 65,536 patterns a
/// group, in pages of 1 KiB for each run of 256 patterns that occur, whatever the number of
/// batches. float32 values are kept as they are. A layer may change its dtype from batch to batch.
///
/// The result depends only on the multiset of values: not on how they were cut into batches, nor on
/// the batches' order. Not thread-safe; Session locks.
class Observer {
 public:
  explicit Observer(Granularity granularity, NonFinitePolicy nonfinite = NonFinitePolicy::kRaise);
  Observer(Observer&&) noexcept;
  Observer& operator=(Observer&&) noexcept;
  ~Observer();

  /// Adds one batch. Either all of it is added or, when an error is thrown, nothing.
  /// Throws StateError for a tensor without elements or, from the second batch on, with another
  /// number of channels; NonFiniteError by the policy; ValueError for a malformed view.
  void observe(const TensorView& batch);

  /// Adds everything `other` (which may be this object) has seen, batches included. Throws
  /// StateError where the granularity or the number of channels differs.
  void merge(const Observer& other);

  Granularity granularity() const;
  std::int64_t batches() const;           ///< batches added
  std::int64_t rows() const;              ///< rows (tokens) added: elements / channels
  std::int64_t channels() const;          ///< size of the last dimension; 0 before the first batch
  std::int64_t non_finite_count() const;  ///< values left out under kSkip
  /// Number of groups that get factors of their own: 1, or channels(); 0 before the first batch.
  std::size_t groups() const;

  /// The values of group `group` < groups() over all batches. Threads may ask for groups at once.
  ValueCounts value_counts(std::size_t group) const;
  /// The same, for an observer that is not used any more: a group that is all of it is moved out.
  ValueCounts take_value_counts(std::size_t group) &&;

  /// Says how many batches like the first one will come, so that float32 values get their memory in
  /// one piece. Only a hint.
  void expect_batches(std::int64_t count);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace amct
