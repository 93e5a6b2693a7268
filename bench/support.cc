#include "support.h"

#include <algorithm>
#include <bit>
#include <chrono>
#include <cstring>
#include <limits>
#include <random>

namespace amct::bench {
namespace {

std::uint16_t to_bfloat16(float value) {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  return static_cast<std::uint16_t>((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16);
}

/// Rounds a value in the normal range of float16; the data has no others that matter.
std::uint16_t to_float16(float value) {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  const std::uint32_t sign = (bits >> 16) & 0x8000;
  const std::uint32_t magnitude = bits & 0x7FFFFFFF;
  if (magnitude < 0x38800000) return static_cast<std::uint16_t>(sign);
  return static_cast<std::uint16_t>(
      sign | ((magnitude - 0x38000000 + 0xFFF + ((magnitude >> 13) & 1)) >> 13));
}

}  // namespace

Batches::Batches(DType dtype, std::int64_t batches, std::int64_t rows, std::int64_t channels)
    : dtype_(dtype), rows_(rows), channels_(channels) {
  std::mt19937_64 generator(1);
  std::normal_distribution<float> normal;
  for (std::int64_t batch = 0; batch < batches; ++batch) {
    std::vector<std::byte>& bits =
        bits_.emplace_back(static_cast<std::size_t>(rows * channels) * size_of(dtype));
    for (std::int64_t i = 0; i < rows * channels; ++i) {
      const float value = normal(generator) * (generator() % 1000 == 0 ? 20.0F : 1.0F);
      std::byte* target = bits.data() + static_cast<std::size_t>(i) * size_of(dtype);
      if (dtype == DType::kFloat32) {
        std::memcpy(target, &value, sizeof value);
      } else {
        const std::uint16_t half =
            dtype == DType::kBFloat16 ? to_bfloat16(value) : to_float16(value);
        std::memcpy(target, &half, sizeof half);
      }
    }
  }
}

TensorView Batches::view(std::size_t i) const {
  return TensorView::contiguous(bits_[i].data(), dtype_, {rows_, channels_});
}

std::int64_t Batches::elements() const {
  return static_cast<std::int64_t>(bits_.size()) * rows_ * channels_;
}

std::int64_t Batches::bytes() const {
  return elements() * static_cast<std::int64_t>(size_of(dtype_));
}

double read_pass_seconds(const Batches& batches) {
  double best = std::numeric_limits<double>::infinity();
  for (int repeat = 0; repeat < 5; ++repeat) {
    const auto start = std::chrono::steady_clock::now();
    std::uint64_t sum = 0;
    for (std::size_t i = 0; i < batches.size(); ++i) {
      const TensorView view = batches.view(i);
      const auto* words = static_cast<const std::uint64_t*>(view.data);
      const auto count =
          static_cast<std::size_t>(view.size()) * size_of(view.dtype) / sizeof(std::uint64_t);
      for (std::size_t word = 0; word < count; ++word) sum += words[word];
    }
    benchmark::DoNotOptimize(sum);
    const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - start;
    best = std::min(best, taken.count());
  }
  return best;
}

void report(benchmark::State& state, std::int64_t elements, double read_seconds) {
  using benchmark::Counter;
  const auto count = static_cast<double>(elements);
  // kIsRate divides by the time of all iterations, kInvert turns elements a second into seconds an
  // element.
  state.counters["ns_per_element"] =
      Counter(count * 1e-9, Counter::kIsIterationInvariantRate | Counter::kInvert);
  state.counters["read_passes"] =
      Counter(read_seconds, Counter::kIsIterationInvariantRate | Counter::kInvert);
  state.counters["elements"] = count;
}

}  // namespace amct::bench
