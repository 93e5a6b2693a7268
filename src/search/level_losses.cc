#include "search/level_losses.h"

#include <algorithm>
#include <limits>

namespace amct {
namespace {

// Values whose sums are taken one by one: sums of each value would take many times its memory.
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
      total_(static_cast<double>(values.total())),
      noise_(noise_of(values)) {
  const std::span<const float> magnitudes = grid.format().magnitudes();
  levels_.reserve(2 * magnitudes.size());
  for (std::size_t i = magnitudes.size() - 1; i > 0; --i)
    levels_.push_back(-static_cast<double>(magnitudes[i]));
  levels_.insert(levels_.end(), magnitudes.begin(), magnitudes.end());

  Sums sums;
  for (std::size_t i = 0; i < values_.values().size(); ++i) {
    if (i % kBlock == 0) blocks_.push_back(sums);
    add(sums, values_.values()[i], static_cast<double>(values_.count(i)));
  }
  if (values_.values().size() % kBlock == 0) blocks_.push_back(sums);
}

/// The index of the first value that is not below `bound`, none of those before `from` being it.
std::size_t LevelLosses::first_from(double bound, std::size_t from) const {
  const auto begin = values_.values().begin();
  const auto found = std::lower_bound(
      begin + static_cast<std::ptrdiff_t>(from), values_.values().end(), bound,
      [](float value, double limit) { return static_cast<double>(value) < limit; });
  return static_cast<std::size_t>(found - begin);
}

LevelLosses::Sums LevelLosses::sums_below(std::size_t index) const {
  Sums sums = blocks_[index / kBlock];
  for (std::size_t i = index / kBlock * kBlock; i < index; ++i)
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
