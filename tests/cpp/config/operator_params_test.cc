#include "amct/config/operator_params.h"

#include "amct/core/error.h"
#include "amct/search/search.h"

#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "support/expect_error.h"

namespace amct {
namespace {

using support::expect_error;
using Params = std::vector<std::pair<std::string, OptionValue>>;
using List = std::vector<double>;

OperatorParams parse(const Params& params) {
  return parse_operator_params(params, algorithm_catalog());
}

OptionValue text(const char* value) { return std::string(value); }
OptionValue integer(std::int64_t value) { return value; }

TEST(OperatorParamsTest, NothingGivenIsAllDefaults) {
  const OperatorParams params = parse({});
  EXPECT_EQ(params.batch_num, 1);
  EXPECT_EQ(params.layer.algorithm, "ifmr");
  EXPECT_EQ(params.layer.options, find_algorithm("ifmr")->spec.defaults());
  EXPECT_EQ(params.layer.asymmetric, true);
  EXPECT_EQ(params.layer.granularity, Granularity::kPerTensor);
  EXPECT_EQ(params.layer.nonfinite, NonFinitePolicy::kRaise);
}

TEST(OperatorParamsTest, EveryParameterIsRead) {
  const OperatorParams params = parse({{"act_algo", text("ifmr")},
                                       {"num_bits", integer(8)},
                                       {"batch_num", integer(4)},
                                       {"asymmetric", false},
                                       {"quant_granularity", text("per_channel")},
                                       {"max_percentile", 0.75},
                                       {"min_percentile", integer(1)},
                                       {"search_range", List{0.5, 1.5}},
                                       {"search_step", 0.5},
                                       {"nonfinite", text("skip")}});
  EXPECT_EQ(params.batch_num, 4);
  EXPECT_EQ(params.layer.asymmetric, false);
  EXPECT_EQ(params.layer.granularity, Granularity::kPerChannel);
  EXPECT_EQ(std::get<double>(params.layer.options.at("max_percentile")), 0.75);
  EXPECT_EQ(std::get<double>(params.layer.options.at("min_percentile")), 1.0);
  EXPECT_EQ(std::get<List>(params.layer.options.at("search_range")), (List{0.5, 1.5}));
  EXPECT_EQ(std::get<double>(params.layer.options.at("search_step")), 0.5);
  EXPECT_EQ(params.layer.nonfinite, NonFinitePolicy::kSkip);
  const OperatorParams hfmg =
      parse({{"num_of_bins", integer(2048)}, {"act_algo", text("hfmg")}});  // in any order
  EXPECT_EQ(hfmg.layer.algorithm, "hfmg");
  EXPECT_EQ(std::get<std::int64_t>(hfmg.layer.options.at("num_of_bins")), 2048);
}

TEST(OperatorParamsTest, AsymmetricWinsOverWithOffset) {
  EXPECT_EQ(parse({{"with_offset", false}}).layer.asymmetric, false);
  EXPECT_EQ(parse({{"with_offset", true}}).layer.asymmetric, true);
  EXPECT_EQ(parse({{"with_offset", false}, {"asymmetric", true}}).layer.asymmetric, true);
  EXPECT_EQ(parse({{"asymmetric", false}, {"with_offset", true}}).layer.asymmetric, false);
}

TEST(OperatorParamsTest, BothSpellingsOfTheGranularity) {
  EXPECT_EQ(parse({{"quant_granularity", text("0")}}).layer.granularity, Granularity::kPerTensor);
  EXPECT_EQ(parse({{"quant_granularity", text("1")}}).layer.granularity, Granularity::kPerChannel);
  EXPECT_EQ(parse({{"quant_granularity", text("per_tensor")}}).layer.granularity,
            Granularity::kPerTensor);
}

TEST(OperatorParamsTest, FloatFormatsHaveNoOffset) {
  EXPECT_EQ(parse({{"num_bits", integer(4)}}).layer.grid, kInt4);
  const OperatorParams params = parse({{"dst_type", text("FP8_E4M3")}});
  EXPECT_EQ(params.layer.grid, kFp8E4M3);
  EXPECT_EQ(params.layer.asymmetric, false);
  EXPECT_EQ(parse({{"num_bits", integer(4)}}).layer.asymmetric, true);
  for (const char* key : {"with_offset", "asymmetric"}) {
    expect_error<StateError>([&] { parse({{"dst_type", text("FP8_E4M3")}, {key, true}}); },
                             {"FP8_E4M3", "no offsets", key});
  }
}

TEST(OperatorParamsErrorTest, AWrongTypeIsATypeErrorThatNamesTheKey) {
  const std::vector<std::pair<std::string, OptionValue>> wrong{
      {"act_algo", integer(1)},
      {"act_algo", true},
      {"num_bits", 8.0},
      {"num_bits", text("8")},
      {"num_bits", true},
      {"batch_num", 1.0},
      {"batch_num", true},
      {"batch_num", text("1")},
      {"asymmetric", integer(1)},
      {"asymmetric", text("true")},
      {"with_offset", integer(0)},
      {"with_offset", 1.0},
      {"quant_granularity", integer(0)},
      {"quant_granularity", true},
      {"max_percentile", text("0.9")},
      {"max_percentile", true},
      {"min_percentile", List{0.9}},
      {"search_range", 0.7},
      {"search_range", text("0.7")},
      {"search_step", true},
      {"search_step", List{}},
      {"nonfinite", true},
  };
  for (const auto& [key, value] : wrong) {
    SCOPED_TRACE(key + " = " + to_string(value));
    expect_error<TypeError>([&] { parse({{key, value}}); }, {"quant_algo_params", key});
  }
  expect_error<TypeError>([] { parse({{"act_algo", text("hfmg")}, {"num_of_bins", 4096.0}}); },
                          {"num_of_bins", "4096.0"});
}

TEST(OperatorParamsErrorTest, AValueOutOfRangeIsAStateErrorThatNamesTheKey) {
  const std::vector<std::pair<std::string, OptionValue>> wrong{
      {"act_algo", text("magic")},
      {"num_bits", integer(5)},
      {"dst_type", text("INT5")},
      {"batch_num", integer(0)},
      {"batch_num", integer(-1)},
      {"quant_granularity", text("2")},
      {"quant_granularity", text("per_head")},
      {"max_percentile", 0.5},
      {"min_percentile", integer(2)},
      {"search_range", List{1.3, 0.7}},
      {"search_range", List{0.7}},
      {"search_step", 0.0},
      {"search_step", 0.7},
      {"nonfinite", text("maybe")},
  };
  for (const auto& [key, value] : wrong) {
    SCOPED_TRACE(key + " = " + to_string(value));
    expect_error<StateError>([&] { parse({{key, value}}); }, {"quant_algo_params", key});
  }
  expect_error<StateError>(
      [] { parse({{"act_algo", text("hfmg")}, {"num_of_bins", integer(1000)}}); },
      {"num_of_bins", "1000"});
}

TEST(OperatorParamsErrorTest, UnknownKeysAndKeysOfAnotherAlgorithm) {
  expect_error<StateError>([] { parse({{"num_of_bins", integer(4096)}}); },
                           {"num_of_bins", "'hfmg'", "'ifmr'"});
  expect_error<StateError>([] { parse({{"act_algo", text("hfmg")}, {"search_step", 0.01}}); },
                           {"search_step", "'ifmr'", "'hfmg'"});
  expect_error<StateError>([] { parse({{"batchnum", integer(1)}}); },
                           {"batchnum", "did you mean 'batch_num'?"});
  expect_error<StateError>([] { parse({{"with_ofset", true}}); }, {"did you mean 'with_offset'?"});
  expect_error<StateError>([] { parse({{"nonsense", true}}); }, {"unknown key 'nonsense'"});
  expect_error<StateError>([] { parse({{"slice", List{0, 1}}}); }, {"slice", "configuration file"});
}

}  // namespace
}  // namespace amct
