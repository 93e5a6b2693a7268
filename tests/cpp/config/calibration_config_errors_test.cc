// Every way in which a configuration file can be wrong.
#include "amct/config/calibration_config.h"
#include "amct/core/error.h"
#include "amct/search/search.h"

#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "support/expect_error.h"

namespace amct {
namespace {

using support::expect_error;

void parse(const std::string& text) { parse_config(text, "c.json", algorithm_catalog()); }

/// A whole file with `settings` inside the one layer's kv_data_quant_config.
std::string with_settings(const std::string& settings) {
  return R"({"batch_num":1,"activation_offset":true,"a.k_proj":{"kv_data_quant_config":{)" +
         settings + "}}}";
}

struct BadSetting {
  const char* name;
  const char* settings;
  std::vector<std::string> parts;  // of the message, beside file and layer
};

class BadSettingTest : public testing::TestWithParam<BadSetting> {};

TEST_P(BadSettingTest, IsAValueErrorThatNamesFileLayerAndKey) {
  const std::string message = expect_error<ValueError>(
      [] { parse(with_settings(GetParam().settings)); }, {"c.json: ", "'a.k_proj'"});
  for (const std::string& part : GetParam().parts) {
    EXPECT_NE(message.find(part), std::string::npos) << "no '" << part << "' in: " << message;
  }
}

INSTANTIATE_TEST_SUITE_P(
    Settings, BadSettingTest,
    testing::Values(
        BadSetting{"AlgoNumber", R"("act_algo":1)", {"act_algo", "string", "1"}},
        BadSetting{"AlgoNull", R"("act_algo":null)", {"act_algo", "null"}},
        BadSetting{"AlgoTypo", R"("act_algo":"ifrm")", {"'ifmr', 'hfmg'", "did you mean 'ifmr'?"}},
        BadSetting{"AlgoCase", R"("act_algo":"IFMR")", {"act_algo", "IFMR"}},
        BadSetting{"AlgoEmpty", R"("act_algo":"")", {"act_algo", "\"\""}},
        BadSetting{"PercentileString", R"("max_percentile":"0.9")", {"max_percentile", "\"0.9\""}},
        BadSetting{"PercentileBool", R"("max_percentile":true)", {"max_percentile", "true"}},
        BadSetting{"PercentileNull", R"("max_percentile":null)", {"max_percentile", "null"}},
        BadSetting{"PercentileList", R"("max_percentile":[0.9])", {"max_percentile", "[0.9]"}},
        BadSetting{"PercentileLow", R"("max_percentile":0.5)", {"max_percentile", "(0.5, 1]"}},
        BadSetting{"PercentileHigh", R"("min_percentile":1.01)", {"min_percentile", "1.01"}},
        BadSetting{"PercentileNegative", R"("min_percentile":-1)", {"min_percentile", "-1.0"}},
        BadSetting{
            "PercentileInt64", R"("min_percentile":18446744073709551615)", {"min_percentile"}},
        BadSetting{"RangeNumber", R"("search_range":0.7)", {"search_range", "0.7"}},
        BadSetting{"RangeString", R"("search_range":"0.7,1.3")", {"search_range"}},
        BadSetting{"RangeOfStrings", R"("search_range":["0.7","1.3"])", {"search_range", "list"}},
        BadSetting{"RangeOfBools", R"("search_range":[true,false])", {"search_range"}},
        BadSetting{"RangeNested", R"("search_range":[[0.7,1.3]])", {"search_range"}},
        BadSetting{"RangeOne", R"("search_range":[0.7])", {"search_range", "[0.7]"}},
        BadSetting{"RangeThree", R"("search_range":[0.7,1.0,1.3])", {"search_range"}},
        BadSetting{"RangeEmpty", R"("search_range":[])", {"search_range", "[]"}},
        BadSetting{"RangeReversed", R"("search_range":[1.3,0.7])", {"search_range", "[1.3, 0.7]"}},
        BadSetting{"RangeEqual", R"("search_range":[1,1])", {"search_range"}},
        BadSetting{"RangeZero", R"("search_range":[0,1])", {"search_range"}},
        BadSetting{"StepZero", R"("search_step":0)", {"search_step", "0.0"}},
        BadSetting{"StepNegative", R"("search_step":-0.01)", {"search_step", "-0.01"}},
        BadSetting{"StepWide", R"("search_step":0.61)", {"search_step", "0.61", "[0.7, 1.3]"}},
        BadSetting{"StepString", R"("search_step":"0.01")", {"search_step"}},
        BadSetting{"StepTiny", R"("search_step":1e-300)", {"search_step", "candidates"}},
        BadSetting{"StepSubnormal", R"("search_step":5e-324)", {"search_step", "candidates"}},
        BadSetting{
            "BinsFloat", R"("act_algo":"hfmg","num_of_bins":4096.0)", {"num_of_bins", "4096.0"}},
        BadSetting{"BinsString", R"("act_algo":"hfmg","num_of_bins":"4096")", {"num_of_bins"}},
        BadSetting{"BinsBool", R"("act_algo":"hfmg","num_of_bins":true)", {"num_of_bins", "true"}},
        BadSetting{"BinsOther", R"("act_algo":"hfmg","num_of_bins":1000)", {"num_of_bins", "1000"}},
        BadSetting{
            "BinsHuge", R"("act_algo":"hfmg","num_of_bins":1e300)", {"num_of_bins", "1e+300"}},
        BadSetting{"BinsOfIfmr", R"("num_of_bins":4096)", {"num_of_bins", "'hfmg'", "'ifmr'"}},
        BadSetting{
            "StepOfHfmg", R"("act_algo":"hfmg","search_step":0.01)", {"search_step", "'ifmr'"}},
        BadSetting{"AsymmetricNumber", R"("asymmetric":1)", {"asymmetric", "true or false", "1"}},
        BadSetting{"AsymmetricString", R"("asymmetric":"true")", {"asymmetric", "\"true\""}},
        BadSetting{"AsymmetricNull", R"("asymmetric":null)", {"asymmetric", "null"}},
        BadSetting{"GranularityThree", R"("quant_granularity":3)", {"2 (per head), not 3"}},
        BadSetting{"HeadsUnknown", R"("quant_granularity":2)", {"per head needs head_num"}},
        BadSetting{"HeadsNone", R"("quant_granularity":2,"head_num":0)", {"head_num", "1 or more"}},
        BadSetting{"HeadsWord", R"("quant_granularity":2,"head_num":"4")", {"head_num", "4"}},
        BadSetting{"HeadsPerTensor", R"("head_num":2)", {"head_num is for", "per head"}},
        BadSetting{"GranularityNegative", R"("quant_granularity":-1)", {"quant_granularity", "-1"}},
        BadSetting{"GranularityFloat", R"("quant_granularity":1.0)", {"quant_granularity", "1.0"}},
        BadSetting{"GranularityBool", R"("quant_granularity":true)", {"quant_granularity", "true"}},
        BadSetting{
            "GranularityWord", R"("quant_granularity":"per_channel")", {"quant_granularity"}},
        BadSetting{"NonFiniteWord", R"("nonfinite":"ignore")", {"nonfinite", "'skip'", "ignore"}},
        BadSetting{"TapWord", R"("tap":"attention")", {"tap", "'linear' or 'cache'", "attention"}},
        BadSetting{"TapNumber", R"("tap":1)", {"tap", "'linear' or 'cache'"}},
        BadSetting{"TapWithoutRole", R"("tap":"cache")", {"tap 'cache' needs a role"}},
        BadSetting{"RoleWord", R"("role":"query")", {"role", "'key' or 'value'", "query"}},
        BadSetting{"SliceWithoutRole", R"("slice":[0,4])", {"slice needs a role"}},
        BadSetting{"SliceOfOne", R"("role":"key","slice":[4])", {"slice", "[begin, end]"}},
        BadSetting{"SliceEmpty", R"("role":"key","slice":[4,4])", {"slice", "[4.0, 4.0]"}},
        BadSetting{"SliceNegative", R"("role":"key","slice":[-1,4])", {"slice", "-1"}},
        BadSetting{"SliceFraction", R"("role":"key","slice":[0,1.5])", {"slice", "1.5"}},
        BadSetting{"SliceHuge", R"("role":"key","slice":[0,1e300])", {"slice"}},
        BadSetting{"SliceWord", R"("role":"key","slice":"0:4")", {"slice", "0:4"}},
        BadSetting{"GroupsWithoutSlice", R"("role":"key","slice_groups":2)", {"no slice"}},
        BadSetting{"GroupsZero",
                   R"("role":"key","slice":[0,4],"slice_groups":0)",
                   {"slice_groups", "1 or more", "0"}},
        BadSetting{"PositionNegative", R"("max_position":-1)", {"max_position", "0 or more"}},
        BadSetting{"PositionFraction", R"("max_position":0.5)", {"max_position", "0.5"}},
        BadSetting{"SinksNegative", R"("sink_tokens":-1)", {"sink_tokens", "0 or more"}},
        BadSetting{"WeightedWord", R"("query_weighted":1)", {"query_weighted", "true or false"}},
        BadSetting{"WeightedAtLinear", R"("query_weighted":true)", {"query_weighted", "'cache'"}},
        BadSetting{"NonFiniteBool", R"("nonfinite":true)", {"nonfinite"}},
        BadSetting{"Bits", R"("num_bits":5)", {"num_bits", "8 or 4", "5"}},
        BadSetting{"BitsFloat", R"("num_bits":8.0)", {"num_bits", "8.0"}},
        BadSetting{"Format", R"("dst_type":"FP8")", {"dst_type", "'FP8_E4M3'", "\"FP8\""}},
        BadSetting{"FormatNumber", R"("dst_type":8)", {"dst_type", "a string"}},
        BadSetting{"FormatAndBits",
                   R"("dst_type":"INT4","num_bits":8)",
                   {"num_bits 8", "contradicts", "INT4"}},
        BadSetting{"FloatWithOffset",
                   R"("dst_type":"FP8_E4M3","asymmetric":true)",
                   {"FP8_E4M3", "no offsets", "asymmetric"}},
        BadSetting{"FloatWithHfmg",
                   R"("act_algo":"hfmg","dst_type":"HIF8")",
                   {"hfmg", "evenly spread", "'mse'"}},
        BadSetting{"ClipMinNumber", R"("search_clip_min":1)", {"search_clip_min", "true or false"}},
        BadSetting{
            "ClipMinTooMany", R"("search_clip_min":true,"search_step":0.0005)", {"1,000,000"}},
        BadSetting{"UnknownNear", R"("max_percentil":0.9)", {"did you mean 'max_percentile'?"}},
        BadSetting{"UnknownFar", R"("colour":"red")", {"unknown key 'colour'"}},
        BadSetting{"UnknownObject", R"("tap":{"a":1})", {"tap", "object"}},
        BadSetting{"OperatorsKey", R"("with_offset":true)", {"with_offset"}},
        BadSetting{"BatchNumInside", R"("batch_num":1)", {"batch_num"}}),
    [](const auto& param) { return std::string(param.param.name); });

TEST(ConfigErrorTest, BatchNum) {
  for (const char* value : {"0", "-1", "1.0", "1e0", "\"1\"", "true", "null", "[1]", "{}",
                            "4294967296", "18446744073709551616", "-9223372036854775808"}) {
    const std::string text =
        R"({"batch_num":)" + std::string(value) + R"(,"a":{"kv_data_quant_config":{}}})";
    expect_error<ValueError>([&] { parse(text); }, {"c.json", "batch_num"});
  }
  const CalibrationConfig config = parse_config(
      R"({"batch_num":4294967295,"a":{"kv_data_quant_config":{}}})", "c.json", algorithm_catalog());
  EXPECT_EQ(config.batch_num, 4294967295);
}

TEST(ConfigErrorTest, ActivationOffset) {
  for (const char* value : {"0", "1", "\"true\"", "null", "[]", "1.5"}) {
    const std::string text =
        R"({"activation_offset":)" + std::string(value) + R"(,"a":{"kv_data_quant_config":{}}})";
    expect_error<ValueError>([&] { parse(text); }, {"c.json", "activation_offset", value});
  }
}

TEST(ConfigErrorTest, TopLevel) {
  expect_error<ValueError>([] { parse("{}"); }, {"c.json", "no layer"});
  expect_error<ValueError>([] { parse(R"({"batch_num":1})"); }, {"c.json", "no layer"});
  expect_error<ValueError>([] { parse("[]"); }, {"c.json", "object", "array"});
  expect_error<ValueError>([] { parse("1"); }, {"c.json", "object", "number"});
  expect_error<ValueError>([] { parse("null"); }, {"c.json", "object", "null"});
  expect_error<ValueError>([] { parse("\"text\""); }, {"c.json", "object", "string"});
  expect_error<ValueError>([] { parse(R"({"batchnum":1})"); },
                           {"c.json", "'batchnum'", "did you mean 'batch_num'?"});
  expect_error<ValueError>([] { parse(R"({"a":1})"); }, {"c.json", "'a'"});
  expect_error<ValueError>([] { parse(R"({"a":null})"); }, {"c.json", "'a'"});
}

TEST(ConfigErrorTest, LayerObject) {
  expect_error<ValueError>([] { parse(R"({"a":{}})"); },
                           {"c.json", "'a'", "kv_data_quant_config", "missing"});
  expect_error<ValueError>([] { parse(R"({"a":{"kv_data_quant_config":1}})"); },
                           {"c.json", "'a'", "kv_data_quant_config", "number"});
  expect_error<ValueError>([] { parse(R"({"a":{"kv_data_quant_config":[]}})"); },
                           {"c.json", "'a'", "array"});
  expect_error<ValueError>([] { parse(R"({"a":{"kv_data_quant_config":{},"more":1}})"); },
                           {"c.json", "'a'", "'more'"});
}

TEST(ConfigErrorTest, DuplicateKeysOnEveryLevel) {
  expect_error<ValueError>(
      [] { parse(R"({"batch_num":1,"batch_num":1,"a":{"kv_data_quant_config":{}}})"); },
      {"c.json", "'batch_num'", "twice"});
  expect_error<ValueError>(
      [] { parse(R"({"a":{"kv_data_quant_config":{}},"a":{"kv_data_quant_config":{}}})"); },
      {"c.json", "'a'", "twice"});
  expect_error<ValueError>(
      [] { parse(R"({"a":{"kv_data_quant_config":{},"kv_data_quant_config":{}}})"); },
      {"c.json", "'kv_data_quant_config'", "twice"});
  expect_error<ValueError>([] { parse(with_settings(R"("asymmetric":true,"asymmetric":true)")); },
                           {"c.json", "'asymmetric'", "twice"});
  // An escape does not hide a duplicate.
  expect_error<ValueError>(
      [] { parse(R"({"a":{"kv_data_quant_config":{}},"\u0061":{"kv_data_quant_config":{}}})"); },
      {"'a'", "twice"});
  // The same key in different objects is none.
  EXPECT_NO_THROW(parse(R"({"a":{"kv_data_quant_config":{}},"b":{"kv_data_quant_config":{}}})"));
}

TEST(ConfigErrorTest, EmptyText) {
  for (const char* text : {"", " ", "\n\t\r\n"}) {
    expect_error<ValueError>([&] { parse(text); }, {"c.json", "empty"});
  }
}

TEST(ConfigErrorTest, EveryTruncationOfAFileIsRefused) {
  const std::string whole = with_settings(R"("search_range":[0.7,1.3],"act_algo":"ifmr")");
  parse(whole);
  for (std::size_t length = 1; length < whole.size(); ++length) {
    SCOPED_TRACE(length);
    expect_error<ValueError>([&] { parse(whole.substr(0, length)); }, {"c.json: not JSON", "line"});
  }
}

TEST(ConfigErrorTest, NotJson) {
  for (const char* text : {"{'a':1}", "{\"a\":1,}", "{\"a\":01}", "{\"a\":NaN}", "{\"a\":Infinity}",
                           "{\"a\":.5}", "{\"a\":+1}", "{} {}", "// comment\n{}", "{\"a\" 1}",
                           "{\"a\":\"\t\"}", "{\"a\":\"\\x\"}", "{\"a\":\"\\ud800\"}", "yaml: 1"}) {
    SCOPED_TRACE(text);
    expect_error<ValueError>([&] { parse(text); }, {"c.json: not JSON"});
  }
}

TEST(ConfigErrorTest, BytesThatAreNoText) {
  for (const std::string& bytes :
       {std::string("{\"\xFF\":1}"), std::string("{\"a\xC0\x80\":1}"),
        std::string("\xFF\xFE{\0}\0", 6), std::string("{\"a\0b\":1}", 9), std::string(64, '\0')}) {
    expect_error<ValueError>([&] { parse(bytes); }, {"c.json"});
  }
}

TEST(ConfigErrorTest, NumbersThatNoDoubleHolds) {
  for (const char* number : {"1e999", "-1e999", "1e400"}) {
    expect_error<ValueError>(
        [&] { parse(with_settings("\"search_step\":" + std::string(number))); }, {"c.json"});
  }
  // One too small for a double is zero, and no step.
  expect_error<ValueError>([] { parse(with_settings(R"("search_step":1e-999)")); },
                           {"search_step"});
  // An integer of many digits is a double.
  expect_error<ValueError>(
      [] { parse(with_settings(R"("search_step":)" + std::string(300, '9'))); }, {"search_step"});
}

TEST(ConfigErrorTest, DeepNestingIsRefusedAndNotFollowed) {
  const std::size_t deep = 2000000;
  expect_error<ValueError>([&] { parse(std::string(deep, '[')); }, {"c.json", "deep"});
  std::string objects;
  for (int i = 0; i < 100000; ++i) objects += "{\"a\":";
  expect_error<ValueError>([&] { parse(objects); }, {"c.json", "deep"});
  expect_error<ValueError>(
      [&] { parse(R"({"a":)" + std::string(deep, '[') + std::string(deep, ']') + "}"); },
      {"c.json", "deep"});
}

TEST(ConfigErrorTest, ManyLayersAreNoProblem) {
  std::string text = R"({"batch_num":1)";
  for (int i = 0; i < 5000; ++i) {
    text += ",\"model.layers." + std::to_string(i) + R"(.k":{"kv_data_quant_config":{}})";
  }
  const CalibrationConfig config = parse_config(text + "}", "c.json", algorithm_catalog());
  ASSERT_EQ(config.layers.size(), 5000U);
  EXPECT_EQ(config.layers[4321].name, "model.layers.4321.k");
}

}  // namespace
}  // namespace amct
