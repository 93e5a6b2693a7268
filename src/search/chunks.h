// Cutting values into chunks for threads.
#pragma once

#include <algorithm>
#include <cstddef>

#include <tbb/parallel_for.h>

namespace amct {

/// Values in one task: so many that a hand-over to another thread does not show. Sums of chunks are
/// added in order, so that the number of threads changes no bit.
inline constexpr std::size_t kChunk = std::size_t{1} << 16;

constexpr std::size_t chunks_of(std::size_t size) { return (size + kChunk - 1) / kChunk; }

/// Calls body(chunk, begin, size) for all chunks of `size` values, on several threads where there
/// are several.
template <typename Body>
void for_each_chunk(std::size_t size, Body body) {
  const auto run = [&](std::size_t chunk) {
    const std::size_t begin = chunk * kChunk;
    body(chunk, begin, std::min(kChunk, size - begin));
  };
  if (chunks_of(size) == 1) {
    run(0);
  } else {
    tbb::parallel_for(std::size_t{0}, chunks_of(size), run);
  }
}

}  // namespace amct
