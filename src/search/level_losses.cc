#include "search/level_losses.h"

#include <algorithm>
#include <limits>

namespace amct {
namespace {

// Sums of each value take 40 bytes. Where that is more than a cache holds, the values of a block
// are added one by one.
constexpr std::size_t kMostSums = std::size_t{1} << 16;
constexpr std::size_t kBlock = 64;

}  // namespace

void LevelLosses::add(Sums& sums, float value, double count) {
  const auto x = static_cast<double>(value);
  sums.count += count;
  sums.x = sums.x + DoubleDouble::product(x, count);
  // The square of a float32 is exact in float64.
  sums.squares = sums.squares + DoubleDouble::product(x * x, count);
}

LevelLosses::LevelLosses(const ValueCounts& values, const Grid& grid)
    : values_(values.sorted()),
      block_(values_.values().size() <= kMostSums ? 1 : kBlock),
      total_(static_cast<double>(values.total())),
      noise_(noise_of(values)) {
  const std::span<const float> magnitudes = grid.format().magnitudes();
  levels_.reserve(2 * magnitudes.size());
  for (std::size_t i = magnitudes.size() - 1; i > 0; --i)
    levels_.push_back(-static_cast<double>(magnitudes[i]));
  levels_.insert(levels_.end(), magnitudes.begin(), magnitudes.end());

  Sums sums;
  for (std::size_t i = 0; i < values_.values().size(); ++i) {
    if (i % block_ == 0) blocks_.push_back(sums);
    add(sums, values_.values()[i], static_cast<double>(values_.count(i)));
  }
  if (values_.values().size() % block_ == 0) blocks_.push_back(sums);
}

/// The index of the first value that is not below `bound`, none of those before `from` being it.
std::size_t LevelLosses::first_from(double bound, std::size_t from) const {
  const std::span<const float> values = values_.values();
  const auto is_below = [](float value, double limit) {
    return static_cast<double>(value) < limit;
  };
  // The next level is near: steps that double until they are past it.
  std::size_t step = 1;
  while (from + step <= values.size() && is_below(values[from + step - 1], bound)) {
    from += step;
    step *= 2;
  }
  const auto rest = values.subspan(from, std::min(step, values.size() - from));
  const auto found =
      std::ranges::lower_bound(rest, bound, {}, [](float v) { return static_cast<double>(v); });
  return from + static_cast<std::size_t>(found - rest.begin());
}

LevelLosses::Sums LevelLosses::sums_below(std::size_t index) const {
  Sums sums = blocks_[index / block_];
  for (std::size_t i = index / block_ * block_; i < index; ++i)
    add(sums, values_.values()[i], static_cast<double>(values_.count(i)));
  return sums;
}

double LevelLosses::moved_to(double level, const Sums& begin, const Sums& end) {
  const double x = (end.x - begin.x).value();
  const double squares = (end.squares - begin.squares).value();
  return std::max(0.0, squares - 2 * level * x + level * level * (end.count - begin.count));
}

double LevelLosses::loss(float scale) const {
  const std::size_t size = values_.values().size();
  double sum = 0;
  std::size_t begin = 0;
  Sums below;
  for (std::size_t i = 0; i < levels_.size() && begin < size; ++i) {
    const double level = levels_[i] * static_cast<double>(scale);
    const bool last = i + 1 == levels_.size();
    const double middle = last ? 0 : (levels_[i] + levels_[i + 1]) / 2 * static_cast<double>(scale);
    const std::size_t end = last ? size : first_from(middle, begin);
    if (end == begin) continue;
    const Sums above = sums_below(end);
    sum += moved_to(level, below, above);
    below = above;
    begin = end;
  }
  const double loss = sum / total_;
  return loss <= noise_ ? 0 : loss;
}

double LevelLosses::clipping(double end) const {
  const std::size_t size = values_.values().size();
  const std::size_t low = first_from(-end, 0);
  const std::size_t high = first_from(end, low);
  return (moved_to(-end, {}, sums_below(low)) + moved_to(end, sums_below(high), sums_below(size))) /
         total_;
}

BestCandidate LevelLosses::best(std::span<const float> scales) const {
  BestCandidate best{0, std::numeric_limits<double>::infinity()};
  for (std::size_t i = 0; i < scales.size(); ++i) {
    const double candidate = loss(scales[i]);
    if (candidate < best.loss) best = {i, candidate};
  }
  return best;
}

}  // namespace amct
