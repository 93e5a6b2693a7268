#include "amct/config/calibration_config.h"

#include "amct/core/error.h"
#include "amct/search/search.h"

#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "support/expect_error.h"
#include "support/files.h"

namespace amct {
namespace {

using support::expect_error;

CalibrationConfig parse(const std::string& text) {
  return parse_config(text, "c.json", algorithm_catalog());
}

std::string one_layer(const std::string& settings) {
  return R"({"a.k_proj":{"kv_data_quant_config":{)" + settings + "}}}";
}

TEST(CalibrationConfigTest, DefaultsAreThoseOfTheFirstAlgorithm) {
  const std::vector<std::string> names{"b", "a"};
  const CalibrationConfig config = default_config(names, algorithm_catalog());
  EXPECT_EQ(config.batch_num, 1);
  EXPECT_TRUE(config.activation_offset);
  ASSERT_EQ(config.layers.size(), 2U);
  EXPECT_EQ(config.layers[0].name, "b");
  EXPECT_EQ(config.layers[1].name, "a");
  for (const LayerConfig& layer : config.layers) {
    EXPECT_EQ(layer.algorithm, "ifmr");
    EXPECT_EQ(layer.options, algorithm_catalog()[0].defaults());
    EXPECT_FALSE(layer.asymmetric.has_value());
    EXPECT_EQ(layer.granularity, Granularity::kPerTensor);
    EXPECT_EQ(layer.nonfinite, NonFinitePolicy::kRaise);
  }
}

TEST(CalibrationConfigTest, AbsentSettingsTakeTheirDefaults) {
  const CalibrationConfig config = parse(one_layer(""));
  const std::vector<std::string> names{"a.k_proj"};
  EXPECT_EQ(config, default_config(names, algorithm_catalog()));
}

TEST(CalibrationConfigTest, ThePlaceOfALayerIsReadAndWrittenBack) {
  const std::string text = R"({
    "batch_num":1,
    "activation_offset":true,
    "c_attn.key":{
        "kv_data_quant_config":{
            "act_algo":"minmax",
            "quant_granularity":1,
            "tap":"cache",
            "role":"key",
            "slice":[
                64,
                128
            ],
            "slice_groups":4,
            "max_position":4096,
            "sink_tokens":4,
            "query_weighted":true
        }
    },
    "c_attn.value":{
        "kv_data_quant_config":{
            "act_algo":"minmax",
            "quant_granularity":0,
            "role":"value",
            "slice":[
                128,
                192
            ]
        }
    }
})";
  const CalibrationConfig config = parse(text);
  EXPECT_EQ(to_json(config, algorithm_catalog()), text);
  const LayerConfig& key = config.layers.at(0);
  EXPECT_EQ(key.tap, Tap::kCache);
  EXPECT_EQ(key.role, KVRole::kKey);
  EXPECT_EQ(key.slice, (ChannelSlice{64, 128, 4}));
  EXPECT_EQ(key.max_position, 4096);
  EXPECT_EQ(key.sink_tokens, 4);
  EXPECT_TRUE(key.weighs_channels());
  const LayerConfig& value = config.layers.at(1);
  EXPECT_EQ(value.tap, Tap::kLinear);
  EXPECT_EQ(value.role, KVRole::kValue);
  EXPECT_EQ(value.slice, (ChannelSlice{128, 192, 1}));
  EXPECT_EQ(value.max_position, std::nullopt);
  EXPECT_EQ(value.sink_tokens, 0);
  EXPECT_FALSE(value.query_weighted);
}

TEST(CalibrationConfigTest, HeadsAreReadAndWrittenBack) {
  const std::string text = R"({
    "batch_num":1,
    "activation_offset":true,
    "k":{
        "kv_data_quant_config":{
            "act_algo":"minmax",
            "quant_granularity":2,
            "head_num":8
        }
    }
})";
  const CalibrationConfig config = parse(text);
  EXPECT_EQ(to_json(config, algorithm_catalog()), text);
  EXPECT_EQ(config.layers.at(0).granularity, Granularity::kPerHead);
  EXPECT_EQ(config.layers.at(0).head_num, 8);
}

TEST(CalibrationConfigTest, EverySettingIsReadAndWrittenBack) {
  const std::string text = R"({
    "batch_num":7,
    "activation_offset":false,
    "x":{
        "kv_data_quant_config":{
            "act_algo":"ifmr",
            "max_percentile":0.75,
            "min_percentile":1.0,
            "search_range":[
                0.5,
                2.0
            ],
            "search_step":0.25,
            "asymmetric":true,
            "quant_granularity":1,
            "nonfinite":"skip"
        }
    },
    "y":{
        "kv_data_quant_config":{
            "act_algo":"hfmg",
            "num_of_bins":8192,
            "asymmetric":false,
            "quant_granularity":0
        }
    },
    "z":{
        "kv_data_quant_config":{
            "act_algo":"minmax",
            "quant_granularity":1
        }
    }
})";
  const CalibrationConfig config = parse(text);
  EXPECT_EQ(config.batch_num, 7);
  EXPECT_FALSE(config.activation_offset);
  ASSERT_EQ(config.layers.size(), 3U);
  const LayerConfig& x = config.layers[0];
  EXPECT_EQ(x.name, "x");
  EXPECT_EQ(std::get<double>(x.options.at("max_percentile")), 0.75);
  EXPECT_EQ(std::get<double>(x.options.at("min_percentile")), 1.0);
  EXPECT_EQ(std::get<std::vector<double>>(x.options.at("search_range")),
            (std::vector<double>{0.5, 2.0}));
  EXPECT_EQ(std::get<double>(x.options.at("search_step")), 0.25);
  EXPECT_EQ(x.asymmetric, true);
  EXPECT_EQ(x.granularity, Granularity::kPerChannel);
  EXPECT_EQ(x.nonfinite, NonFinitePolicy::kSkip);
  EXPECT_EQ(config.layers[1].algorithm, "hfmg");
  EXPECT_EQ(std::get<std::int64_t>(config.layers[1].options.at("num_of_bins")), 8192);
  EXPECT_EQ(config.layers[1].asymmetric, false);
  EXPECT_EQ(config.layers[2].algorithm, "minmax");
  EXPECT_TRUE(config.layers[2].options.empty());
  EXPECT_TRUE(config.with_offset(config.layers[0]));
  EXPECT_FALSE(config.with_offset(config.layers[1]));
  EXPECT_FALSE(config.with_offset(config.layers[2]));  // activation_offset decides
  EXPECT_EQ(to_json(config, algorithm_catalog()), text);
}

TEST(CalibrationConfigTest, KeyOrderAndWhiteSpaceOfTheInputDoNotMatter) {
  const CalibrationConfig a = parse(
      R"({"b":{"kv_data_quant_config":{"quant_granularity":1,"act_algo":"hfmg","num_of_bins":1024}},)"
      R"("activation_offset":false,"a":{"kv_data_quant_config":{}},"batch_num":2})");
  ASSERT_EQ(a.layers.size(), 2U);
  EXPECT_EQ(a.layers[0].name, "b");  // layers keep their order
  EXPECT_EQ(a.layers[1].name, "a");
  EXPECT_EQ(parse("\xEF\xBB\xBF  \r\n" + to_json(a, algorithm_catalog()) + "\t\n"), a);
}

TEST(CalibrationConfigTest, IntegersStandForFloats) {
  const CalibrationConfig config =
      parse(one_layer(R"("max_percentile":1,"search_range":[1,3],"search_step":2)"));
  const OptionMap& options = config.layers[0].options;
  EXPECT_EQ(std::get<double>(options.at("max_percentile")), 1.0);
  EXPECT_EQ(std::get<double>(options.at("search_step")), 2.0);
  const std::string text = to_json(config, algorithm_catalog());
  EXPECT_NE(text.find("\"search_step\":2.0,"), std::string::npos) << text;
  EXPECT_NE(text.find("                1.0,\n                3.0\n"), std::string::npos) << text;
}

TEST(CalibrationConfigTest, FloatsAreWrittenAsTheShortestDecimal) {
  const std::vector<std::pair<std::string, std::string>> cases{
      {"0.01", "0.01"},
      {"1e-2", "0.01"},
      {"0.0100000000000000002", "0.01"},
      {"0.00001", "1e-05"},
      {"0.1234567890123456", "0.1234567890123456"},
      {"0.30000000000000004", "0.30000000000000004"},
  };
  for (const auto& [written, expected] : cases) {
    const std::string text =
        to_json(parse(one_layer("\"search_step\":" + written)), algorithm_catalog());
    EXPECT_NE(text.find("\"search_step\":" + expected + ","), std::string::npos) << text;
  }
}

TEST(CalibrationConfigTest, NamesAreEscapedAsciiAndReadBack) {
  const std::vector<std::string> names{"层.k", "quote\"back\\slash", "tab\there",
                                       "\xF0\x9F\x98\x80"};
  const CalibrationConfig config = default_config(names, algorithm_catalog());
  const std::string text = to_json(config, algorithm_catalog());
  for (const char c : text) EXPECT_LT(static_cast<unsigned char>(c), 0x80U);
  EXPECT_NE(text.find("\"\\u5c42.k\""), std::string::npos) << text;
  EXPECT_EQ(parse(text), config);
}

TEST(CalibrationConfigTest, NamesThatLookLikeOtherKeysAreLayers) {
  const CalibrationConfig config = parse(
      R"({"kv_data_quant_config":{"kv_data_quant_config":{}},"act_algo":{"kv_data_quant_config":{}}})");
  ASSERT_EQ(config.layers.size(), 2U);
  EXPECT_EQ(config.layers[0].name, "kv_data_quant_config");
}

TEST(CalibrationConfigTest, NumBitsEightIsAcceptedAndNotWritten) {
  const CalibrationConfig config = parse(one_layer(R"("num_bits":8)"));
  EXPECT_EQ(to_json(config, algorithm_catalog()).find("num_bits"), std::string::npos);
}

TEST(CalibrationConfigTest, NumberFormats) {
  const auto layer = [](const std::string& settings) {
    return parse(one_layer(settings)).layers.at(0);
  };
  EXPECT_EQ(layer("").grid, kInt8);
  EXPECT_EQ(layer(R"("num_bits":4)").grid, kInt4);
  EXPECT_EQ(layer(R"("num_bits":8,"dst_type":"FP8_E5M2")").grid, kFp8E5M2);
  for (const Grid& grid : grids()) {
    const CalibrationConfig config =
        parse(one_layer(R"("dst_type":")" + std::string(grid.name) + "\""));
    EXPECT_EQ(config.layers.at(0).grid, grid);
    EXPECT_EQ(config.with_offset(config.layers.at(0)), !grid.is_float());
    const std::string text = to_json(config, algorithm_catalog());
    EXPECT_EQ(text.find("dst_type") == std::string::npos, grid == kInt8);
    EXPECT_EQ(parse(text), config);
  }
}

TEST(CalibrationConfigTest, SearchClipMinIsWrittenWhereItIsSet) {
  const CalibrationConfig config = parse(one_layer(R"("search_clip_min":true)"));
  EXPECT_EQ(std::get<bool>(config.layers.at(0).options.at("search_clip_min")), true);
  const std::string text = to_json(config, algorithm_catalog());
  EXPECT_NE(text.find("\"search_clip_min\":true"), std::string::npos) << text;
  EXPECT_EQ(parse(text), config);
}

TEST(CalibrationConfigTest, SettingsMayBeReplaced) {
  using Changes = std::vector<std::pair<std::string, OptionValue>>;
  const auto changed = [](const std::string& settings, const Changes& changes) {
    return with_settings(parse(one_layer(settings)).layers.at(0), changes, algorithm_catalog());
  };
  const LayerConfig same =
      changed(R"("max_percentile":0.9,"tap":"cache","role":"key","quant_granularity":1)", {});
  EXPECT_EQ(same.name, "a.k_proj");
  EXPECT_EQ(std::get<double>(same.options.at("max_percentile")), 0.9);
  EXPECT_EQ(same.tap, Tap::kCache);
  EXPECT_EQ(same.granularity, Granularity::kPerChannel);
  const LayerConfig hfmg =
      changed(R"("max_percentile":0.9,"nonfinite":"skip")", {{"act_algo", std::string("hfmg")}});
  EXPECT_EQ(hfmg.algorithm, "hfmg");
  EXPECT_EQ(hfmg.options, find_spec(algorithm_catalog(), "hfmg")->defaults());
  EXPECT_EQ(hfmg.nonfinite, NonFinitePolicy::kSkip);
  const LayerConfig tensor =
      changed(R"("quant_granularity":2,"head_num":4)", {{"quant_granularity", std::int64_t{0}}});
  EXPECT_EQ(tensor.head_num, 0);
  EXPECT_EQ(changed(R"("dst_type":"HIF8")", {{"num_bits", std::int64_t{4}}}).grid, kInt4);
  expect_error<ValueError>([&] { changed("", {{"max_percentile", 2.0}}); },
                           {"layer 'a.k_proj'", "max_percentile"});
}

TEST(CalibrationConfigTest, WritingAnUnknownAlgorithmIsAnError) {
  CalibrationConfig config = parse(one_layer(""));
  config.layers[0].algorithm = "magic";
  expect_error<ValueError>([&] { to_json(config, algorithm_catalog()); }, {"a.k_proj", "magic"});
}

using ReadConfigTest = support::FolderTest;

TEST_F(ReadConfigTest, ReadsAFileAndNamesItInErrors) {
  const std::string path = folder / "config.json";
  support::write_file(path, one_layer(""));
  EXPECT_EQ(read_config(path, algorithm_catalog()).layers.size(), 1U);
  support::write_file(path, one_layer(R"("act_algo":"none")"));
  expect_error<ValueError>([&] { read_config(path, algorithm_catalog()); },
                           {path, "a.k_proj", "act_algo", "none"});
  support::write_file(path, "\xFF\xFE{}");
  expect_error<ValueError>([&] { read_config(path, algorithm_catalog()); }, {path, "UTF-8"});
  expect_error<IoError>([&] { read_config(folder / "none", algorithm_catalog()); }, {"none"});
  expect_error<ValueError>([&] { read_config(folder.path(), algorithm_catalog()); }, {"folder"});
}

TEST(CheckLayersTest, AcceptsWhatTheModelHas) {
  const std::vector<ModelLayer> model{{"a.k", "Linear", true}, {"a.norm", "LayerNorm", false}};
  const std::vector<std::string> names{"a.k"};
  EXPECT_NO_THROW(check_layers(names, model, "here"));
  EXPECT_NO_THROW(check_layers({}, model, "here"));
}

TEST(CheckLayersTest, NamesTheLayerAndTheMend) {
  const std::vector<ModelLayer> model{{"a.k_proj", "Linear", true}, {"a.norm", "LayerNorm", false}};
  const auto check = [&](std::vector<std::string> names) {
    return [&model, names = std::move(names)] { check_layers(names, model, "cfg"); };
  };
  expect_error<ValueError>(check({"a.k_proj", "a.k_proj"}), {"cfg", "'a.k_proj'", "twice"});
  expect_error<ValueError>(check({"a.k_porj"}), {"cfg", "'a.k_porj'", "did you mean 'a.k_proj'?"});
  expect_error<ValueError>(check({"a.norm"}), {"cfg", "'a.norm'", "LayerNorm"});
  const std::string message = expect_error<ValueError>(check({"completely.different"}), {"cfg"});
  EXPECT_EQ(message.find("did you mean"), std::string::npos) << message;
  // What cannot be calibrated is not suggested.
  EXPECT_EQ(expect_error<ValueError>(check({"a.nrm"}), {"a.nrm"}).find("a.norm"),
            std::string::npos);
}

}  // namespace
}  // namespace amct
