#include "search/candidate_search.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numeric>
#include <vector>

#include <tbb/parallel_for.h>

#include "search/coarse_losses.h"
#include "search/double_double.h"

namespace amct {
namespace {

using kernels::Rounding;

// From this many samples on, one pass into bins is cheaper than a pass a candidate.
constexpr std::size_t kCoarseValues = std::size_t{1} << 16;
// Values summed in one task.
constexpr std::size_t kChunk = std::size_t{1} << 16;

/// The values as the kernels take them, and one bracket a candidate that is left.
class CandidateSearch {
 public:
  CandidateSearch(const ValueCounts& values, std::span<const Rounding> candidates)
      : values_(values.values()),
        counts_(values.counts()),
        low_(values.min()),
        high_(values.max()),
        total_(static_cast<double>(values.total())),
        noise_(std::pow(
            static_cast<double>(std::numeric_limits<float>::epsilon()) * values.max_abs(), 2)),
        candidates_(candidates),
        brackets_(candidates.size(), Bracket{0, std::numeric_limits<double>::infinity()}) {
    for (std::size_t i = 0; i < candidates.size(); ++i) left_.push_back(i);
  }

  BestCandidate run() {
    if (values_.size() > kCoarseValues && counts_.empty() && low_ < high_) {
      narrow_coarsely();
    } else {
      narrow_quickly();
    }
    narrow();  // also where one is left: its loss is reported
    if (left_.size() > 1) decide();
    const std::size_t winner = left_.front();
    return {winner, std::midpoint(brackets_[winner].low, brackets_[winner].high)};
  }

 private:
  /// The weights as the kernels take them: none for samples, which count once each.
  template <typename T>
  static const T* data_or_null(const std::vector<T>& weights) {
    return weights.empty() ? nullptr : weights.data();
  }

  void narrow_coarsely() {
    const CoarseLosses coarse(values_, low_, high_);
    for (const std::size_t i : left_) {
      const Bracket sum = coarse.bracket(candidates_[i]);
      set_bracket(i, sum.low, sum.high);
    }
    drop_losers();
  }

  void narrow_quickly() {
    const std::vector<float> weights(counts_.begin(), counts_.end());
    for (const std::size_t i : left_) {
      const double sum = kernels::quick_rounding_error(values_.data(), weights.data(),
                                                       values_.size(), candidates_[i]);
      if (!std::isfinite(sum)) continue;  // squares beyond float32: nothing learnt
      const double error = kernels::quick_error_bound(sum, total_, candidates_[i]);
      set_bracket(i, sum - error, sum + error);
    }
    drop_losers();
  }

  void narrow() {
    const std::vector<double> weights(counts_.begin(), counts_.end());
    for (const std::size_t i : left_) {
      const double sum = rounding_error(data_or_null(weights), candidates_[i]);
      set_bracket(i, sum * (1 - kernels::kRoundingErrorBound),
                  sum * (1 + kernels::kRoundingErrorBound));
    }
    drop_losers();
  }

  /// kernels::rounding_error, in parallel where there are many values. Chunks are of one size and
  /// added in order, so that the number of threads changes nothing.
  double rounding_error(const double* weights, const Rounding& candidate) const {
    const std::size_t chunks = (values_.size() + kChunk - 1) / kChunk;
    std::vector<double> sums(chunks);
    const auto sum_chunk = [&](std::size_t chunk) {
      const std::size_t begin = chunk * kChunk;
      const std::size_t size = std::min(kChunk, values_.size() - begin);
      sums[chunk] = kernels::rounding_error(
          values_.data() + begin, weights == nullptr ? nullptr : weights + begin, size, candidate);
    };
    if (chunks == 1) {
      sum_chunk(0);
    } else {
      tbb::parallel_for(std::size_t{0}, chunks, sum_chunk);
    }
    return std::accumulate(sums.begin(), sums.end(), 0.0);
  }

  /// Exact losses of what is left: with division, as the formula says, summed in double-double.
  void decide() {
    for (const std::size_t i : left_) {
      const Rounding& candidate = candidates_[i];
      const double scale = candidate.scale;
      DoubleDouble sum;
      for (std::size_t j = 0; j < values_.size(); ++j) {
        const double clamped = std::clamp(values_[j], candidate.low, candidate.high);
        const double error =
            std::nearbyint(clamped / scale) * scale - static_cast<double>(values_[j]);
        sum = sum + DoubleDouble::product(error * error,
                                          counts_.empty() ? 1 : static_cast<double>(counts_[j]));
      }
      set_bracket(i, sum.value(), sum.value());
    }
    drop_losers();
  }

  void set_bracket(std::size_t i, double low_sum, double high_sum) {
    // Counting as zero what is at most the noise keeps the order, so it may be applied to both
    // ends.
    const double low = std::max(0.0, low_sum) / total_;
    const double high = high_sum / total_;
    brackets_[i] = {low <= noise_ ? 0 : low, high <= noise_ ? 0 : high};
  }

  /// Drops candidates that cannot be the first smallest: another one is certainly smaller, or an
  /// earlier one certainly not larger.
  void drop_losers() {
    double smallest_high = std::numeric_limits<double>::infinity();
    for (const std::size_t i : left_) smallest_high = std::min(smallest_high, brackets_[i].high);
    double earlier_high = std::numeric_limits<double>::infinity();
    std::erase_if(left_, [&](std::size_t i) {
      const bool lost = brackets_[i].low > smallest_high || brackets_[i].low >= earlier_high;
      earlier_high = std::min(earlier_high, brackets_[i].high);
      return lost;
    });
  }

  std::span<const float> values_;
  std::span<const std::uint64_t> counts_;
  float low_;
  float high_;
  double total_;
  double noise_;
  std::span<const Rounding> candidates_;
  std::vector<Bracket> brackets_;  // by candidate
  std::vector<std::size_t> left_;  // candidates that can still win, ascending
};

}  // namespace

BestCandidate first_smallest_loss(const ValueCounts& values,
                                  std::span<const kernels::Rounding> candidates) {
  return CandidateSearch(values, candidates).run();
}

}  // namespace amct
