#include "amct/core/error.h"

#include <filesystem>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "export/checkpoint.h"
#include "export/support.h"
#include "support/expect_error.h"

namespace amct {
namespace {

using support::expect_equal;
using support::expect_error;
using support::expect_finding;
using support::findings;
using support::model_record;
using support::write_file;

class VllmAscendTest : public support::ExportTest {
 protected:
  std::string in(const std::string& name) const { return checkpoint + "/" + name; }
  Json description() const { return read_json_object(in("quant_model_description.json")); }
  void describe(const Json& json) const {
    write_file(in("quant_model_description.json"), to_json_text(json));
  }
  /// Replaces the factors' file after a right export.
  VerifyReport with_tensors(const std::vector<NewTensor>& tensors) {
    to("vllm-ascend", model_record(kInt8));
    write_file(in(kShardName), to_safetensors(tensors));
    return verify(checkpoint, "vllm-ascend");
  }
};

const std::string kKey = "model.layers.0.self_attn.k_proj.kv_cache_";
const std::string kValue = "model.layers.0.self_attn.v_proj.kv_cache_";

TEST_F(VllmAscendTest, WhatIsWrittenIsRead) {
  for (const auto& layers :
       {model_record(kInt8, 8), model_record(kInt8), model_record(kInt8, 2, true)}) {
    to("vllm-ascend", layers);
    expect_equal(verify(checkpoint, "vllm-ascend", layers));
    const SafetensorsFile shard(in(kShardName));
    ASSERT_EQ(shard.tensors().size(), 8U);
    for (const TensorInfo& tensor : shard.tensors()) {
      EXPECT_EQ(tensor.shape, std::vector<std::int64_t>{8});
      EXPECT_EQ(tensor.dtype, "F32");
    }
  }
  const Json json = description();
  EXPECT_EQ(json["kv_cache_type"], "C8");
  EXPECT_EQ(json["kv_quant_type"], "C8");
  EXPECT_EQ(json["model_quant_type"], "FLOAT");
  EXPECT_EQ(json["model.layers.1.self_attn.o_proj.weight"], "FLOAT");
  EXPECT_EQ(json["lm_head.weight"], "FLOAT");
  EXPECT_EQ(json[kKey + "scale"], "C8");
  EXPECT_EQ(json[kValue + "offset"], "C8");
  EXPECT_FALSE(read_json_object(in("config.json")).contains("quantization_config"));
}

TEST_F(VllmAscendTest, HeadsAreSpreadInTheOrderOfTheProjectionsChannels) {
  const auto layers = model_record(kInt8, 2, true);
  to("vllm-ascend", layers);
  const SafetensorsFile shard(in(kShardName));
  for (const TensorInfo& tensor : shard.tensors()) {
    if (tensor.name != kKey + "scale") continue;
    const std::vector<double> values = shard.read(tensor);
    for (std::size_t i = 0; i < 8; ++i) EXPECT_EQ(values[i], layers[0].params[i / 4].scale);
  }
}

TEST_F(VllmAscendTest, ADescriptionOfQuantizedWeightsIsExtended) {
  describe(Json::parse(R"({"model_quant_type": "W8A8", "version": "1.0.0", "more": [1],
                           "model.layers.0.self_attn.k_proj.weight": "W8A8"})"));
  to("vllm-ascend", model_record(kInt8));
  const Json json = description();
  EXPECT_EQ(json["model_quant_type"], "W8A8");
  EXPECT_EQ(json["more"], Json::array({1}));
  EXPECT_EQ(json["model.layers.0.self_attn.k_proj.weight"], "W8A8");
  EXPECT_FALSE(json.contains("lm_head.weight"));
  EXPECT_EQ(json["kv_cache_type"], "C8");
  expect_finding(verify(checkpoint, "vllm-ascend"), Verdict::kFatal, "not described");
}

TEST_F(VllmAscendTest, WithoutTheCheckpointItCannotBeDescribed) {
  expect_error<ValueError>([&] { to("vllm-ascend", model_record(kInt8), folder / "out", false); },
                           {"checkpoint folder"});
  auto wide = model_record(kInt8, 6);
  expect_error<ValueError>([&] { to("vllm-ascend", wide); }, {"6 channels", "2 heads of 4"});
}

TEST_F(VllmAscendTest, TwoNumbersInANameAreReadAsOne) {
  std::vector<NewTensor> tensors;
  for (const char* projection : {"k_proj", "v_proj"}) {
    tensors.push_back({std::string("m.3.layers.0.self_attn.") + projection + ".weight",
                       {8, 1},
                       std::vector<float>(8)});
  }
  write_file(in("model.safetensors"), to_safetensors(tensors));
  auto layers = model_record(kInt8);
  layers.resize(2);
  layers[0].name = "m.3.layers.0.self_attn.k_proj";
  layers[1].name = "m.3.layers.0.self_attn.v_proj";
  expect_error<ValueError>([&] { to("vllm-ascend", layers); }, {"all numbers in the name as one"});
}

TEST_F(VllmAscendTest, OffsetsAreLeftOffInReading) {
  const std::vector<float> scales(8, 0.5F);
  std::vector<float> offsets(8, 0.0F);
  offsets[3] = 2;
  expect_finding(with_tensors({{kKey + "scale", {8}, scales},
                               {kKey + "offset", {8}, offsets},
                               {kValue + "scale", {8}, scales}}),
                 Verdict::kWrong, "x' = x + offset * scale");
  // A missing offset is zeros.
  const VerifyReport report =
      with_tensors({{kKey + "scale", {8}, scales}, {kValue + "scale", {8}, scales}});
  EXPECT_TRUE(findings(report, Verdict::kWrong).empty()) << report.to_text();
}

TEST_F(VllmAscendTest, ShapesThatFailAtTheFirstForward) {
  const std::vector<float> scales(8, 0.5F);
  expect_finding(with_tensors({{kKey + "scale", {1}, {0.5F}}, {kValue + "scale", {8}, scales}}),
                 Verdict::kFatal, "one element");
  expect_finding(with_tensors({{kKey + "scale", {3}, {1, 1, 1}}, {kValue + "scale", {8}, scales}}),
                 Verdict::kFatal, "3 factors");
  expect_finding(with_tensors({{kKey + "scale", {8}, scales}}), Verdict::kFatal, "no such tensor");
  expect_finding(with_tensors({{kValue + "scale", {8}, scales}}), Verdict::kFatal,
                 "no such tensor");
  expect_finding(with_tensors({{kKey + "scale", {8}, scales}, {kKey + "offset", {2}, {0, 0}}}),
                 Verdict::kFatal, "2 offsets for 8 scales");
  expect_finding(with_tensors({}), Verdict::kFatal, "no tensor is there");
}

TEST_F(VllmAscendTest, TheDescriptionSwitchesItOn) {
  const auto layers = model_record(kInt8, 8);
  to("vllm-ascend", layers);
  const Json right = description();
  Json json = right;
  json.erase("kv_cache_type");
  describe(json);
  expect_finding(verify(checkpoint, "vllm-ascend", layers), Verdict::kFatal, "kv_cache_type");
  json = right;
  json.erase("model.layers.0.self_attn.o_proj.weight");
  describe(json);
  expect_finding(verify(checkpoint, "vllm-ascend", layers), Verdict::kFatal, "o_proj");
  json = right;
  json.erase(kKey + "scale");
  describe(json);
  expect_finding(verify(checkpoint, "vllm-ascend", layers), Verdict::kWrong, "stays plain");
  json = right;
  json["model.layers.k_proj.kv_cache_scale"] = "C8";
  describe(json);
  expect_finding(verify(checkpoint, "vllm-ascend", layers), Verdict::kFatal, "ValueError");
  json = right;
  json["model.layers.7.self_attn.k_proj.kv_cache_scale"] = "C8";
  describe(json);
  expect_finding(verify(checkpoint, "vllm-ascend", layers), Verdict::kFatal, "layer 7");
  std::filesystem::remove(in("quant_model_description.json"));
  expect_finding(verify(checkpoint, "vllm-ascend", layers), Verdict::kFatal,
                 "quant_model_description.json");
  expect_finding(verify(in("config.json"), "vllm-ascend"), Verdict::kFatal, "folder");
}

TEST_F(VllmAscendTest, ScalesAreKeptInTheModelsType) {
  auto layers = model_record(kInt8, 8);
  layers[0].params[5].scale = 1e-8F;
  to("vllm-ascend", layers);
  expect_equal(verify(checkpoint, "vllm-ascend", layers));  // bfloat16
  VerifyOptions options;
  options.record = layers;
  options.model_dtype = DType::kFloat16;
  const VerifyReport report = verify_export(checkpoint, "vllm-ascend", options);
  expect_finding(report, Verdict::kWrong, "float16");
  EXPECT_EQ(report.layers[0].match, Match::kDifferent);
  ExportOptions half;
  half.model_folder = checkpoint;
  half.model_dtype = DType::kFloat16;
  const ExportReport written = export_layers(layers, "vllm-ascend", half);
  ASSERT_EQ(written.warnings.size(), 1U);
  EXPECT_NE(written.warnings[0].find("0.00000001"), std::string::npos) << written.warnings[0];
}

TEST_F(VllmAscendTest, FilesOutsideTheIndexAreNotRead) {
  to("vllm-ascend", model_record(kInt8));
  Json index = read_json_object(in(kIndexName));
  index["weight_map"] = Json::object();
  index["weight_map"]["lm_head.weight"] = "model.safetensors";
  write_file(in(kIndexName), to_json_text(index));
  const VerifyReport report = verify(checkpoint, "vllm-ascend");
  EXPECT_FALSE(findings(report, Verdict::kIgnored, kShardName).empty());
  expect_finding(report, Verdict::kFatal, "no tensor is there");
  index["weight_map"]["x"] = "../config.json";
  index["weight_map"]["y"] = "missing.safetensors";
  index["weight_map"]["z"] = std::string("a\0b", 3);
  write_file(in(kIndexName), to_json_text(index));
  const VerifyReport hostile = verify(checkpoint, "vllm-ascend");
  EXPECT_EQ(findings(hostile, Verdict::kFatal, "it is not there").size(), 3U) << hostile.to_text();
}

}  // namespace
}  // namespace amct
