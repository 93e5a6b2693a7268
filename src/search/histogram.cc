#include "search/histogram.h"

#include <algorithm>
#include <array>
#include <cstddef>
#include <functional>

#include <tbb/enumerable_thread_specific.h>

#include "kernels/bins.h"
#include "search/chunks.h"

namespace amct {

std::vector<std::uint64_t> equal_bins(const ValueCounts& values, double low, double high,
                                      std::int64_t bins) {
  const double range = high - low;
  const auto count = [&](std::size_t first, std::size_t size, std::vector<std::uint64_t>& counts) {
    std::array<std::uint32_t, 256> indices;
    for (std::size_t begin = first; begin < first + size; begin += indices.size()) {
      const std::size_t run = std::min(indices.size(), first + size - begin);
      kernels::bin_indices(values.values().data() + begin, run, low, range,
                           static_cast<std::uint32_t>(bins), indices.data());
      for (std::size_t i = 0; i < run; ++i) counts[indices[i]] += values.count(begin + i);
    }
  };
  std::vector<std::uint64_t> counts(static_cast<std::size_t>(bins));
  const std::size_t size = values.values().size();
  if (chunks_of(size) == 1) {  // a channel, which needs no table of a thread's own
    count(0, size, counts);
    return counts;
  }
  tbb::enumerable_thread_specific<std::vector<std::uint64_t>> locals(counts);
  for_each_chunk(size, [&](std::size_t, std::size_t first, std::size_t run) {
    count(first, run, locals.local());
  });
  for (const std::vector<std::uint64_t>& local : locals)
    std::ranges::transform(counts, local, counts.begin(), std::plus<>());
  return counts;
}

}  // namespace amct
