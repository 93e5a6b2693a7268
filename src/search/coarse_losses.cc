#include "search/coarse_losses.h"

#include <algorithm>
#include <array>
#include <cmath>

#include <tbb/blocked_range.h>
#include <tbb/enumerable_thread_specific.h>
#include <tbb/parallel_for.h>

#include "kernels/bins.h"

namespace amct {
namespace {

constexpr std::uint32_t kBins = 16384;
// A value's place inside its bin is kept to this many bits, summed up beside the count: one 64-bit
// addition a value counts it and adds its place.
constexpr std::uint32_t kPlaceBits = 8;
constexpr std::uint32_t kPlaces = 1U << kPlaceBits;
constexpr int kCountShift = 36;
// Values a table takes before the sum of places could run into the count.
constexpr std::size_t kTableValues = std::size_t{1} << (64 - kCountShift);
constexpr std::size_t kChunk = std::size_t{1} << 16;
static_assert(kCountShift - static_cast<int>(kPlaceBits) >= 64 - kCountShift);

/// Counts and summed places of all bins.
struct Table {
  std::vector<std::uint64_t> counts = std::vector<std::uint64_t>(kBins);
  std::vector<std::uint64_t> places = std::vector<std::uint64_t>(kBins);
  std::vector<std::uint64_t> packed = std::vector<std::uint64_t>(kBins);
  std::size_t packed_values = 0;

  void add(const float* samples, std::size_t count, double low, double inverse) {
    if (packed_values + count >= kTableValues) unpack();
    packed_values += count;
    std::array<std::uint32_t, 256> indices;
    for (std::size_t begin = 0; begin < count; begin += indices.size()) {
      const std::size_t size = std::min(indices.size(), count - begin);
      kernels::quick_bin_indices(samples + begin, size, low, inverse, kBins * kPlaces,
                                 indices.data());
      for (std::size_t i = 0; i < size; ++i) {
        packed[indices[i] >> kPlaceBits] +=
            (std::uint64_t{1} << kCountShift) | (indices[i] & (kPlaces - 1));
      }
    }
  }

  void unpack() {
    for (std::uint32_t bin = 0; bin < kBins; ++bin) {
      counts[bin] += packed[bin] >> kCountShift;
      places[bin] += packed[bin] & ((std::uint64_t{1} << kCountShift) - 1);
      packed[bin] = 0;
    }
    packed_values = 0;
  }
};

}  // namespace

CoarseLosses::CoarseLosses(std::span<const float> samples, float low, float high)
    : low_(low),
      width_((static_cast<double>(high) - static_cast<double>(low)) / kBins),
      total_(static_cast<double>(samples.size())) {
  const double inverse = kPlaces / width_;
  tbb::enumerable_thread_specific<Table> tables;
  tbb::parallel_for(
      tbb::blocked_range<std::size_t>(0, samples.size(), kChunk),
      [&](const tbb::blocked_range<std::size_t>& range) {
        Table& table = tables.local();
        for (std::size_t begin = range.begin(); begin < range.end(); begin += kChunk) {
          table.add(samples.data() + begin, std::min(kChunk, range.end() - begin), low_, inverse);
        }
      });
  Table sum;
  for (Table& table : tables) {
    table.unpack();
    for (std::uint32_t bin = 0; bin < kBins; ++bin) {
      sum.counts[bin] += table.counts[bin];
      sum.places[bin] += table.places[bin];
    }
  }
  below_.reserve(kBins + 1);
  below_.push_back(0);
  for (std::uint32_t bin = 0; bin < kBins; ++bin) {
    below_.push_back(below_.back() + sum.counts[bin]);
    if (sum.counts[bin] == 0) continue;
    const auto count = static_cast<double>(sum.counts[bin]);
    const double place = (static_cast<double>(sum.places[bin]) / count + 0.5) / kPlaces;
    means_.push_back(static_cast<float>(low_ + (bin + place) * width_));
    weights_.push_back(count);
  }
}

std::uint64_t CoarseLosses::straddling(const kernels::Rounding& candidate) const {
  const double scale = candidate.scale;
  const auto level_of = [&](float x) { return std::nearbyint(static_cast<double>(x) / scale); };
  // At most some 256 levels: scale is a share of the clip range.
  const auto first_level = static_cast<std::int64_t>(level_of(candidate.low));
  const auto last_level = static_cast<std::int64_t>(level_of(candidate.high));
  const auto clamped_bin = [](double position) {
    return static_cast<std::size_t>(std::clamp(position, 0.0, static_cast<double>(kBins)));
  };
  std::uint64_t count = 0;
  std::size_t end = 0;  // bins before it are counted
  for (std::int64_t level = first_level; level < last_level; ++level) {
    // The bin of the middle, and its neighbour where the middle is too near for rounding to tell.
    const double position = ((static_cast<double>(level) + 0.5) * scale - low_) / width_;
    const std::size_t first = std::max(end, clamped_bin(std::floor(position - 1e-3)));
    end = std::max(end, clamped_bin(std::floor(position + 1e-3) + 1));
    if (end > first) count += below_[end] - below_[first];
  }
  return count;
}

Bracket CoarseLosses::bracket(const kernels::Rounding& candidate) const {
  const double sum =
      kernels::rounding_error(means_.data(), weights_.data(), means_.size(), candidate);
  // Half a place for the value's position, and as much again for the rounding of means to float32.
  const double largest = std::max(std::fabs(low_), std::fabs(low_ + kBins * width_));
  const double shift = width_ / kPlaces + largest * 0x1p-23;
  const double moved = 2 * shift * std::sqrt(total_ * sum) + total_ * shift * shift;
  const double missed = static_cast<double>(straddling(candidate)) * candidate.scale * width_ / 2;
  const double spread = total_ * width_ * width_ / 4;
  const double slack = moved + kernels::kRoundingErrorBound * sum;
  return {sum - missed - slack, sum + spread + slack};
}

}  // namespace amct
