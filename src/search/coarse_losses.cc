#include "search/coarse_losses.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <limits>
#include <utility>

#include <tbb/enumerable_thread_specific.h>

#include "kernels/bins.h"
#include "search/chunks.h"

namespace amct {
namespace {

constexpr std::size_t kMinBins = 4096;
constexpr std::size_t kMaxBins = 16384;
// Bins whose largest excess is taken together: some one or two steps of a candidate.
constexpr std::size_t kRun = 16;
// A bin's number and a value's place inside it, together: the mantissa of a float32.
constexpr int kPositionBits = 24;
// One 64-bit addition a sample counts it and adds its place: this many samples, then the count
// could be run into.
constexpr int kCountShift = 40;
constexpr std::size_t kPackedSamples = std::size_t{1} << 20;
// Values in the largest vector of a kernel.
constexpr std::size_t kVector = 16;
// Relative error of means, which are float32.
constexpr double kMeanError = 0x1p-23;

std::size_t bins_for(std::size_t values) {
  return std::clamp(std::bit_floor(values / 64), kMinBins, kMaxBins);
}

}  // namespace

/// Where values are in bins of one width.
class CoarseLosses::Bins {
 public:
  Bins(std::size_t bins, double low, double width)
      : bins_(bins),
        place_bits_(kPositionBits - static_cast<int>(std::bit_width(bins)) + 1),
        low_(static_cast<float>(low)),
        inverse_(static_cast<float>(places_a_bin() / width)) {}

  /// Whether positions are numbers: a range may be too wide or too narrow for float32.
  bool valid() const {
    return std::isnormal(inverse_) && std::isfinite(static_cast<float>(end()) / inverse_);
  }

  std::size_t bins() const { return bins_; }
  double places_a_bin() const { return static_cast<double>(std::uint32_t{1} << place_bits_); }
  /// How far values and their mean may be from where they are placed, in bins: the difference, the
  /// factor and the product are rounded, and half a place is not known.
  double place_error() const { return static_cast<double>(bins_) * 0x1p-22 + 0.5 / places_a_bin(); }

  /// Calls inside(i, bin, place) for values in a bin, outside(i, whether above) for others.
  template <typename Inside, typename Outside>
  void locate(std::span<const float> values, Inside inside, Outside outside) const {
    std::array<std::uint32_t, 256> positions;
    const std::uint32_t place_mask = (std::uint32_t{1} << place_bits_) - 1;
    const std::uint32_t last = end();
    for (std::size_t begin = 0; begin < values.size(); begin += positions.size()) {
      const std::size_t size = std::min(positions.size(), values.size() - begin);
      const bool any_outside = kernels::quick_bin_indices(values.data() + begin, size, low_,
                                                          inverse_, last, positions.data());
      const auto add = [&](std::size_t i) {
        inside(begin + i, positions[i] >> place_bits_, positions[i] & place_mask);
      };
      if (!any_outside) {  // nearly always
        for (std::size_t i = 0; i < size; ++i) add(i);
        continue;
      }
      for (std::size_t i = 0; i < size; ++i) {
        if (positions[i] == last) {
          outside(begin + i, values[begin + i] >= low_);
        } else {
          add(i);
        }
      }
    }
  }

 private:
  std::uint32_t end() const { return static_cast<std::uint32_t>(bins_ << place_bits_); }

  std::size_t bins_;
  int place_bits_;
  float low_;
  float inverse_;  // places a unit
};

namespace {

/// Count and sum of some values.
struct Sum {
  double count = 0;
  double sum = 0;

  void add(double weight, double value) { *this += {weight, weight * value}; }
  Sum& operator+=(const Sum& other) {
    count += other.count;
    sum += other.sum;
    return *this;
  }
};

/// The bins of samples that come in any order: count and sum of places in one word, which one
/// addition adds a sample to.
template <typename Bins>
struct PackedBins {
  explicit PackedBins(const Bins& bins) : packed(bins.bins()) {}

  std::vector<std::uint64_t> packed;
  std::vector<Sum> sums;  // what was unpacked, if anything
  std::array<Sum, 2> ends;
  std::size_t packed_samples = 0;

  void add(std::span<const float> samples, const Bins& bins) {
    if (packed_samples + samples.size() > kPackedSamples) unpack();
    packed_samples += samples.size();
    bins.locate(
        samples,
        [&](std::size_t, std::uint32_t bin, std::uint32_t place) {
          packed[bin] += (std::uint64_t{1} << kCountShift) | place;
        },
        [&](std::size_t i, bool above) { ends[above ? 1 : 0].add(1, samples[i]); });
  }

  Sum at(std::size_t bin) const {
    Sum sum{static_cast<double>(packed[bin] >> kCountShift),
            static_cast<double>(packed[bin] & ((std::uint64_t{1} << kCountShift) - 1))};
    if (!sums.empty()) sum += sums[bin];
    return sum;
  }

  void unpack() {
    std::vector<Sum> all(packed.size());
    for (std::size_t bin = 0; bin < all.size(); ++bin) all[bin] = at(bin);
    sums = std::move(all);
    std::ranges::fill(packed, 0);
    packed_samples = 0;
  }

  void merge(const PackedBins& other) {
    unpack();
    for (std::size_t bin = 0; bin < sums.size(); ++bin) sums[bin] += other.at(bin);
    for (std::size_t end = 0; end < ends.size(); ++end) ends[end] += other.ends[end];
  }
};

}  // namespace

CoarseLosses::CoarseLosses(const ValueCounts& values, const kernels::Rounding& envelope)
    : total_(static_cast<double>(values.total())) {
  const double largest = values.max_abs();
  const double scale = envelope.scale;
  low_ = std::max(envelope.low, values.min());
  const double high = std::min(envelope.high, values.max());
  const std::size_t count = bins_for(values.values().size());
  width_ = (high - low_) / static_cast<double>(count);
  if (width_ <= 0 || 2 * width_ > scale) return;
  const Bins bins(count, low_, width_);
  valid_ = bins.valid();
  if (!valid_) return;
  // Means are also rounded to float32.
  shift_ = largest * kMeanError + width_ * bins.place_error();
  excess_.resize(count + 2);
  const std::size_t used = std::min(count, values.values().size()) + 2 + kVector;
  means_.reserve(used);
  weights_.reserve(used);
  if (values.counts().empty()) {
    add_samples(values.values(), bins);
  } else {
    add_sorted(values, bins);
  }
  fill_last_vector();
  for (std::size_t bin = 0; bin < excess_.size(); bin += kRun) {
    const auto run = std::span(excess_).subspan(bin, std::min(kRun, excess_.size() - bin));
    largest_of_runs_ += static_cast<double>(*std::ranges::max_element(run));
  }
}

void CoarseLosses::add_bin(std::size_t bin, double count, double places, const Bins& bins) {
  // Places are rounded down, by half of one on average.
  const double place = (places / count + 0.5) / bins.places_a_bin();
  means_.push_back(static_cast<float>(low_ + (static_cast<double>(bin) + place) * width_));
  weights_.push_back(static_cast<float>(count));
  // Values may lie as far as shift_ outside of their bin, where they add so much to what g allows;
  // and a middle may be looked for in a neighbour of the bin whose values lie on both sides of it.
  const double more = 2 * shift_ * count;
  const double excess = count * place * (1 - place) * width_ + more;
  excess_[bin] += static_cast<float>(more);
  excess_[bin + 1] += static_cast<float>(excess);
  excess_[bin + 2] += static_cast<float>(more);
}

void CoarseLosses::add_end(double count, double sum) {
  if (count == 0) return;
  means_.push_back(static_cast<float>(sum / count));
  weights_.push_back(static_cast<float>(count));
}

void CoarseLosses::add_samples(std::span<const float> samples, const Bins& bins) {
  PackedBins<Bins> all(bins);
  if (samples.size() <= kChunk) {
    all.add(samples, bins);
  } else {
    tbb::enumerable_thread_specific<PackedBins<Bins>> locals([&] { return all; });
    for_each_chunk(samples.size(), [&](std::size_t, std::size_t begin, std::size_t size) {
      locals.local().add(samples.subspan(begin, size), bins);
    });
    for (const PackedBins<Bins>& local : locals) all.merge(local);
  }
  for (std::size_t bin = 0; bin < bins.bins(); ++bin) {
    if (const Sum sum = all.at(bin); sum.count > 0) add_bin(bin, sum.count, sum.sum, bins);
  }
  for (const Sum& end : all.ends) add_end(end.count, end.sum);
}

void CoarseLosses::add_sorted(const ValueCounts& values, const Bins& bins) {
  // Values ascend, so those of a bin come together.
  std::uint32_t open = 0;
  Sum sum;
  std::array<Sum, 2> ends;
  const auto close = [&] {
    if (sum.count > 0) add_bin(open, sum.count, sum.sum, bins);
    sum = {};
  };
  bins.locate(
      values.values(),
      [&](std::size_t i, std::uint32_t bin, std::uint32_t place) {
        if (bin != open) {
          close();
          open = bin;
        }
        sum.add(static_cast<double>(values.counts()[i]), place);
      },
      [&](std::size_t i, bool above) {
        ends[above ? 1 : 0].add(static_cast<double>(values.counts()[i]), values.values()[i]);
      });
  close();
  for (const Sum& end : ends) add_end(end.count, end.sum);
}

void CoarseLosses::fill_last_vector() {
  // Kernels take whole vectors at once and what is left over one by one; nothing is left over here.
  while (!means_.empty() && means_.size() % kVector != 0) {
    means_.push_back(means_.back());
    weights_.push_back(0);
  }
}

double CoarseLosses::error(const kernels::Rounding& candidate) const {
  return kernels::quick_rounding_error(means_.data(), weights_.data(), means_.size(), candidate);
}

Bracket CoarseLosses::around(double error, double excess,
                             const kernels::Rounding& candidate) const {
  if (!std::isfinite(error)) return {0, std::numeric_limits<double>::infinity()};
  // Means are off by shift_ at most, and so is their distance from a level.
  const double moved = 2 * shift_ * std::sqrt(total_ * error) + total_ * shift_ * shift_;
  const double slack = moved + kernels::quick_error_bound(error, total_, candidate);
  // Excesses are summed from float32 values.
  const double missed = 2 * static_cast<double>(candidate.scale) * excess * (1 + 1e-5);
  return {error - missed - slack, error + slack};
}

Bracket CoarseLosses::rough_bracket(const kernels::Rounding& candidate, double error) const {
  // So many middles at most are in a run of bins, each in the worst of them.
  const double middles = std::floor(kRun * width_ / static_cast<double>(candidate.scale)) + 1;
  return around(error, middles * largest_of_runs_, candidate);
}

Bracket CoarseLosses::bracket(const kernels::Rounding& candidate, double error) const {
  const double scale = candidate.scale;
  const double first_level = std::nearbyint(static_cast<double>(candidate.low) / scale);
  const double last_level = std::nearbyint(static_cast<double>(candidate.high) / scale);
  // Middles in bins, counted from the zero before the first bin. What lies before it is skipped, as
  // what lies behind the last one.
  const auto position = [&](double level) { return ((level + 0.5) * scale - low_) / width_ + 1; };
  const double step = scale / width_;
  double level = first_level;
  if (position(level) < 0) level += std::ceil(-position(level) / step);
  if (position(level) < 0) level += 1;
  const double middles = std::min(
      last_level - level, (static_cast<double>(excess_.size()) - position(level)) / step + 1);
  const auto count = static_cast<std::size_t>(std::max(0.0, middles));
  const double excess =
      kernels::sum_at_steps(excess_.data(), excess_.size(), position(level), step, count);
  return around(error, excess, candidate);
}

}  // namespace amct
