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
using support::expect_finding;
using support::model_record;
using support::write_file;

class ModeloptTest : public support::ExportTest {
 protected:
  std::string in(const std::string& name) const { return checkpoint + "/" + name; }
  VerifyReport with_settings(const std::function<void(Json&)>& change) {
    to("modelopt", model_record(kFp8E4M3));
    Json config = read_json_object(in("config.json"));
    change(config["quantization_config"]);
    write_file(in("config.json"), to_json_text(config));
    return verify(checkpoint, "modelopt");
  }
  VerifyReport with_tensors(const std::vector<NewTensor>& tensors) {
    to("modelopt", model_record(kFp8E4M3));
    write_file(in(kShardName), to_safetensors(tensors));
    return verify(checkpoint, "modelopt");
  }
};

TEST_F(ModeloptTest, WhatIsWrittenIsRead) {
  const auto layers = model_record(kFp8E4M3);
  const ExportReport report = to("modelopt", layers);
  EXPECT_FALSE(report.warnings.empty());  // of TensorRT-LLM
  expect_equal(verify(checkpoint, "modelopt", layers));
  expect_equal(verify(checkpoint, "sglang", layers));
  const SafetensorsFile shard(in(kShardName));
  EXPECT_EQ(shard.tensors()[0].name, "model.layers.0.self_attn.k_proj.k_scale");
  EXPECT_TRUE(shard.tensors()[0].shape.empty());
}

TEST_F(ModeloptTest, SettingsThatAreNotRead) {
  expect_finding(with_settings([](Json& json) { json.erase("quant_algo"); }), Verdict::kFatal,
                 "quant_algo");
  expect_finding(with_settings([](Json& json) { json["quant_algo"] = nullptr; }), Verdict::kFatal,
                 "quant_algo");
  expect_finding(with_settings([](Json& json) { json["kv_cache_scheme"].erase("dynamic"); }),
                 Verdict::kWrong, "stays plain");
  expect_finding(with_settings([](Json& json) { json["kv_cache_scheme"] = "INT8"; }),
                 Verdict::kWrong, "stays plain");
  EXPECT_TRUE(with_settings([](Json& json) { json["kv_cache_scheme"] = "FP8"; }).ok());
  expect_finding(with_settings([](Json& json) { json["quant_method"] = "fp8"; }), Verdict::kFatal,
                 "quant_method");
  Json config = read_json_object(in("config.json"));
  config.erase("quantization_config");
  write_file(in("config.json"), to_json_text(config));
  expect_finding(verify(checkpoint, "modelopt"), Verdict::kFatal, "quantization_config");
  write_file(in("hf_quant_config.json"),
             R"({"quantization": {"quant_algo": "FP8", "kv_cache_quant_algo": "FP8"}})");
  EXPECT_TRUE(verify(checkpoint, "modelopt").ok());
  write_file(in("hf_quant_config.json"),
             R"({"quantization": {"quant_algo": null, "kv_cache_quant_algo": "FP8"}})");
  expect_finding(verify(checkpoint, "modelopt"), Verdict::kFatal, "quant_algo");
}

TEST_F(ModeloptTest, OfModulesByOtherNamesTheScalesWouldNotBeFound) {
  auto layers = model_record(kFp8E4M3);
  layers.resize(2);
  layers[0].name = "transformer.h.0.attn.c_attn.key";
  layers[1].name = "transformer.h.0.attn.c_attn.value";
  support::expect_error<ValueError>([&] { to("modelopt", layers, folder / "out", false); },
                                    {"transformer.h.0.attn.k_proj.k_scale", "for vllm"});
}

TEST_F(ModeloptTest, HalfAPairServesBothOrFails) {
  const std::string k = ".self_attn.k_proj.k_scale";
  const std::string v = ".self_attn.v_proj.v_scale";
  const VerifyReport only_key = with_tensors({{"model.layers.0" + k, {}, {2}},
                                              {"model.layers.1" + k, {}, {3}},
                                              {"model.layers.1" + v, {}, {4}}});
  expect_finding(only_key, Verdict::kWrong, "that of keys is used for both");
  EXPECT_EQ(only_key.layers[1].scale, std::vector<double>{2});
  EXPECT_EQ(only_key.layers[3].scale, std::vector<double>{4});
  expect_finding(with_tensors({{"model.layers.0" + v, {}, {2}}}), Verdict::kFatal, "assertion");
  const VerifyReport none =
      with_tensors({{"model.layers.1" + k, {1}, {2}}, {"model.layers.1" + v, {1}, {2}}});
  expect_finding(none, Verdict::kWrong, "has no scales: 1 is used");
  expect_finding(with_tensors({{"model.layers.0" + k, {2}, {2, 2}}}), Verdict::kFatal,
                 "2 elements, and one is expected");
  expect_finding(with_tensors({{"model.layers.0" + k, {}, {0}}}), Verdict::kWrong, "positive");
}

}  // namespace
}  // namespace amct
