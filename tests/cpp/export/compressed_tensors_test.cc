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

class CompressedTensorsTest : public support::ExportTest {
 protected:
  std::string in(const std::string& name) const { return checkpoint + "/" + name; }
  /// Changes a right export's scheme.
  VerifyReport with_scheme(const char* key, const Json& value) {
    to("vllm", model_record(kFp8E4M3));
    Json config = read_json_object(in("config.json"));
    config["quantization_config"]["kv_cache_scheme"][key] = value;
    write_file(in("config.json"), to_json_text(config));
    return verify(checkpoint, "vllm");
  }
  /// Replaces a right export's tensors. The index names the file, whatever is in it.
  VerifyReport with_tensors(const std::vector<NewTensor>& tensors, bool per_head = false) {
    to("vllm", per_head ? model_record(kFp8E4M3, 2, true) : model_record(kFp8E4M3));
    write_file(in(kShardName), to_safetensors(tensors));
    return verify(checkpoint, "vllm");
  }
  static std::vector<NewTensor> scales(
      const std::string& name0 = "model.layers.0.self_attn.k_scale", std::int64_t count = 1) {
    const std::vector<float> values(static_cast<std::size_t>(count), 0.5F);
    return {{name0, {count}, values},
            {"model.layers.0.self_attn.v_scale", {count}, values},
            {"model.layers.1.self_attn.k_scale", {count}, values},
            {"model.layers.1.self_attn.v_scale", {count}, values}};
  }
};

TEST_F(CompressedTensorsTest, WhatIsWrittenIsRead) {
  const auto layers = model_record(kFp8E4M3);
  to("vllm", layers);
  expect_equal(verify(checkpoint, "vllm", layers));
  expect_equal(verify(checkpoint, "sglang", layers));
  const Json settings = read_json_object(in("config.json"))["quantization_config"];
  EXPECT_EQ(
      settings.dump(),
      R"({"quant_method":"compressed-tensors","format":"dense","quantization_status":"frozen",)"
      R"("config_groups":{},"ignore":[],"kv_cache_scheme":{"num_bits":8,"type":"float",)"
      R"("symmetric":true,"strategy":"tensor","dynamic":false}})");
  const SafetensorsFile file(in(kShardName));
  for (const TensorInfo& tensor : file.tensors()) {
    EXPECT_EQ(tensor.shape, std::vector<std::int64_t>{1});
  }
}

TEST_F(CompressedTensorsTest, HeadsHaveTheirOwnStrategy) {
  auto layers = model_record(kFp8E4M3, 2, true);
  layers[1].params.resize(1);  // one of them per tensor: spread
  layers[1].per_head = false;
  to("vllm", layers);
  expect_equal(verify(checkpoint, "vllm", layers));
  const Json settings = read_json_object(in("config.json"))["quantization_config"];
  EXPECT_EQ(settings["kv_cache_scheme"]["strategy"], "attn_head");
  const SafetensorsFile file(in(kShardName));
  for (const TensorInfo& tensor : file.tensors()) {
    EXPECT_EQ(tensor.shape, (std::vector<std::int64_t>{2, 1, 1}));
  }
  expect_finding(verify(checkpoint, "sglang", layers), Verdict::kWrong, "stays plain");
  expect_error<ValueError>([&] { to("vllm", model_record(kFp8E4M3, 4, true)); },
                           {"4 heads", "the model has 2"});
}

TEST_F(CompressedTensorsTest, AModuleThatIsCalledAttn) {
  auto layers = model_record(kFp8E4M3);
  for (std::size_t i = 0; i < layers.size(); ++i) {
    layers[i].name =
        "transformer.h." + std::to_string(i / 2) + ".attn.c_attn." + (i % 2 == 0 ? "key" : "value");
  }
  to("vllm", layers, folder / "out", false);
  const VerifyReport report = verify(folder / "out", "vllm", layers);
  expect_equal(report);
  EXPECT_NE(report.to_text().find("up to 0.18.1 passes it over"), std::string::npos);
}

TEST_F(CompressedTensorsTest, TheTrapOfInt8) {
  expect_finding(with_scheme("type", "int"), Verdict::kFatal, "read as FP8");
  expect_finding(with_scheme("num_bits", 4), Verdict::kFatal, "8-bit float");
}

TEST_F(CompressedTensorsTest, SchemesThatAreNotRead) {
  expect_finding(with_scheme("symmetric", false), Verdict::kFatal, "symmetric");
  expect_finding(with_scheme("symmetric", nullptr), Verdict::kFatal, "symmetric");
  expect_finding(with_scheme("strategy", "channel"), Verdict::kFatal, "channel");
  expect_finding(with_scheme("strategy", nullptr), Verdict::kFatal, "strategy");
  expect_finding(with_scheme("dynamic", true), Verdict::kWrong, "static all the same");
  to("vllm", model_record(kFp8E4M3, 2, true));
  Json config = read_json_object(in("config.json"));
  config["quantization_config"].erase("config_groups");
  write_file(in("config.json"), to_json_text(config));
  expect_finding(verify(checkpoint, "vllm"), Verdict::kFatal, "config_groups");
  config["quantization_config"]["quant_method"] = "fp8";
  write_file(in("config.json"), to_json_text(config));
  expect_finding(verify(checkpoint, "vllm"), Verdict::kFatal, "quant_method");
  config.erase("quantization_config");
  write_file(in("config.json"), to_json_text(config));
  expect_finding(verify(checkpoint, "vllm"), Verdict::kFatal, "no quantization_config");
  write_file(in("config.json"), std::string(100'000, '['));
  expect_finding(verify(checkpoint, "vllm"), Verdict::kFatal, "nested");
}

TEST_F(CompressedTensorsTest, AMissingScaleIsOneAndNothingSaysSo) {
  auto tensors = scales();
  tensors.erase(tensors.begin() + 1);
  VerifyReport report = with_tensors(tensors);
  expect_finding(report, Verdict::kWrong, "no scale of values: 1 is used");
  EXPECT_EQ(report.layers[1].source, "default");
  EXPECT_EQ(report.layers[1].scale, std::vector<double>{1});
  tensors.resize(1);
  report = with_tensors(tensors);
  EXPECT_EQ(findings(report, Verdict::kWrong, "1 is used").size(), 3U) << report.to_text();
  expect_finding(with_tensors({}), Verdict::kWrong, "every layer has 1");
}

TEST_F(CompressedTensorsTest, NameVariants) {
  const std::string module = "model.layers.0.self_attn.";
  for (const char* name : {"k_scale", "k_proj.k_scale", "qkv_proj.k_scale"}) {
    const VerifyReport report = with_tensors(scales(module + name));
    EXPECT_TRUE(report.ok()) << report.to_text();
    EXPECT_EQ(report.notes.size(), 0U) << report.to_text();
  }
  const VerifyReport report = with_tensors(scales(module + "attn.k_scale"));
  EXPECT_TRUE(report.ok()) << report.to_text();
  EXPECT_NE(report.to_text().find("up to 0.18.1 passes it over"), std::string::npos);
  expect_finding(with_tensors(scales(module + "kv_scale")), Verdict::kWrong, "deprecated");
  expect_finding(with_tensors(scales(module + "k_proj.kv_cache_scale")), Verdict::kFatal,
                 "loading fails");
  expect_finding(with_tensors(scales("model.layers.0.attention.k_scale")), Verdict::kWrong,
                 "no attention module has");
  expect_finding(with_tensors(scales("k_scale")), Verdict::kWrong, "no attention module has");
  auto twice = scales();
  twice.push_back({module + "k_proj.k_scale", {1}, {1}});
  expect_finding(with_tensors(twice), Verdict::kWrong, "both for one scale");
  auto points = scales();
  points.push_back({module + "k_zero_point", {1}, {1}});
  points.push_back({module + "q_scale", {1}, {1}});
  EXPECT_EQ(findings(with_tensors(points), Verdict::kIgnored).size(), 2U);
}

TEST_F(CompressedTensorsTest, ScalesOfAnotherShapeOrValue) {
  const std::string name = "model.layers.0.self_attn.k_scale";
  auto tensors = scales();
  tensors[0] = {name, {2}, {1, 2}};
  expect_finding(with_tensors(tensors), Verdict::kFatal, "2 elements where one is expected");
  tensors[0] = {name, {1}, {0}};
  expect_finding(with_tensors(tensors), Verdict::kWrong, "positive");
  tensors[0] = {name, {1}, {-1}};
  expect_finding(with_tensors(tensors), Verdict::kWrong, "positive");
  tensors[0] = {name, {1}, {NAN}};
  expect_finding(with_tensors(tensors), Verdict::kWrong, "positive");
  tensors = scales(name, 2);
  EXPECT_TRUE(with_tensors(tensors, true).ok());
  tensors[0] = {name, {1}, {1}};
  expect_finding(with_tensors(tensors, true), Verdict::kWrong, "one element serves all heads");
  tensors[0] = {name, {3}, {1, 1, 1}};
  expect_finding(with_tensors(tensors, true), Verdict::kFatal, "3 elements for 2 heads");
}

TEST_F(CompressedTensorsTest, DifferencesFromTheRecordAreNamed) {
  auto layers = model_record(kFp8E4M3);
  to("vllm", layers);
  layers[2].params[0].scale *= 1.001F;
  const VerifyReport report = verify(checkpoint, "vllm", layers);
  EXPECT_FALSE(report.ok());
  EXPECT_EQ(report.layers[2].match, Match::kDifferent);
  EXPECT_NE(report.layers[2].difference.find("the record has"), std::string::npos);
  EXPECT_EQ(report.layers[3].match, Match::kEqual);
  const VerifyReport other = verify(checkpoint, "vllm", model_record(kInt8));
  EXPECT_NE(other.layers[0].difference.find("stored as FP8_E4M3, the record is INT8"),
            std::string::npos);
  auto more = model_record(kFp8E4M3);
  more.push_back(support::layer("model.layers.2.self_attn.k_proj", 1, kFp8E4M3));
  more.push_back(support::layer("model.layers.2.self_attn.v_proj", 1, kFp8E4M3));
  EXPECT_EQ(verify(checkpoint, "vllm", more).layers.back().match, Match::kMissing);
  more.resize(2);
  EXPECT_EQ(verify(checkpoint, "vllm", more).layers.back().match, Match::kMissing);
}

TEST_F(CompressedTensorsTest, BrokenShardsAreFindings) {
  to("vllm", model_record(kFp8E4M3));
  write_file(in(kShardName), "short");
  expect_finding(verify(checkpoint, "vllm"), Verdict::kFatal, "too short");
  std::filesystem::remove(in(kShardName));
  expect_finding(verify(checkpoint, "vllm"), Verdict::kFatal, "it is not there");
  std::filesystem::create_symlink("/nonexistent", in("dangling.safetensors"));
  std::filesystem::create_directory(in("folder.safetensors"));
  std::filesystem::remove(in(kIndexName));
  const VerifyReport report = verify(checkpoint, "vllm");
  EXPECT_EQ(findings(report, Verdict::kFatal, "cannot read").size(), 2U) << report.to_text();
}

TEST_F(CompressedTensorsTest, TheReportIsTextAndJson) {
  const auto layers = model_record(kFp8E4M3);
  const ExportReport written = to("vllm", layers);
  const Json exported = Json::parse(written.to_json());
  EXPECT_EQ(exported["files"].size(), written.files.size());
  EXPECT_EQ(exported["runtime"], "vllm");
  const VerifyReport report = verify(checkpoint, "vllm", layers);
  const Json json = Json::parse(report.to_json());
  EXPECT_EQ(json["ok"], true);
  EXPECT_EQ(json["layers"].size(), 4U);
  EXPECT_EQ(json["layers"][0]["role"], "key");
  EXPECT_EQ(json["layers"][0]["match"], "equal");
  EXPECT_EQ(json["layers"][0]["scale"][0].get<float>(), layers[0].params[0].scale);
  EXPECT_TRUE(report.to_text().ends_with("OK\n"));
}

}  // namespace
}  // namespace amct
