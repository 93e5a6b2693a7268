#include "amct/config/definition.h"

#include "amct/core/error.h"
#include "amct/search/search.h"

#include <optional>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "support/expect_error.h"
#include "support/files.h"

namespace amct {
namespace {

using support::expect_error;

Definition parse(const std::string& text) {
  return Definition::parse(text, "q.cfg", algorithm_catalog());
}

CalibrationConfig configure(const std::string& text) {
  const Definition definition = parse(text);
  return definition.configure(definition.layers());
}

double number(const LayerConfig& layer, const char* key) {
  return std::get<double>(layer.options.at(key));
}

TEST(DefinitionTest, EmptyTextIsAllDefaultsAndNoLayers) {
  const Definition definition = parse("");
  EXPECT_TRUE(definition.layers().empty());
  const std::vector<std::string> names{"x"};
  EXPECT_EQ(definition.configure(names), default_config(names, algorithm_catalog()));
}

TEST(DefinitionTest, LayersAreThoseListedThenThoseOverriddenOnly) {
  const Definition definition = parse(R"(
    override_layers_configs { layer_name: 'z' layer_name: 'a' }
    kv_cache_quant_config { quant_layers: 'c' quant_layers: 'a' quant_layers: 'b' }
    override_layers_configs { layer_name: 'y' })");
  EXPECT_EQ(definition.layers(), (std::vector<std::string>{"c", "a", "b", "z", "y"}));
}

TEST(DefinitionTest, GlobalsApplyToLayersNamedElsewhere) {
  const Definition definition = parse(
      "batch_num: 5 activation_offset: false "
      "kv_cache_quant_config { calibration_config { hfmg_quantize { num_of_bins: 1024 } } }");
  EXPECT_TRUE(definition.layers().empty());
  const std::vector<std::string> names{"p", "q"};
  const CalibrationConfig config = definition.configure(names);
  EXPECT_EQ(config.batch_num, 5);
  EXPECT_FALSE(config.activation_offset);
  ASSERT_EQ(config.layers.size(), 2U);
  for (const LayerConfig& layer : config.layers) {
    EXPECT_EQ(layer.algorithm, "hfmg");
    EXPECT_EQ(std::get<std::int64_t>(layer.options.at("num_of_bins")), 1024);
    EXPECT_FALSE(config.with_offset(layer));
  }
}

TEST(DefinitionTest, EverySettingOfAnOverrideWinsAndTheRestComesFromTheCommonOne) {
  const CalibrationConfig config = configure(R"(
    activation_offset: false
    kv_cache_quant_config {
      quant_layers: 'plain' quant_layers: 'special'
      calibration_config { ifmr_quantize {
        search_range_start: 0.5 search_range_end: 2.0 search_step: 0.25
        max_percentile: 0.9 min_percentile: 0.8 asymmetric: true quant_granularity: per_channel } }
    }
    override_layers_configs {
      layer_name: 'special'
      kv_data_quant_config { ifmr_quantize {
        search_range_start: 0.75 min_percentile: 0.7 asymmetric: false quant_granularity: per_tensor } }
    })");
  ASSERT_EQ(config.layers.size(), 2U);
  const LayerConfig& plain = config.layers[0];
  const LayerConfig& special = config.layers[1];
  using List = std::vector<double>;
  EXPECT_EQ(std::get<List>(plain.options.at("search_range")), (List{0.5, 2.0}));
  EXPECT_EQ(std::get<List>(special.options.at("search_range")), (List{0.75, 2.0}));
  EXPECT_EQ(number(plain, "min_percentile"), 0.8);
  EXPECT_EQ(number(special, "min_percentile"), 0.7);
  EXPECT_EQ(number(special, "max_percentile"), 0.9);
  EXPECT_EQ(number(special, "search_step"), 0.25);
  EXPECT_EQ(plain.asymmetric, true);
  EXPECT_EQ(special.asymmetric, false);
  EXPECT_TRUE(config.with_offset(plain));
  EXPECT_EQ(plain.granularity, Granularity::kPerChannel);
  EXPECT_EQ(special.granularity, Granularity::kPerTensor);
}

TEST(DefinitionTest, TheTapAndItsReachComeFromTheOverrideThenTheCommonOne) {
  const CalibrationConfig config = configure(
      "kv_cache_quant_config { quant_layers: 'a' quant_layers: 'b' calibration_config { "
      "tap: cache max_position: 512 sink_tokens: 4 query_weighted: true } } "
      "override_layers_configs { layer_name: 'b' kv_data_quant_config { tap: linear "
      "sink_tokens: 2 query_weighted: false } }");
  ASSERT_EQ(config.layers.size(), 2U);
  EXPECT_EQ(config.layers[0].tap, Tap::kCache);
  EXPECT_EQ(config.layers[0].max_position, 512);
  EXPECT_EQ(config.layers[0].algorithm, "ifmr");
  EXPECT_EQ(config.layers[1].tap, Tap::kLinear);
  EXPECT_EQ(config.layers[1].max_position, 512);
  EXPECT_EQ(config.layers[0].sink_tokens, 4);
  EXPECT_EQ(config.layers[1].sink_tokens, 2);
  EXPECT_TRUE(config.layers[0].query_weighted);
  EXPECT_FALSE(config.layers[1].query_weighted);
}

TEST(DefinitionTest, TheNumberFormatComesFromTheOverrideThenTheCommonOne) {
  const CalibrationConfig config = configure(
      "kv_cache_quant_config { quant_layers: 'a' quant_layers: 'b' calibration_config { "
      "dst_type: FP8_E4M3 kl_quantize { num_of_bins: 1024 } } } "
      "override_layers_configs { layer_name: 'b' kv_data_quant_config { dst_type: INT4 "
      "ifmr_quantize { search_clip_min: true } } }");
  EXPECT_EQ(config.layers.at(0).grid, kFp8E4M3);
  EXPECT_EQ(config.layers[0].algorithm, "kl");
  EXPECT_FALSE(config.with_offset(config.layers[0]));
  EXPECT_EQ(config.layers.at(1).grid, kInt4);
  EXPECT_EQ(std::get<bool>(config.layers[1].options.at("search_clip_min")), true);
  EXPECT_TRUE(config.with_offset(config.layers[1]));
  for (const Grid& grid : grids()) {  // the schema knows every one
    const std::string text =
        "kv_cache_quant_config { quant_layers: 'a' calibration_config { dst_type: " +
        std::string(grid.name) + " } }";
    EXPECT_EQ(configure(text).layers.at(0).grid, grid);
  }
  expect_error<ValueError>(
      [] {
        configure(
            "kv_cache_quant_config { quant_layers: 'a' calibration_config { dst_type: HIF8 "
            "hfmg_quantize { } } }");
      },
      {"layer 'a'", "HIF8", "hfmg"});
}

TEST(DefinitionTest, HeadsBelongToLayersPerHead) {
  const CalibrationConfig config = configure(
      "kv_cache_quant_config { quant_layers: 'a' quant_layers: 'b' calibration_config { "
      "head_num: 4 hfmg_quantize { quant_granularity: per_head } } } override_layers_configs { "
      "layer_name: 'b' kv_data_quant_config { hfmg_quantize { quant_granularity: per_tensor } } }");
  EXPECT_EQ(config.layers.at(0).granularity, Granularity::kPerHead);
  EXPECT_EQ(config.layers.at(0).head_num, 4);
  EXPECT_EQ(config.layers.at(1).granularity, Granularity::kPerTensor);
  EXPECT_EQ(config.layers.at(1).head_num, 0);
}

TEST(DefinitionTest, OffsetComesFromTheOverrideThenTheCommonOneThenTheGlobal) {
  const auto offset = [](const std::string& global, const std::string& common,
                         const std::string& override_text) {
    const CalibrationConfig config = configure(
        global +
        " kv_cache_quant_config { quant_layers: 'a' calibration_config { ifmr_quantize { " +
        common +
        " } } } override_layers_configs { layer_name: 'a' kv_data_quant_config { "
        "ifmr_quantize { " +
        override_text + " } } }");
    return config.with_offset(config.layers.at(0));
  };
  const std::string no = "asymmetric: false";
  const std::string yes = "asymmetric: true";
  EXPECT_TRUE(offset("", "", ""));
  EXPECT_FALSE(offset("activation_offset: false", "", ""));
  EXPECT_TRUE(offset("activation_offset: false", yes, ""));
  EXPECT_FALSE(offset("activation_offset: true", no, ""));
  EXPECT_FALSE(offset("activation_offset: true", yes, no));
  EXPECT_TRUE(offset("activation_offset: false", no, yes));
}

TEST(DefinitionTest, SettingsOfOneAlgorithmDoNotCarryOverToAnother) {
  const CalibrationConfig config = configure(R"(
    kv_cache_quant_config { quant_layers: 'a'
      calibration_config { ifmr_quantize { asymmetric: false quant_granularity: per_channel search_step: 0.5 } } }
    override_layers_configs { layer_name: 'a' kv_data_quant_config { hfmg_quantize { } } })");
  const LayerConfig& layer = config.layers.at(0);
  EXPECT_EQ(layer.algorithm, "hfmg");
  EXPECT_EQ(layer.options, find_algorithm("hfmg")->spec.defaults());
  // What every algorithm has does.
  EXPECT_EQ(layer.asymmetric, false);
  EXPECT_EQ(layer.granularity, Granularity::kPerChannel);
}

TEST(DefinitionTest, AnOverrideWithoutSettingsChangesNothing) {
  const CalibrationConfig config = configure(R"(
    kv_cache_quant_config { quant_layers: 'a' calibration_config { minmax_quantize { asymmetric: true } } }
    override_layers_configs { layer_name: 'a' }
    override_layers_configs { layer_name: 'b' kv_data_quant_config { } })");
  ASSERT_EQ(config.layers.size(), 2U);
  EXPECT_EQ(config.layers[0].algorithm, "minmax");
  EXPECT_EQ(config.layers[1].algorithm, "minmax");
  EXPECT_EQ(config.layers[1].asymmetric, true);
}

TEST(DefinitionTest, EveryNamedLayerOfAnOverrideIsOverridden) {
  const CalibrationConfig config = configure(R"(
    override_layers_configs { layer_name: 'a' layer_name: 'b' kv_data_quant_config { hfmg_quantize { num_of_bins: 8192 } } })");
  ASSERT_EQ(config.layers.size(), 2U);
  for (const LayerConfig& layer : config.layers) {
    EXPECT_EQ(std::get<std::int64_t>(layer.options.at("num_of_bins")), 8192);
  }
}

TEST(DefinitionTest, OfASettingGivenTwiceTheLastCounts) {
  const CalibrationConfig config = configure(
      "batch_num: 1 kv_cache_quant_config { quant_layers: 'a' } batch_num: 2 "
      "kv_cache_quant_config { quant_layers: 'b' }");
  EXPECT_EQ(config.batch_num, 2);
  EXPECT_EQ(config.layers.size(), 2U);  // messages are merged, as protobuf does
}

TEST(DefinitionTest, TheLastAlgorithmGivenCounts) {
  const auto algorithm = [](const std::string& inside) {
    return configure("kv_cache_quant_config { quant_layers: 'a' calibration_config { " + inside +
                     " } }")
        .layers.at(0)
        .algorithm;
  };
  EXPECT_EQ(algorithm("ifmr_quantize { } hfmg_quantize { }"), "hfmg");
  EXPECT_EQ(algorithm("hfmg_quantize { } ifmr_quantize { }"), "ifmr");
}

TEST(DefinitionTest, FloatsBecomeTheDoubleOfTheirShortestDecimal) {
  const CalibrationConfig config = configure(R"(
    kv_cache_quant_config { quant_layers: 'a' calibration_config { ifmr_quantize {
      max_percentile: 0.999 min_percentile: 0.99999 search_step: 0.0001 search_range_end: 1.1 } } })");
  EXPECT_EQ(number(config.layers[0], "max_percentile"), 0.999);
  EXPECT_EQ(number(config.layers[0], "min_percentile"), 0.99999);
  EXPECT_EQ(number(config.layers[0], "search_step"), 0.0001);
  const std::string json = to_json(config, algorithm_catalog());
  EXPECT_NE(json.find("\"search_step\":0.0001,"), std::string::npos) << json;
  EXPECT_NE(json.find("\"max_percentile\":0.999,"), std::string::npos) << json;
}

TEST(DefinitionTest, CommentsAndBothFormsOfTheTextFormatAreRead) {
  EXPECT_EQ(configure("# a comment\nkv_cache_quant_config: < quant_layers: \"a\"; "
                      "quant_layers: ['b', 'c'] > batch_num: 0x10")
                .layers.size(),
            3U);
}

TEST(DefinitionErrorTest, SyntaxErrorsHaveLineAndColumn) {
  expect_error<ValueError>([] { parse("batch_num: 1\n  batch_nmu: 2\n"); },
                           {"q.cfg: ", "line 2, column ", "batch_nmu"});
  expect_error<ValueError>([] { parse("kv_cache_quant_config {\n quant_layers: 5\n}"); },
                           {"q.cfg: ", "line 2, column 16"});
  expect_error<ValueError>([] { parse("this is { not"); }, {"q.cfg: ", "line 1, column "});
  expect_error<ValueError>([] { parse("kv_cache_quant_config {\n\n"); }, {"q.cfg: ", "line 3"});
  expect_error<ValueError>([] { parse("batch_num: -1"); }, {"q.cfg: ", "line 1"});
  expect_error<ValueError>([] { parse("batch_num: 4294967296"); }, {"q.cfg: ", "line 1"});
  expect_error<ValueError>([] { parse("batch_num: 'x'"); }, {"q.cfg: ", "line 1"});
  expect_error<ValueError>([] { parse("activation_offset: maybe"); }, {"q.cfg: ", "maybe"});
  expect_error<ValueError>(
      [] {
        parse(
            "kv_cache_quant_config { calibration_config { ifmr_quantize {\n"
            "quant_granularity: per_row } } }");
      },
      {"q.cfg: ", "line 2", "per_row"});
}

TEST(DefinitionErrorTest, TextThatIsNoText) {
  expect_error<ValueError>([] { parse(std::string("batch_num\0: 1", 13)); }, {"q.cfg"});
  expect_error<ValueError>([] { parse("\xFF\xFE"); }, {"q.cfg"});
  expect_error<ValueError>([] { parse(R"({"batch_num": 1})"); }, {"q.cfg"});
  // An escape can make any byte in a name, but no JSON could hold it.
  expect_error<ValueError>([] { parse(R"(kv_cache_quant_config { quant_layers: 'a\377' })"); },
                           {"q.cfg", "UTF-8"});
  expect_error<ValueError>([] { parse(R"(override_layers_configs { layer_name: '\xC0\x80' })"); },
                           {"q.cfg", "UTF-8"});
  EXPECT_EQ(parse("kv_cache_quant_config { quant_layers: '层' }").layers().at(0), "层");
}

TEST(DefinitionErrorTest, DeepNestingIsRefused) {
  std::string deep;
  for (int i = 0; i < 100000; ++i) deep += "kv_cache_quant_config {";
  EXPECT_THROW(parse(deep), ValueError);
  // Nesting inside an unknown field is skipped by no parser that trusts the stack.
  EXPECT_THROW(parse("unknown " + std::string(100000, '{')), ValueError);
}

TEST(DefinitionErrorTest, BatchNumZero) {
  expect_error<ValueError>([] { parse("batch_num: 0"); }, {"q.cfg", "batch_num"});
}

TEST(DefinitionErrorTest, LayersNamedTwice) {
  expect_error<ValueError>(
      [] { parse("kv_cache_quant_config { quant_layers: 'a' quant_layers: 'a' }"); },
      {"q.cfg", "'a'", "listed twice"});
  expect_error<ValueError>(
      [] {
        parse(
            "override_layers_configs { layer_name: 'a' } override_layers_configs { layer_name: 'a' "
            "}");
      },
      {"q.cfg", "'a'", "overridden twice"});
  expect_error<ValueError>(
      [] { parse("override_layers_configs { layer_name: 'a' layer_name: 'a' }"); },
      {"q.cfg", "'a'", "overridden twice"});
  EXPECT_NO_THROW(
      parse("kv_cache_quant_config { quant_layers: 'a' } "
            "override_layers_configs { layer_name: 'a' }"));
}

TEST(DefinitionErrorTest, SettingsOutOfRangeNameFileLayerAndKey) {
  const auto bad = [](const std::string& algorithm, const std::string& setting) {
    return [=] {
      configure("kv_cache_quant_config { quant_layers: 'a.k' calibration_config { " + algorithm +
                " { " + setting + " } } }");
    };
  };
  for (const char* setting :
       {"max_percentile: 0.5", "max_percentile: 1.5", "min_percentile: 0", "search_step: 0",
        "search_step: -1", "search_step: 5", "search_step: nan", "search_step: inf",
        "max_percentile: nan", "search_range_start: 0 search_range_end: 1", "search_range_start: 2",
        "search_range_end: 0.7", "search_range_end: inf", "search_range_start: nan",
        "search_step: 1e-30"}) {
    const std::string key = std::string(setting).substr(0, std::string(setting).find_first_of("_"));
    expect_error<ValueError>(bad("ifmr_quantize", setting), {"q.cfg", "'a.k'", key});
  }
  for (const char* setting : {"num_of_bins: 0", "num_of_bins: 1000", "num_of_bins: 4294967295"}) {
    expect_error<ValueError>(bad("hfmg_quantize", setting), {"q.cfg", "'a.k'", "num_of_bins"});
  }
  // Each half is fine alone; together they do not fit.
  expect_error<ValueError>(
      [] {
        configure(
            "kv_cache_quant_config { calibration_config { ifmr_quantize { search_range_end: 0.9 "
            "search_step: 0.1 } } } override_layers_configs { layer_name: 'b' "
            "kv_data_quant_config { ifmr_quantize { search_range_start: 0.95 } } }");
      },
      {"q.cfg", "'b'", "search_range"});
}

using DefinitionFileTest = support::FolderTest;

TEST_F(DefinitionFileTest, ErrorsNameTheFile) {
  support::write_file(folder / "good.cfg", "batch_num: 3");
  EXPECT_EQ(Definition::read(folder / "good.cfg", algorithm_catalog()).configure({}).batch_num, 3);
  support::write_file(folder / "bad.cfg", "\nnonsense");
  expect_error<ValueError>([&] { Definition::read(folder / "bad.cfg", algorithm_catalog()); },
                           {folder / "bad.cfg", "line 2"});
  expect_error<IoError>([&] { Definition::read(folder / "none.cfg", algorithm_catalog()); },
                        {"none.cfg"});
}

}  // namespace
}  // namespace amct
