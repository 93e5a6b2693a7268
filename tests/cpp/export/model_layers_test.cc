#include "export/model_layers.h"

#include "amct/core/error.h"

#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "support/expect_error.h"

namespace amct {
namespace {

using support::expect_error;

std::vector<LayerRecord> named(const std::vector<std::string>& names) {
  std::vector<LayerRecord> layers;
  for (const std::string& name : names) layers.push_back({name, {{1, 0}}});
  return layers;
}

void refuse(const std::vector<std::string>& names, std::initializer_list<std::string_view> parts) {
  expect_error<ValueError>([&] { model_layers(named(names)); }, parts);
}

TEST(ModelLayersTest, NamesAreTakenApart) {
  const auto check = [](const std::string& name, const std::vector<std::int64_t>& numbers,
                        std::optional<KVRole> role, const std::string& projection,
                        const std::string& attention) {
    const LayerName parsed = parse_layer_name(name);
    EXPECT_EQ(parsed.numbers, numbers) << name;
    EXPECT_EQ(parsed.role, role) << name;
    EXPECT_EQ(parsed.projection, projection) << name;
    EXPECT_EQ(parsed.attention, attention) << name;
  };
  using enum KVRole;
  check("model.layers.0.self_attn.k_proj", {0}, kKey, "model.layers.0.self_attn.k_proj",
        "model.layers.0.self_attn");
  check("bert.encoder.layer.11.attention.self.value", {11}, kValue,
        "bert.encoder.layer.11.attention.self.value", "bert.encoder.layer.11.attention.self");
  check("decoder.block.3.layer.0.SelfAttention.k", {3, 0}, kKey,
        "decoder.block.3.layer.0.SelfAttention.k", "decoder.block.3.layer.0.SelfAttention");
  check("transformer.h.2.attn.c_attn.key", {2}, kKey, "transformer.h.2.attn.c_attn",
        "transformer.h.2.attn");
  check("layers.1.qkv_proj.value", {1}, kValue, "layers.1.qkv_proj", "layers.1");
  check("layers.1.x.v_lin", {1}, kValue, "layers.1.x.v_lin", "layers.1.x");
  check("layers.1.x.key_proj", {1}, kKey, "layers.1.x.key_proj", "layers.1.x");
  check("layers.1.dense", {1}, std::nullopt, "layers.1.dense", "layers.1");
  check("", {}, std::nullopt, "", "");
  check("k", {}, kKey, "k", "");
  check("h2.99999999999999999999.-1.k", {}, kKey, "h2.99999999999999999999.-1.k",
        "h2.99999999999999999999.-1");
}

TEST(ModelLayersTest, LayersComeByNumberWhateverTheOrder) {
  const std::vector<AttentionLayer> layers = model_layers(named(
      {"l.10.v_proj", "l.2.v_proj", "l.2.k_proj", "l.10.k_proj", "l.0.k_proj", "l.0.v_proj"}));
  ASSERT_EQ(layers.size(), 3U);
  EXPECT_EQ(layers[0].index, 0);
  EXPECT_EQ(layers[1].index, 2);
  EXPECT_EQ(layers[2].index, 10);
  EXPECT_EQ(layers[2].key.name, "l.10.k_proj");
  EXPECT_EQ(layers[2].value.name, "l.10.v_proj");
  EXPECT_EQ(layers[2].attention, "l.10");
}

TEST(ModelLayersTest, OfSeveralNumbersTheFirstThatTellsLayersApartCounts) {
  const auto t5 = model_layers(
      named({"block.0.layer.0.k", "block.0.layer.0.v", "block.1.layer.0.k", "block.1.layer.0.v"}));
  EXPECT_EQ(t5[1].index, 1);
  const auto inner =
      model_layers(named({"m.3.layers.0.k", "m.3.layers.0.v", "m.3.layers.1.k", "m.3.layers.1.v"}));
  EXPECT_EQ(inner[0].index, 0);
  EXPECT_EQ(inner[1].index, 1);
  const auto one = model_layers(named({"m.3.layers.5.k", "m.3.layers.5.v"}));
  EXPECT_EQ(one[0].index, 3);
  refuse({"s.0.l.0.k", "s.0.l.0.v", "s.0.l.1.k", "s.0.l.1.v", "s.1.l.0.k", "s.1.l.0.v"},
         {"layer 0 has two of role key", "'s.0.l.0.k' and 's.0.l.1.k'"});
}

TEST(ModelLayersTest, TheRecordsRoleComesFirst) {
  std::vector<LayerRecord> layers = named({"l.0.a", "l.0.b"});
  layers[0].role = KVRole::kValue;
  layers[1].role = KVRole::kKey;
  EXPECT_EQ(model_layers(layers)[0].key.name, "l.0.b");
}

TEST(ModelLayersTest, LayersThatCannotBeLaidOutAreRefused) {
  refuse({}, {"no layers"});
  refuse({"l.0.k_proj"}, {"layer 0", "'l.0.k_proj'", "no value"});
  refuse({"l.0.k_proj", "l.0.v_proj", "l.1.v_proj"}, {"layer 1", "no key"});
  refuse({"l.0.a"}, {"'l.0.a'", "key or a value", "role: key"});
  refuse({"l.k_proj", "l.v_proj"}, {"'l.k_proj'", "number"});
  refuse({"l.0.k_proj", "l.0.v_proj", "l.0.k"}, {"layer 0 has two of role key"});
  refuse({"l.0.a.k_proj", "l.0.b.v_proj"}, {"not of the same attention module"});
  std::vector<LayerRecord> latent =
      named({"l.0.self_attn.kv_a_proj_with_mqa.key", "l.0.self_attn.kv_a_layernorm"});
  latent[1].role = KVRole::kValue;
  expect_error<ValueError>([&] { model_layers(latent); }, {"multi-head latent attention"});
}

TEST(ModelLayersTest, FactorsAreMadeCoarserWhereNothingIsLost) {
  const LayerRecord channels{"a", {{1, 2}, {1, 2}, {3, 4}, {3, 4}}};
  EXPECT_EQ(granularity_of(coarsened(channels, std::nullopt)), Granularity::kPerChannel);
  EXPECT_EQ(granularity_of(coarsened(channels, 3)), Granularity::kPerChannel);
  EXPECT_EQ(granularity_of(coarsened(channels, 4)), Granularity::kPerHead);  // heads of one channel
  const LayerRecord heads = coarsened(channels, 2);
  EXPECT_EQ(heads, (LayerRecord{"a", {{1, 2}, {3, 4}}, true}));
  EXPECT_EQ(coarsened(heads, 2), heads);
  EXPECT_EQ(coarsened({"a", {{1, 2}, {1, 2}}, true}, 2), (LayerRecord{"a", {{1, 2}}}));
  EXPECT_EQ(coarsened({"a", {{1, 2}}, true}, 1), (LayerRecord{"a", {{1, 2}}}));
  const LayerRecord offsets{"a", {{1, 2}, {1, 3}}};
  EXPECT_EQ(coarsened(offsets, 1), offsets);
}

TEST(ModelLayersTest, FactorsAreSpreadOverChannels) {
  using Params = std::vector<QuantParams>;
  EXPECT_EQ(spread({"a", {{1, 2}}}, 3), (Params{{1, 2}, {1, 2}, {1, 2}}));
  EXPECT_EQ(spread({"a", {{1, 2}, {3, 4}}, true}, 4), (Params{{1, 2}, {1, 2}, {3, 4}, {3, 4}}));
  EXPECT_EQ(spread({"a", {{1, 2}, {3, 4}}}, 2), (Params{{1, 2}, {3, 4}}));
  expect_error<ValueError>([] { spread({"a", {{1, 2}, {3, 4}}}, 4); }, {"'a'", "2 channels", "4"});
  expect_error<ValueError>([] { spread({"a", {{1, 2}, {3, 4}}, true}, 3); }, {"2 heads", "3"});
}

}  // namespace
}  // namespace amct
