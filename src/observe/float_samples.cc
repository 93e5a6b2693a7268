#include "observe/float_samples.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "kernels/scan.h"
#include "observe/elements.h"

namespace amct {
namespace {

void erase_non_finite(std::vector<float>& samples) {
  if (kernels::scan_float32(samples.data(), samples.size()).non_finite == 0) return;
  std::erase_if(samples, [](float sample) { return !std::isfinite(sample); });
}

/// Appends the elements of a block, row by row.
void append(const Block& block, std::vector<float>& samples) {
  const bool aligned = reinterpret_cast<std::uintptr_t>(block.data) % alignof(float) == 0;
  if (aligned && block.is_contiguous()) {
    const auto* start = reinterpret_cast<const float*>(block.data);
    samples.insert(samples.end(), start, start + block.rows * block.channels);
    return;
  }
  for_each_element<std::uint32_t>(block, [&](std::int64_t, std::int64_t, std::uint32_t bits) {
    samples.push_back(std::bit_cast<float>(bits));
  });
}

}  // namespace

void FloatSamples::add(const TensorView& view) {
  const std::size_t needed = samples_.size() + static_cast<std::size_t>(view.size());
  // At least doubling keeps the cost of many small batches linear.
  if (needed > samples_.capacity()) samples_.reserve(std::max(needed, 2 * samples_.capacity()));
  for (const Block& block : blocks_of(view)) append(block, samples_);
}

void FloatSamples::merge(const FloatSamples& other) {
  // `other` may be this object, so its size is taken and its place looked up around the growth.
  const std::size_t before = samples_.size();
  const std::size_t added = other.samples_.size();
  samples_.resize(before + added);
  std::copy_n(other.samples_.begin(), added,
              samples_.begin() + static_cast<std::ptrdiff_t>(before));
}

ValueCounts FloatSamples::value_counts(std::size_t group) const {
  std::vector<float> samples;
  if (groups_ == 1) {
    samples = samples_;
  } else {
    samples.reserve(samples_.size() / groups_);
    for (std::size_t i = group; i < samples_.size(); i += groups_) samples.push_back(samples_[i]);
  }
  erase_non_finite(samples);
  return ValueCounts::of(std::move(samples));
}

ValueCounts FloatSamples::take_value_counts() {
  erase_non_finite(samples_);
  return ValueCounts::of(std::exchange(samples_, {}));
}

}  // namespace amct
