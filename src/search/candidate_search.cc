#include "search/candidate_search.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numeric>
#include <vector>

#include "search/chunks.h"
#include "search/coarse_losses.h"
#include "search/double_double.h"
#include "search/weights.h"

namespace amct {
namespace {

using kernels::Rounding;

// From this many values times candidates on, a pass into bins is cheaper than a pass a candidate.
constexpr std::size_t kCoarseLosses = std::size_t{1} << 17;

}  // namespace

/// The candidates that are left, and a bracket of each one's loss.
class CandidateSearch::Run {
 public:
  Run(const CandidateSearch& search, std::span<const Rounding> candidates)
      : search_(search),
        values_(search.values_),
        total_(static_cast<double>(search.values_.total())),
        noise_(search.noise_),
        candidates_(candidates),
        brackets_(candidates.size(), Bracket{0, std::numeric_limits<double>::infinity()}) {
    for (std::size_t i = 0; i < candidates.size(); ++i) left_.push_back(i);
  }

  BestCandidate best() {
    if (search_.coarse_) narrow_coarsely(*search_.coarse_);
    if (left_.size() > 1) narrow_quickly();
    narrow();  // also where one is left: its loss is reported
    if (left_.size() > 1) decide();
    return {left_.front(), loss_of(left_.front())};
  }

  BestCandidate quick_best() {
    if (search_.coarse_) {
      for (const std::size_t i : left_) {
        const double loss = search_.coarse_->error(candidates_[i]) / total_;
        brackets_[i] = {loss, loss};
      }
    } else {
      narrow_quickly();
    }
    // Squares beyond float32 say nothing.
    const bool all_known =
        std::ranges::all_of(left_, [&](std::size_t i) { return std::isfinite(brackets_[i].high); });
    if (!all_known) narrow();
    const auto smallest =
        std::ranges::min_element(left_, {}, [&](std::size_t i) { return loss_of(i); });
    return {*smallest, loss_of(*smallest)};
  }

 private:
  double loss_of(std::size_t i) const { return std::midpoint(brackets_[i].low, brackets_[i].high); }

  /// These brackets are of losses less the same amount for all, so they say who loses, but not
  /// which losses count as zero: they are used only where none does.
  void narrow_coarsely(const CoarseLosses& coarse) {
    std::vector<double> errors(candidates_.size());
    for (const std::size_t i : left_) {
      errors[i] = coarse.error(candidates_[i]);
      brackets_[i] = coarse.rough_bracket(candidates_[i], errors[i]);
    }
    drop_coarse_losers();
    for (const std::size_t i : left_) brackets_[i] = coarse.bracket(candidates_[i], errors[i]);
    drop_coarse_losers();
  }

  void drop_coarse_losers() {
    const bool all_count = std::ranges::all_of(
        left_, [&](std::size_t i) { return brackets_[i].low > noise_ * total_; });
    if (all_count) drop_losers();
  }

  void narrow_quickly() {
    const std::vector<double> sums =
        sums_of_chunks(weights_of<float>(values_.counts()), kernels::quick_rounding_error);
    for (std::size_t k = 0; k < left_.size(); ++k) {
      const std::size_t i = left_[k];
      if (!std::isfinite(sums[k])) {  // squares beyond float32: nothing learnt
        brackets_[i] = {0, std::numeric_limits<double>::infinity()};
        continue;
      }
      const double error = kernels::quick_error_bound(sums[k], total_, candidates_[i]);
      set_bracket(i, sums[k] - error, sums[k] + error);
    }
    drop_losers();
  }

  void narrow() {
    const std::vector<double> sums =
        sums_of_chunks(weights_of<double>(values_.counts()), kernels::rounding_error);
    for (std::size_t k = 0; k < left_.size(); ++k) {
      set_bracket(left_[k], sums[k] * (1 - kernels::kRoundingErrorBound),
                  sums[k] * (1 + kernels::kRoundingErrorBound));
    }
    drop_losers();
  }

  /// The sum of error(values, weights or null, size, candidate) over all chunks of values, for each
  /// candidate that is left; all of them while a chunk is in the cache. Chunks are of one size and
  /// added in order, so that the number of threads changes nothing.
  template <typename T, typename Error>
  std::vector<double> sums_of_chunks(const std::vector<T>& weights, Error error) const {
    const std::span<const float> values = values_.values();
    std::vector<double> parts(chunks_of(values.size()) * left_.size());
    for_each_chunk(values.size(), [&](std::size_t chunk, std::size_t begin, std::size_t size) {
      const T* chunk_weights = weights.empty() ? nullptr : weights.data() + begin;
      for (std::size_t k = 0; k < left_.size(); ++k) {
        parts[chunk * left_.size() + k] =
            error(values.data() + begin, chunk_weights, size, candidates_[left_[k]]);
      }
    });
    std::vector<double> sums(left_.size());
    for (std::size_t i = 0; i < parts.size(); ++i) sums[i % left_.size()] += parts[i];
    return sums;
  }

  /// Exact losses of what is left: with division, as the formula says, summed in double-double.
  void decide() {
    for (const std::size_t i : left_) {
      const Rounding& candidate = candidates_[i];
      const double scale = candidate.scale;
      DoubleDouble sum;
      for (std::size_t j = 0; j < values_.values().size(); ++j) {
        const float value = values_.values()[j];
        const double clamped = std::clamp(value, candidate.low, candidate.high);
        const double error = std::nearbyint(clamped / scale) * scale - static_cast<double>(value);
        sum = sum + DoubleDouble::product(error * error, static_cast<double>(values_.count(j)));
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

  const CandidateSearch& search_;
  const ValueCounts& values_;
  double total_;
  double noise_;
  std::span<const Rounding> candidates_;
  std::vector<Bracket> brackets_;  // by candidate
  std::vector<std::size_t> left_;  // candidates that can still win, ascending
};

CandidateSearch::CandidateSearch(const ValueCounts& values)
    : values_(values), noise_(noise_of(values)) {}

CandidateSearch::CandidateSearch(const ValueCounts& values, const Rounding& envelope,
                                 std::size_t candidates)
    : CandidateSearch(values) {
  if (values.values().size() * candidates < kCoarseLosses) return;
  coarse_.emplace(values, envelope);
  if (!coarse_->valid()) coarse_.reset();
}

BestCandidate CandidateSearch::best(std::span<const Rounding> candidates) const {
  return Run(*this, candidates).best();
}

BestCandidate CandidateSearch::quick_best(std::span<const Rounding> candidates) const {
  return Run(*this, candidates).quick_best();
}

double noise_of(const ValueCounts& values) {
  return std::pow(static_cast<double>(std::numeric_limits<float>::epsilon()) * values.max_abs(), 2);
}

BestCandidate first_smallest_loss(const ValueCounts& values, std::span<const Rounding> candidates) {
  Rounding envelope = candidates.front();
  for (const Rounding& candidate : candidates) {
    envelope.scale = std::min(envelope.scale, candidate.scale);
    envelope.low = std::min(envelope.low, candidate.low);
    envelope.high = std::max(envelope.high, candidate.high);
  }
  return CandidateSearch(values, envelope, candidates.size()).best(candidates);
}

}  // namespace amct
