// Data and reports that the benchmarks share.
#pragma once

#include "amct/core/tensor_view.h"

#include <cstddef>
#include <cstdint>
#include <vector>

#include <benchmark/benchmark.h>

namespace amct::bench {

/// Batches of normal values with 0.1% outliers 20 times as large, as float32, float16 or bfloat16.
class Batches {
 public:
  Batches(DType dtype, std::int64_t batches, std::int64_t rows, std::int64_t channels);

  std::size_t size() const { return bits_.size(); }
  TensorView view(std::size_t i) const;
  std::int64_t elements() const;
  std::int64_t bytes() const;

 private:
  DType dtype_;
  std::int64_t rows_;
  std::int64_t channels_;
  std::vector<std::vector<std::byte>> bits_;
};

/// Seconds that one core needs to read `batches` once, the best of several.
double read_pass_seconds(const Batches& batches);

/// Adds the counters every benchmark reports: ns an element, and the multiple of one read pass over
/// the same bytes in the same run.
void report(benchmark::State& state, std::int64_t elements, double read_seconds);

}  // namespace amct::bench
