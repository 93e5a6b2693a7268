#include "amct/core/options.h"

#include <cmath>
#include <string>
#include <vector>

#include <gtest/gtest.h>

namespace amct {
namespace {

OptionSpec positive_float() {
  return {"step",
          0.5,
          "a float > 0",
          [](const OptionValue& v) { return std::get<double>(v) > 0; },
          {"step"}};
}

OptionSpec small_integer() {
  return {"bins",
          std::int64_t{4},
          "an int below 10",
          [](const OptionValue& v) { return std::get<std::int64_t>(v) < 10; },
          {"bins"}};
}

TEST(CheckOptionTest, AcceptsAValueInRange) {
  OptionValue value = 0.25;
  EXPECT_EQ(check_option(positive_float(), value).kind, OptionProblem::Kind::kNone);
  EXPECT_EQ(std::get<double>(value), 0.25);
}

TEST(CheckOptionTest, TurnsAnIntegerIntoTheWantedFloat) {
  OptionValue value = std::int64_t{2};
  EXPECT_EQ(check_option(positive_float(), value).kind, OptionProblem::Kind::kNone);
  ASSERT_TRUE(std::holds_alternative<double>(value));
  EXPECT_EQ(std::get<double>(value), 2.0);
}

TEST(CheckOptionTest, NeverTakesABoolForANumber) {
  OptionValue value = true;
  EXPECT_EQ(check_option(positive_float(), value).kind, OptionProblem::Kind::kType);
  EXPECT_EQ(check_option(small_integer(), value).kind, OptionProblem::Kind::kType);
}

TEST(CheckOptionTest, NeverTakesAFloatForAnInteger) {
  OptionValue value = 4.0;
  const OptionProblem problem = check_option(small_integer(), value);
  EXPECT_EQ(problem.kind, OptionProblem::Kind::kType);
  EXPECT_EQ(problem.message, "bins must be an int below 10, not 4.0");
}

TEST(CheckOptionTest, SaysWhatIsAllowedAndWhatWasGiven) {
  OptionValue value = -1.0;
  const OptionProblem range = check_option(positive_float(), value);
  EXPECT_EQ(range.kind, OptionProblem::Kind::kRange);
  EXPECT_EQ(range.message, "step must be a float > 0, not -1.0");
  value = std::string("big");
  const OptionProblem type = check_option(positive_float(), value);
  EXPECT_EQ(type.kind, OptionProblem::Kind::kType);
  EXPECT_EQ(type.message, "step must be a float > 0, not \"big\"");
}

TEST(OptionTextTest, WritesEveryKindOfValue) {
  EXPECT_EQ(to_string(OptionValue(true)), "true");
  EXPECT_EQ(to_string(OptionValue(false)), "false");
  EXPECT_EQ(to_string(OptionValue(std::int64_t{-3})), "-3");
  EXPECT_EQ(to_string(OptionValue(0.7)), "0.7");
  EXPECT_EQ(to_string(OptionValue(std::string("a"))), "\"a\"");
  EXPECT_EQ(to_string(OptionValue(std::vector<double>{0.7, 1.0})), "[0.7, 1.0]");
  EXPECT_EQ(to_string(OptionValue(std::vector<double>{})), "[]");
}

TEST(AlgorithmSpecTest, FindsOptionsAndCompletesDefaults) {
  const AlgorithmSpec spec{.name = "x", .options = {positive_float(), small_integer()}};
  ASSERT_NE(spec.find("bins"), nullptr);
  EXPECT_EQ(spec.find("bins")->key, "bins");
  EXPECT_EQ(spec.find("bin"), nullptr);
  const OptionMap defaults = spec.defaults();
  EXPECT_EQ(defaults.size(), 2U);
  EXPECT_EQ(std::get<double>(defaults.at("step")), 0.5);
  EXPECT_EQ(std::get<std::int64_t>(defaults.at("bins")), 4);
  EXPECT_EQ(spec.conflict(defaults), "");
  const AlgorithmCatalog catalog{spec};
  EXPECT_EQ(find_spec(catalog, "x"), &catalog[0]);
  EXPECT_EQ(find_spec(catalog, "X"), nullptr);
}

TEST(ClosestMatchTest, FindsTheNearestByEditDistance) {
  const std::vector<std::string> words{"max_percentile", "min_percentile", "search_step"};
  EXPECT_EQ(closest_match("max_percentil", words), "max_percentile");
  EXPECT_EQ(closest_match("min_percentle", words), "min_percentile");
  EXPECT_EQ(closest_match("searchstep", words), "search_step");
  EXPECT_EQ(closest_match("colour", words), "");
  EXPECT_EQ(closest_match("", words), "");
  EXPECT_EQ(closest_match("x", {}), "");
}

TEST(ClosestMatchTest, ToleratesAThirdOfTheLettersAndNoMore) {
  const std::vector<std::string> words{"abcdefghi"};
  EXPECT_EQ(closest_match("abcdefxyz", words), "abcdefghi");  // 3 of 9
  EXPECT_EQ(closest_match("abcdewxyz", words), "");           // 4 of 9
}

TEST(ClosestMatchTest, StaysFastOnHostileNames) {
  const std::string huge(1 << 20, 'a');
  const std::vector<std::string> words{huge, "short"};
  EXPECT_EQ(closest_match(huge, words), "");
  EXPECT_EQ(closest_match("shor", words), "short");
}

TEST(SuggestionTest, IsASentenceOrNothing) {
  const std::vector<std::string> words{"ifmr", "hfmg"};
  EXPECT_EQ(suggestion("ifm", words), "; did you mean 'ifmr'?");
  EXPECT_EQ(suggestion("kl-divergence", words), "");
}

}  // namespace
}  // namespace amct
