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
    samples_[group].insert(samples_[group].end(), other.samples_[group].begin(),
                           other.samples_[group].end());
  }
}

}  // namespace amct
