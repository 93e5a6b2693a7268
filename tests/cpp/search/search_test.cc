#include "amct/search/search.h"

#include "amct/core/error.h"
#include "amct/search/hfmg.h"
#include "amct/search/ifmr.h"
#include "amct/search/kl.h"
#include "amct/search/minmax.h"

#include <cmath>
#include <set>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "support/data.h"
#include "support/expect_error.h"

namespace amct {
namespace {

OptionProblem::Kind check(const char* algorithm, const char* key, OptionValue value) {
  return check_option(*find_algorithm(algorithm)->spec.find(key), value).kind;
}

std::string conflict(const OptionMap& options) {
  return find_algorithm("ifmr")->spec.conflict(options);
}

TEST(RegistryTest, IfmrIsTheDefaultAndNamesAreUnique) {
  ASSERT_FALSE(algorithms().empty());
  EXPECT_EQ(algorithms()[0].spec.name, "ifmr");
  std::set<std::string> names;
  for (const Algorithm& algorithm : algorithms()) {
    EXPECT_TRUE(names.insert(algorithm.spec.name).second) << algorithm.spec.name;
    EXPECT_EQ(find_algorithm(algorithm.spec.name), &algorithm);
  }
  EXPECT_EQ(find_algorithm("IFMR"), nullptr);
  EXPECT_EQ(find_algorithm(""), nullptr);
  ASSERT_EQ(algorithm_catalog().size(), algorithms().size());
  for (std::size_t i = 0; i < algorithms().size(); ++i) {
    EXPECT_EQ(algorithm_catalog()[i].name, algorithms()[i].spec.name);
  }
}

TEST(RegistryTest, DefaultsAreAcceptedAndDoNotConflict) {
  for (const Algorithm& algorithm : algorithms()) {
    for (const OptionSpec& option : algorithm.spec.options) {
      OptionValue value = option.default_value;
      EXPECT_EQ(check_option(option, value).kind, OptionProblem::Kind::kNone) << option.key;
    }
    EXPECT_EQ(algorithm.spec.conflict(algorithm.spec.defaults()), "");
  }
}

TEST(RegistryTest, DefaultsGiveWhatTheFunctionsGive) {
  const ValueCounts values =
      ValueCounts::of(support::sample(support::Distribution::kHeavyTailed, 3000, 1));
  for (const bool with_offset : {true, false}) {
    const auto by_name = [&](const char* name) {
      const Algorithm& algorithm = *find_algorithm(name);
      return algorithm.search(values, {kInt8, with_offset}, algorithm.spec.defaults()).params;
    };
    EXPECT_EQ(by_name("ifmr"), ifmr(values, {.with_offset = with_offset}).params);
    EXPECT_EQ(by_name("hfmg"), hfmg(values, {.with_offset = with_offset}).params);
    EXPECT_EQ(by_name("minmax"), minmax(values, {.with_offset = with_offset}).params);
    EXPECT_EQ(by_name("kl"), kl(values, {.with_offset = with_offset}).params);
  }
}

TEST(RegistryTest, SettingsReachTheSearch) {
  const ValueCounts values =
      ValueCounts::of(support::sample(support::Distribution::kHeavyTailed, 3000, 2));
  const Algorithm& algorithm = *find_algorithm("ifmr");
  OptionMap options = algorithm.spec.defaults();
  options["max_percentile"] = 0.9;
  options["min_percentile"] = 0.8;
  options["search_range"] = std::vector<double>{0.5, 2.0};
  options["search_step"] = 0.1;
  options["search_clip_min"] = true;
  EXPECT_EQ(algorithm.search(values, {kInt4, true}, options).params,
            ifmr(values, {true, 0.9, 0.8, 0.5, 2.0, 0.1, true, kInt4}).params);
  OptionMap bins = find_algorithm("hfmg")->spec.defaults();
  bins["num_of_bins"] = std::int64_t{1024};
  EXPECT_EQ(find_algorithm("hfmg")->search(values, {kInt8, false}, bins).params,
            hfmg(values, {.with_offset = false, .num_of_bins = 1024}).params);
}

TEST(RegistryTest, TheGridReachesEverySearch) {
  const ValueCounts values =
      ValueCounts::of(support::sample(support::Distribution::kNormal, 3000, 3));
  for (const Algorithm& algorithm : algorithms()) {
    const OptionMap options = algorithm.spec.defaults();
    const auto scale = [&](const Grid& grid) {
      return algorithm.search(values, {grid, false}, options).params.scale;
    };
    EXPECT_GT(scale(kInt4), 4 * scale(kInt8)) << algorithm.spec.name;
    if (algorithm.spec.integer_grids_only) continue;
    EXPECT_LT(scale(kFp8E4M3), scale(kInt8)) << algorithm.spec.name;
    EXPECT_LT(scale(kFp8E5M2), scale(kFp8E4M3)) << algorithm.spec.name;
    if (algorithm.search_range == nullptr) continue;
    EXPECT_EQ(
        algorithm.search_range(values.min(), values.max(), {kInt4, false}, options).params.scale,
        scale(kInt4));
  }
}

TEST(RegistryTest, EveryAlgorithmRefusesNoValues) {
  for (const Algorithm& algorithm : algorithms()) {
    support::expect_error<StateError>(
        [&] { algorithm.search(ValueCounts(), {}, algorithm.spec.defaults()); },
        {"no finite value"});
  }
}

TEST(OptionRangesTest, AreTheDocumentedOnes) {
  const auto kNone = OptionProblem::Kind::kNone;
  const auto kRange = OptionProblem::Kind::kRange;
  const auto kType = OptionProblem::Kind::kType;
  for (const char* key : {"max_percentile", "min_percentile"}) {
    EXPECT_EQ(check("ifmr", key, 1.0), kNone);
    EXPECT_EQ(check("ifmr", key, std::int64_t{1}), kNone);
    EXPECT_EQ(check("ifmr", key, 0.5000001), kNone);
    EXPECT_EQ(check("ifmr", key, 0.5), kRange);
    EXPECT_EQ(check("ifmr", key, 1.0000001), kRange);
    EXPECT_EQ(check("ifmr", key, std::nan("")), kRange);
    EXPECT_EQ(check("ifmr", key, true), kType);
  }
  using List = std::vector<double>;
  EXPECT_EQ(check("ifmr", "search_range", List{0.1, 0.2}), kNone);
  EXPECT_EQ(check("ifmr", "search_range", List{0.0, 1.0}), kRange);
  EXPECT_EQ(check("ifmr", "search_range", List{-1.0, 1.0}), kRange);
  EXPECT_EQ(check("ifmr", "search_range", List{1.0, 1.0}), kRange);
  EXPECT_EQ(check("ifmr", "search_range", List{1.0}), kRange);
  EXPECT_EQ(check("ifmr", "search_range", List{}), kRange);
  EXPECT_EQ(check("ifmr", "search_range", List{0.1, 0.2, 0.3}), kRange);
  EXPECT_EQ(check("ifmr", "search_range", List{0.1, HUGE_VAL}), kRange);
  EXPECT_EQ(check("ifmr", "search_range", List{std::nan(""), 1.0}), kRange);
  EXPECT_EQ(check("ifmr", "search_range", 1.0), kType);
  EXPECT_EQ(check("ifmr", "search_step", 0.0), kRange);
  EXPECT_EQ(check("ifmr", "search_step", -0.1), kRange);
  EXPECT_EQ(check("ifmr", "search_step", std::nan("")), kRange);
  for (const std::int64_t bins : {1024, 2048, 4096, 8192}) {
    EXPECT_EQ(check("hfmg", "num_of_bins", bins), kNone);
  }
  for (const std::int64_t bins : {0, -1, 1000, 1023, 4097, 16384}) {
    EXPECT_EQ(check("hfmg", "num_of_bins", bins), kRange);
  }
  EXPECT_EQ(check("hfmg", "num_of_bins", 4096.0), kType);
}

TEST(OptionRangesTest, StepMustFitTheRange) {
  OptionMap options = find_algorithm("ifmr")->spec.defaults();
  options["search_range"] = std::vector<double>{0.5, 1.0};
  options["search_step"] = 0.5;
  EXPECT_EQ(conflict(options), "");
  options["search_step"] = 0.6;
  EXPECT_NE(conflict(options).find("search_step"), std::string::npos);
  EXPECT_NE(conflict(options).find("0.6"), std::string::npos);
  options["search_range"] = std::vector<double>{0.7, 1.3};  // the product of which is more than 0.7
  options["search_step"] = 0.7;
  EXPECT_NE(conflict(options).find("spans"), std::string::npos);
  options["search_step"] = 1e-12;
  EXPECT_NE(conflict(options).find("1,000,000"), std::string::npos);
  options["search_step"] = HUGE_VAL;
  EXPECT_NE(conflict(options), "");
}

}  // namespace
}  // namespace amct
