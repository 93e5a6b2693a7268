#include "amct/config/layer_patterns.h"

#include "amct/config/definition.h"
#include "amct/core/error.h"
#include "amct/search/search.h"

#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "support/expect_error.h"

namespace amct {
namespace {

TEST(LayerPatternsTest, ANameIsNotCutOffAtANul) {
  EXPECT_FALSE(matches_layer("a", std::string("a\0b", 3)));
  EXPECT_FALSE(matches_layer("*", std::string("a\0b", 3)));
  EXPECT_FALSE(matches_layer(std::string("a*\0b", 4), "a.k_proj"));
}

TEST(LayerPatternsTest, PatternsOfManyStarsTakeNoTime) {
  std::string pattern;
  for (int i = 0; i < 1000; ++i) pattern += "*a*[a]*?";
  EXPECT_FALSE(matches_layer(pattern + "b", std::string(4096, 'a')));
  EXPECT_FALSE(matches_layer(std::string(4096, '[') + "*", std::string(4096, 'a')));
}

using Names = std::vector<std::string>;

const std::vector<ModelLayer>& model() {
  static const std::vector<ModelLayer> layers{{"layers.0.attn", "Attention", false},
                                              {"layers.0.attn.k_proj", "Linear", true},
                                              {"layers.0.attn.v_proj", "Linear", true},
                                              {"layers.1.attn.k_proj", "Linear", true},
                                              {"layers.1.attn.v_proj", "Linear", true},
                                              {"odd[k]", "Linear", true},
                                              {"norm", "LayerNorm", false}};
  return layers;
}

TEST(LayerPatternsTest, StandForTheLayersTheyMatchInTheOrderOfTheModel) {
  const auto expand = [](const Names& names) { return expand_layers(names, model(), "here"); };
  EXPECT_EQ(expand({"layers.*.attn.v_proj", "layers.?.attn.k_proj"}),
            (Names{"layers.0.attn.v_proj", "layers.1.attn.v_proj", "layers.0.attn.k_proj",
                   "layers.1.attn.k_proj"}));
  EXPECT_EQ(expand({"layers.*.[kv]_proj"}),
            (Names{"layers.0.attn.k_proj", "layers.0.attn.v_proj", "layers.1.attn.k_proj",
                   "layers.1.attn.v_proj"}));
  EXPECT_EQ(expand({"layers.0*.[!k]_proj"}), Names{"layers.0.attn.v_proj"});
}

TEST(LayerPatternsTest, DoNotRepeatWhatIsNamed) {
  EXPECT_EQ(
      expand_layers(Names{"layers.*.k_proj", "layers.0*", "layers.0.attn.k_proj"}, model(), ""),
      (Names{"layers.1.attn.k_proj", "layers.0.attn.v_proj", "layers.0.attn.k_proj"}));
}

TEST(LayerPatternsTest, NamesAreNoPatterns) {
  EXPECT_EQ(expand_layers(Names{"odd[k]", "none", "norm"}, model(), ""),
            (Names{"odd[k]", "none", "norm"}));  // whether they are good is for check_layers
}

TEST(LayerPatternsTest, ThatMatchNothingAreRefused) {
  support::expect_error<ValueError>([] { expand_layers(Names{"layer.*"}, model(), "here"); },
                                    {"here: ", "no layer", "'layer.*'"});
  support::expect_error<ValueError>([] { expand_layers(Names{"nor*"}, model(), "here"); },
                                    {"'nor*'", "it matches 'norm' (a LayerNorm)"});
}

TEST(LayerPatternsTest, OverrideLayers) {
  const Definition definition = Definition::parse(
      R"(kv_cache_quant_config { quant_layers: "layers.*" }
         override_layers_configs {
           layer_name: "layers.*.v_proj"
           kv_data_quant_config { minmax_quantize {} }
         }
         override_layers_configs {
           layer_name: "*v_proj"
           layer_name: "layers.1.attn.v_proj"
           kv_data_quant_config { hfmg_quantize {} }
         })",
      "definition", algorithm_catalog());
  const Names names = expand_layers(definition.layers(), model(), "definition");
  EXPECT_EQ(names.size(), 4U);
  std::vector<std::string> algorithms;
  for (const LayerConfig& layer : definition.configure(names).layers)
    algorithms.push_back(layer.algorithm);
  EXPECT_EQ(algorithms, (Names{"ifmr", "minmax", "ifmr", "hfmg"}));
}

}  // namespace
}  // namespace amct
