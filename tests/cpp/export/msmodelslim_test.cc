#include "amct/core/error.h"

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
using support::model_record;
using support::write_file;

using MsmodelslimTest = support::ExportTest;

TEST_F(MsmodelslimTest, WhatIsWrittenIsReadOffsetsIncluded) {
  const auto layers = model_record(kInt8, 8, false, -5);
  to("msmodelslim", layers);
  expect_equal(verify(checkpoint, "msmodelslim", layers));
  expect_finding(verify(checkpoint, "vllm-ascend", layers), Verdict::kWrong, "not taken off");
  const auto plain = model_record(kInt8, 8);
  to("msmodelslim", plain);
  expect_equal(verify(checkpoint, "vllm-ascend", plain));
}

TEST_F(MsmodelslimTest, ThePiecesAloneNeedTheNumberOfChannels) {
  const std::string out = folder / "out";
  const auto channels = model_record(kInt8, 8, false, 3);
  EXPECT_FALSE(to("msmodelslim", channels, out, false).warnings.empty());
  expect_equal(verify(out, "msmodelslim", channels));
  const auto layers = model_record(kInt8);
  expect_error<ValueError>([&] { to("msmodelslim", layers, out, false); },
                           {"per_tensor", "heads and head_dim"});
  ExportOptions options;
  options.output = out;
  options.heads = 2;
  options.head_dim = 4;
  export_layers(layers, "msmodelslim", options);
  expect_equal(verify(out, "msmodelslim", layers));
}

TEST_F(MsmodelslimTest, AnIndexOfItsOwnNameIsExtended) {
  std::filesystem::rename(checkpoint + "/model.safetensors",
                          checkpoint + "/quant_model_weights.safetensors");
  const std::string index = checkpoint + "/quant_model_weights.safetensors.index.json";
  Json json;
  const SafetensorsFile file(checkpoint + "/quant_model_weights.safetensors");
  for (const TensorInfo& tensor : file.tensors()) {
    json["weight_map"][tensor.name] = "quant_model_weights.safetensors";
  }
  write_file(index, to_json_text(json));
  to("msmodelslim", model_record(kInt8));
  EXPECT_EQ(read_json_object(index)["weight_map"].size(), json["weight_map"].size() + 8);
  EXPECT_FALSE(read_json_object(index).contains("metadata"));
  EXPECT_FALSE(file_exists(checkpoint + "/" + kIndexName));
  expect_equal(verify(checkpoint, "msmodelslim", model_record(kInt8)));
}

TEST_F(MsmodelslimTest, WhatDoesNotFitIsFound) {
  const auto layers = model_record(kInt8, 8);
  to("msmodelslim", layers);
  const std::string path = checkpoint + "/quant_model_description.json";
  Json json = read_json_object(path);
  json["kv_cache_type"] = "C4";
  json["model.layers.0.self_attn.k_proj.kv_cache_scale"] = "FLOAT";
  write_file(path, to_json_text(json));
  const VerifyReport report = verify(checkpoint, "msmodelslim", layers);
  expect_finding(report, Verdict::kWrong, "kv_cache_type");
  expect_finding(report, Verdict::kWrong, "k_proj.kv_cache_scale");
  const std::string half = "model.layers.0.self_attn.k_proj.kv_cache_";
  write_file(checkpoint + "/" + kShardName,
             to_safetensors(std::vector<NewTensor>{{half + "scale", {2}, {1, 1}},
                                                   {half + "offset", {2}, {0.5F, 300}}}));
  json["model.layers.0.self_attn.k_proj.kv_cache_scale"] = "C8";
  write_file(path, to_json_text(json));
  expect_finding(verify(checkpoint, "msmodelslim"), Verdict::kWrong, "no integers");
}

}  // namespace
}  // namespace amct
