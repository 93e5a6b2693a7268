#include "amct/core/error.h"

#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "export/json_file.h"
#include "export/support.h"
#include "support/expect_error.h"

namespace amct {
namespace {

using support::expect_error;
using support::expect_finding;
using support::model_record;
using support::write_file;

class SglangTest : public support::ExportTest {
 protected:
  VerifyReport read(const std::string& text, std::int64_t layers = support::kLayers) {
    write_file(path, text);
    VerifyOptions options;
    options.model_folder = checkpoint;
    options.layers = layers;
    return verify_export(path, "sglang", options);
  }
  const std::string path = folder / "factors.json";
};

TEST_F(SglangTest, WhatIsWrittenIsRead) {
  const auto layers = model_record(kFp8E4M3);
  ExportOptions options;
  options.output = path;
  options.model_folder = checkpoint;
  options.ranks = 2;
  const ExportReport report = export_layers(layers, "sglang", options);
  EXPECT_NE(report.to_text().find("0.5.23"), std::string::npos);
  const Json json = read_json_object(path);
  EXPECT_EQ(json["model_type"], "llama");
  EXPECT_EQ(json["kv_cache"]["dtype"], "float8_e4m3fn");
  EXPECT_EQ(json["kv_cache"]["scaling_factor"]["1"], json["kv_cache"]["scaling_factor"]["0"]);
  VerifyOptions read;
  read.record = layers;
  read.ranks = 2;
  const VerifyReport verified = verify_export(path, "sglang", read);
  EXPECT_TRUE(verified.ok()) << verified.to_text();
  EXPECT_EQ(verified.layers[0].match, Match::kMerged);
  EXPECT_EQ(verified.layers[1].match, Match::kEqual);
  read.ranks = 1;
  expect_finding(verify_export(path, "sglang", read), Verdict::kWrong, "1 ranks");
}

TEST_F(SglangTest, WhatSglangWouldThrowAwayIsNotWritten) {
  auto layers = model_record(kFp8E4M3);
  expect_error<ValueError>([&] { to("sglang", layers, path, false); }, {"model_type"});
  layers.resize(2);
  expect_error<ValueError>([&] { to("sglang", layers, path); }, {"each layer", "1 layers"});
  layers = model_record(kFp8E4M3);
  layers.erase(layers.begin(), layers.begin() + 2);
  ExportOptions options;
  options.output = path;
  options.model_type = "llama";
  expect_error<ValueError>([&] { export_layers(layers, "sglang", options); }, {"each layer"});
}

TEST_F(SglangTest, AnyErrorMeansOneForEveryScale) {
  const auto file = [](const std::string& type, const std::string& dtype,
                       const std::string& ranks) {
    return R"({"model_type": )" + type + R"(, "kv_cache": {"dtype": ")" + dtype +
           R"(", "scaling_factor": )" + ranks + "}}";
  };
  const std::string right = R"({"0": {"0": 0.5, "1": 0.25}})";
  const VerifyReport ok = read(file("\"llama\"", "float8_e4m3fn", right));
  EXPECT_TRUE(ok.ok()) << ok.to_text();
  EXPECT_EQ(ok.layers[2].scale, std::vector<double>{0.25});
  for (const std::string& text :
       {std::string("{"), std::string("[]"), std::string(300'000, '['), std::string("\xFF"),
        file("\"qwen2\"", "float8_e4m3fn", right), file("null", "float8_e4m3fn", right),
        file("\"llama\"", "float8_e5m2", right), file("\"llama\"", "float8_e4m3fn", "[]"),
        file("\"llama\"", "float8_e4m3fn", "{}"),
        file("\"llama\"", "float8_e4m3fn", R"({"1": {"0": 1, "1": 1}})"),
        file("\"llama\"", "float8_e4m3fn", R"({"0": {"0": 1}})"),
        file("\"llama\"", "float8_e4m3fn", R"({"0": {"0": 1, "2": 1}})"),
        file("\"llama\"", "float8_e4m3fn", R"({"0": {"0": 1, "x": 1}})"),
        file("\"llama\"", "float8_e4m3fn", R"({"0": {"0": 1, "1": "1"}})"),
        file("\"llama\"", "float8_e4m3fn", R"({"0": 7})"), std::string(R"({"kv_cache": {}})")}) {
    const VerifyReport report = read(text);
    expect_finding(report, Verdict::kWrong, "every scale is 1");
    EXPECT_TRUE(report.layers.empty());
  }
  expect_finding(read(file("\"llama\"", "float8_e4m3fn", R"({"0": {"0": 0, "1": -1}})")),
                 Verdict::kWrong, "positive");
}

TEST_F(SglangTest, ACheckpointsNamesAreOurs) {
  to("vllm", model_record(kFp8E4M3));
  const std::string shard = checkpoint + "/kv_cache_factors.safetensors";
  write_file(shard, to_safetensors(std::vector<NewTensor>{
                        {"model.layers.0.self_attn.attn.k_scale", {1}, {1}},
                        {"model.layers.0.self_attn.qkv_proj.v_scale", {1}, {1}}}));
  const VerifyReport report = verify(checkpoint, "sglang");
  expect_finding(report, Verdict::kWrong, "self_attn.attn.attn.k_scale");
  expect_finding(report, Verdict::kWrong, "qkv_proj.attn.v_scale");
}

}  // namespace
}  // namespace amct
