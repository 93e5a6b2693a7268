// The pruned search against the losses of all candidates, on sizes that take each of its ways.
#include "search/candidate_search.h"

#include <algorithm>
#include <limits>
#include <vector>

#include <gtest/gtest.h>

#include "search/coarse_losses.h"
#include "support/data.h"
#include "support/reference.h"

namespace amct {
namespace {

using kernels::Rounding;
using support::Distribution;

std::vector<Rounding> candidates_for(const std::vector<float>& x, bool with_offset) {
  std::vector<Rounding> roundings;
  const support::ReferenceIfmr options{.with_offset = with_offset};
  for (const auto& c : support::reference_ifmr_candidates(x, options)) {
    roundings.push_back({c.scale, c.low, c.high});
  }
  return roundings;
}

class CandidateSearchTest : public testing::TestWithParam<Distribution> {};

TEST_P(CandidateSearchTest, FindsTheFirstSmallestAmongManySamples) {
  // Sorted, few samples, and samples that are cut into chunks.
  for (const std::size_t size : {std::size_t{4000}, std::size_t{5000}, std::size_t{70000}}) {
    for (const bool with_offset : {true, false}) {
      const std::vector<float> x = support::sample(GetParam(), size, 3);
      const std::vector<Rounding> candidates = candidates_for(x, with_offset);
      const BestCandidate best = first_smallest_loss(ValueCounts::of(x), candidates);
      const double noise = support::reference_noise(x);
      std::vector<double> losses;
      for (const Rounding& c : candidates) {
        const double loss = support::reference_ifmr_loss(x, {c.scale, c.low, c.high});
        losses.push_back(loss <= noise ? 0 : loss);
      }
      const double smallest = *std::ranges::min_element(losses);
      EXPECT_LE(losses[best.index], smallest * (1 + 1e-12)) << size << " " << with_offset;
      EXPECT_NEAR(best.loss, smallest, smallest * 1e-9);
    }
  }
}

TEST_P(CandidateSearchTest, BracketsHoldTheTrueLoss) {
  const std::vector<float> x = support::sample(GetParam(), 100000, 5);
  const auto [low, high] = std::ranges::minmax(x);
  if (low == high) GTEST_SKIP() << "bins need a range";
  const ValueCounts samples = ValueCounts::of(x);
  for (const bool with_offset : {true, false}) {
    const std::vector<Rounding> candidates = candidates_for(x, with_offset);
    for (const ValueCounts& values : {samples, samples.sorted()}) {
      Rounding envelope = candidates.front();
      for (const Rounding& c : candidates) {
        envelope = {std::min(envelope.scale, c.scale), std::min(envelope.low, c.low),
                    std::max(envelope.high, c.high)};
      }
      const CoarseLosses coarse(values, envelope);
      if (!coarse.valid()) continue;
      // Brackets are of losses less one amount for all: at least that much by each one's low end,
      // at most by each one's high end.
      double amount_low = -std::numeric_limits<double>::infinity();
      double amount_high = std::numeric_limits<double>::infinity();
      for (const Rounding& c : candidates) {
        const double sum = support::reference_ifmr_loss(x, {c.scale, c.low, c.high}) *
                           static_cast<double>(x.size());
        const Bracket bracket = coarse.bracket(c, coarse.error(c));
        EXPECT_LE(coarse.rough_bracket(c, coarse.error(c)).low, bracket.low);
        EXPECT_EQ(coarse.rough_bracket(c, coarse.error(c)).high, bracket.high);
        amount_low = std::max(amount_low, sum - bracket.high);
        amount_high = std::min(amount_high, sum - bracket.low);
      }
      EXPECT_LE(amount_low, amount_high * (1 + 1e-9));
    }
  }
}

INSTANTIATE_TEST_SUITE_P(AllData, CandidateSearchTest,
                         testing::ValuesIn(support::kAllDistributions),
                         [](const auto& info) { return support::name_of(info.param); });

}  // namespace
}  // namespace amct
