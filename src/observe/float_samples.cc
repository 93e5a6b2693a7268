#include "observe/float_samples.h"

#include <algorithm>
#include <cmath>
#include <new>
#include <utility>

#include "observe/elements.h"

namespace amct {
namespace {

void erase_non_finite(std::vector<float>& samples) {
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

void FloatSamples::reserve(std::size_t count) {
  try {
    samples_.reserve(count);
  } catch (const std::bad_alloc&) {
    // What really comes may be less, and grows as it comes.
    return;
  }
}

void FloatSamples::add(const TensorView& view, bool any_non_finite) {
  const std::size_t needed = samples_.size() + static_cast<std::size_t>(view.size());
  // At least doubling keeps the cost of many small batches linear.
  if (needed > samples_.capacity()) samples_.reserve(std::max(needed, 2 * samples_.capacity()));
  for (const Block& block : blocks_of(view)) append(block, samples_);
  any_non_finite_ = any_non_finite_ || any_non_finite;
}

void FloatSamples::merge(const FloatSamples& other) {
  // `other` may be this object, so its size is taken and its place looked up around the growth.
  const std::size_t before = samples_.size();
  const std::size_t added = other.samples_.size();
  samples_.resize(before + added);
  std::copy_n(other.samples_.begin(), added,
              samples_.begin() + static_cast<std::ptrdiff_t>(before));
  any_non_finite_ = any_non_finite_ || other.any_non_finite_;
}

ValueCounts FloatSamples::value_counts(std::size_t group) const {
  std::vector<float> samples;
  if (groups_ == 1) {
    samples = samples_;
  } else {
    samples.reserve(samples_.size() / groups_);
    for (std::size_t i = group; i < samples_.size(); i += groups_) samples.push_back(samples_[i]);
  }
  if (any_non_finite_) erase_non_finite(samples);
  return ValueCounts::of(std::move(samples));
}

ValueCounts FloatSamples::take_value_counts() {
  if (any_non_finite_) erase_non_finite(samples_);
  return ValueCounts::of(std::exchange(samples_, {}));
}

}  // namespace amct
