#include "support/reference.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace amct::support {
namespace {

constexpr float kEpsilon = 1.1920929e-07F;
constexpr float kFloatMax = std::numeric_limits<float>::max();

std::size_t order_statistic(std::size_t n, double percentile) {
  if (1.0 - percentile < static_cast<double>(kEpsilon)) return 1;
  return n - static_cast<std::size_t>(percentile * static_cast<double>(n));
}

/// (high - low) / 255 rounded as float32 arithmetic does, but without its overflow.
float range_scale(float low, float high) {
  const float difference = high - low;
  if (std::isfinite(difference)) return difference / 255.0F;
  return static_cast<float>((static_cast<double>(high) - static_cast<double>(low)) / 255.0);
}

}  // namespace

std::vector<ReferenceCandidate> reference_ifmr_candidates(std::vector<float> x,
                                                          const ReferenceIfmr& options) {
  std::sort(x.begin(), x.end());
  const float high =
      std::max(0.0F, x[x.size() - order_statistic(x.size(), options.max_percentile)]);
  const float low = std::min(0.0F, x[order_statistic(x.size(), options.min_percentile) - 1]);
  std::vector<ReferenceCandidate> candidates;
  const int count = static_cast<int>(std::ceil((options.end - options.start) / options.step));
  for (int i = 0; i < count; ++i) {
    const auto ratio = static_cast<float>(options.start + options.step * i);
    ReferenceCandidate c{};
    if (options.with_offset) {
      c.high = std::min(ratio * high, kFloatMax);
      c.low = low;
      c.scale = range_scale(c.low, c.high);
    } else {
      const float levels = std::fabs(high) < std::fabs(low) ? 128.0F : 127.0F;
      c.high = std::min(ratio * std::max(std::fabs(high), std::fabs(low)), kFloatMax);
      c.low = -c.high;
      c.scale = c.high / levels;
    }
    if (c.scale < kEpsilon) c.scale = 1.0F;
    candidates.push_back(c);
  }
  return candidates;
}

double reference_ifmr_loss(const std::vector<float>& x, const ReferenceCandidate& candidate) {
  const double scale = candidate.scale;
  long double sum = 0;
  for (const float value : x) {
    const double clipped = std::clamp(value, candidate.low, candidate.high);
    const double error = std::nearbyint(clipped / scale) * scale - static_cast<double>(value);
    sum += static_cast<long double>(error) * error;
  }
  return static_cast<double>(sum / static_cast<long double>(x.size()));
}

double reference_noise(const std::vector<float>& x) {
  double largest = 0;
  for (const float value : x) largest = std::max(largest, std::fabs(static_cast<double>(value)));
  return std::pow(static_cast<double>(kEpsilon) * largest, 2);
}

double reference_mse(const std::vector<float>& x, const Grid& grid, QuantParams params) {
  long double sum = 0;
  for (const float value : x) {
    const double error = grid.store(value, params) - static_cast<double>(value);
    sum += static_cast<long double>(error) * error;
  }
  return static_cast<double>(sum / static_cast<long double>(x.size()));
}

double reference_int8_mse(const std::vector<float>& x, QuantParams params) {
  const double scale = params.scale;
  long double sum = 0;
  for (const float value : x) {
    const double code = std::clamp(
        std::nearbyint(static_cast<double>(value) / scale) + params.offset, -128.0, 127.0);
    const double error = (code - params.offset) * scale - static_cast<double>(value);
    sum += static_cast<long double>(error) * error;
  }
  return static_cast<double>(sum / static_cast<long double>(x.size()));
}

ReferenceHistogram reference_histogram(const std::vector<float>& x, std::int64_t bins) {
  const auto [smallest, largest] = std::minmax_element(x.begin(), x.end());
  ReferenceHistogram h;
  h.low = *smallest;
  h.high = *largest;
  h.counts.assign(static_cast<std::size_t>(bins), 0);
  const double left = h.low == h.high ? h.low - 1 : h.low;
  const double right = h.low == h.high ? h.high + 1 : h.high;
  for (const float value : x) {
    // Beyond 2^53 the constant's own bins have no width; the middle is where it belongs.
    const double place = right == left ? static_cast<double>(bins) / 2
                                       : (static_cast<double>(value) - left) *
                                             static_cast<double>(bins) / (right - left);
    const auto index = static_cast<std::int64_t>(std::floor(place));
    ++h.counts[static_cast<std::size_t>(std::min(index, bins - 1))];
  }
  return h;
}

std::vector<ReferenceRange> reference_hfmg_ranges(const std::vector<std::uint64_t>& counts) {
  std::uint64_t total = 0;
  for (const std::uint64_t count : counts) total += count;
  const auto quota = std::max<std::uint64_t>(
      1, static_cast<std::uint64_t>(std::ceil(static_cast<long double>(total) / 100000.0L)));
  const auto n = static_cast<std::int64_t>(counts.size());
  const auto at = [&](std::int64_t bin) { return counts[static_cast<std::size_t>(bin)]; };
  std::int64_t left = 0;
  std::int64_t right = n - 1;
  std::vector<ReferenceRange> ranges;
  while (right - left > static_cast<std::int64_t>(std::ceil(static_cast<double>(n) / 4))) {
    std::int64_t a = left;
    std::uint64_t seen = 0;
    while (a < right && seen < quota) seen += at(a++);
    std::int64_t b = right;
    seen = 0;
    while (a < b && seen < quota) seen += at(b--);
    if (right - b >= a - left) {
      right = b;
    } else {
      left = a;
    }
    ranges.push_back({left, right});
  }
  return ranges;
}

double reference_hfmg_loss(const ReferenceHistogram& histogram, ReferenceRange range) {
  constexpr std::int64_t kLevels = 256;
  const auto bins = static_cast<std::int64_t>(histogram.counts.size());
  const double bin_width = (histogram.high - histogram.low) / static_cast<double>(bins);
  const std::int64_t span = range.right - range.left + 1;
  if (bin_width * static_cast<double>(span) / kLevels < static_cast<double>(kEpsilon)) return 0;
  // In units of a bin, counted from the left edge of the range; edges between levels stand at
  // k * span / 256, which integers compare exactly.
  const long double width = static_cast<long double>(span) / kLevels;
  const auto piece = [&](std::int64_t level, long double from, long double to) {
    const long double centre = (static_cast<long double>(level) + 0.5L) * width;
    const long double a = from - centre;
    const long double b = to - centre;
    return (b * b * b - a * a * a) / 3;
  };
  long double sum = 0;
  for (std::int64_t bin = 0; bin < bins; ++bin) {
    const std::uint64_t count = histogram.counts[static_cast<std::size_t>(bin)];
    if (count == 0) continue;
    const std::int64_t start = bin - range.left;
    long double from = start;
    long double error = 0;
    for (std::int64_t level = std::clamp<std::int64_t>(start * kLevels / span - 1, 0, kLevels - 1);
         level < kLevels; ++level) {
      const bool last = level + 1 == kLevels;
      const long double edge = static_cast<long double>((level + 1) * span) / kLevels;
      const long double to = last || edge > start + 1 ? static_cast<long double>(start + 1) : edge;
      if (to > from) {
        error += piece(level, from, to);
        from = to;
      }
      if (to >= start + 1) break;
    }
    sum += static_cast<long double>(count) * error;
  }
  return static_cast<double>(sum * bin_width * bin_width);
}

QuantParams reference_minmax(float low, float high, bool with_offset) {
  if (with_offset) {
    low = std::min(low, 0.0F);
    high = std::max(high, 0.0F);
    const float scale = range_scale(low, high);
    if (scale < kEpsilon) return {1.0F, -128};
    return {scale, static_cast<std::int32_t>(std::nearbyint(-128.0F - low / scale))};
  }
  const float levels = std::fabs(high) < std::fabs(low) ? 128.0F : 127.0F;
  const float scale = std::max(std::fabs(high), std::fabs(low)) / levels;
  return {scale < kEpsilon ? 1.0F : scale, 0};
}

}  // namespace amct::support
