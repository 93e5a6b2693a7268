// Batches that were looked at elsewhere, on a device for instance: their counts, or their ranges.
#pragma once

#include "amct/core/dtype.h"

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#pragma GCC visibility push(default)
namespace amct {

/// How often each bit pattern of a 16-bit type occurs in some batches: what an Observer would have
/// counted of them itself. Non-owning.
///
/// Groups are in CSR form: entries [group_begin[g], group_begin[g + 1]) belong to group g. Per
/// tensor there is one group, per channel there are `channels`.
struct CountedBatches {
  DType dtype = DType::kBFloat16;            ///< kFloat16 or kBFloat16
  std::int64_t channels = 0;                 ///< size of the last dimension
  std::int64_t rows = 0;                     ///< rows (tokens) of all batches: elements / channels
  std::int64_t batches = 0;                  ///< how many there are, of at least one row each
  std::span<const std::size_t> group_begin;  ///< one more than groups, from 0 up to the entries
  std::span<const std::uint16_t> patterns;   ///< ascending as integers within a group
  std::span<const std::uint64_t> counts;     ///< one a pattern, positive; a group's sum to its size
};

/// The smallest and the largest finite value of each group of some batches. Non-owning.
struct RangedBatches {
  std::int64_t channels = 0;    ///< size of the last dimension
  std::int64_t rows = 0;        ///< rows (tokens) of all batches: elements / channels
  std::int64_t batches = 0;     ///< how many there are, of at least one row each
  std::int64_t non_finite = 0;  ///< NaN and infinite values in them, which the ranges leave out
  std::span<const float> min;   ///< one a group; infinity where a group has no finite value
  std::span<const float> max;   ///< one a group; -infinity where a group has no finite value
};

/// A batch that is looked at elsewhere, as its host knows it meanwhile.
struct RemoteBatch {
  std::vector<std::int64_t> shape;  ///< sizes; the last dimension is the channel
  /// Number of channels of the batches that are elsewhere, too, and came before it; 0 without any.
  std::int64_t channels_before = 0;
  std::int64_t non_finite = 0;    ///< NaN and infinite values in it, once that is known
  std::int64_t first_index = -1;  ///< flat row-major index of the first of them
};

}  // namespace amct
#pragma GCC visibility pop
