#include "observe/float_samples.h"

#include <algorithm>

namespace amct {

void FloatSamples::reserve_more(std::size_t count) {
  for (std::vector<float>& samples : samples_) {
    const std::size_t needed = samples.size() + count;
    // At least doubling keeps the cost of many small batches linear.
    if (needed > samples.capacity()) samples.reserve(std::max(needed, 2 * samples.capacity()));
  }
}

void FloatSamples::merge(const FloatSamples& other) {
  for (std::size_t group = 0; group < samples_.size(); ++group) {
    // `other` may be this object, so its size is taken and its place looked up around the growth.
    std::vector<float>& samples = samples_[group];
    const std::size_t before = samples.size();
    const std::size_t added = other.samples_[group].size();
    samples.resize(before + added);
    std::copy_n(other.samples_[group].begin(), added,
                samples.begin() + static_cast<std::ptrdiff_t>(before));
  }
}

}  // namespace amct
