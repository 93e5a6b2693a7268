#include "amct/core/error.h"

#include <algorithm>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "export/checkpoint.h"
#include "export/support.h"

namespace amct {
namespace {

using support::expect_finding;
using support::model_record;
using support::write_file;

class TensorrtLlmTest : public support::ExportTest {
 protected:
  /// Of a folder with these settings and tensors.
  VerifyReport read(const std::string& algo, const std::vector<NewTensor>& tensors) {
    const std::string path = folder / "engine";
    std::filesystem::create_directories(path);
    write_file(path + "/config.json",
               R"({"quantization": {"quant_algo": null, "kv_cache_quant_algo": )" + algo + "}}");
    write_file(path + "/rank0.safetensors", to_safetensors(tensors));
    return verify(path, "tensorrt-llm");
  }
};

TEST_F(TensorrtLlmTest, ALayersHalvesShareTheLargerScale) {
  for (const Grid& grid : {kInt8, kFp8E4M3}) {
    support::write_checkpoint(checkpoint = folder / grid.name);
    auto layers = model_record(grid);
    layers[0].params[0].scale = 10;
    const ExportReport report = to("tensorrt-llm", layers);
    EXPECT_NE(report.to_text().find("times coarser"), std::string::npos);
    const VerifyReport read = verify(checkpoint, "tensorrt-llm", layers);
    EXPECT_TRUE(read.ok()) << read.to_text();
    EXPECT_EQ(read.layers[0].match, Match::kEqual);
    EXPECT_EQ(read.layers[1].match, Match::kMerged);
    EXPECT_EQ(read.layers[1].scale, std::vector<double>{10});
    EXPECT_EQ(read.layers[1].grid, grid);
    EXPECT_EQ(read_json_object(checkpoint +
                               "/hf_quant_config.json")["quantization"]["kv_cache_quant_algo"],
              grid == kInt8 ? "INT8" : "FP8");
    EXPECT_FALSE(read_json_object(checkpoint + "/config.json").contains("quantization_config"));
  }
}

TEST_F(TensorrtLlmTest, TheEnginesNamesAreRead) {
  const std::string a = "transformer.layers.0.attention";
  const VerifyReport one = read("\"INT8\"", {{a + ".kv_cache_scaling_factor", {1}, {0.5F}}});
  EXPECT_TRUE(one.ok()) << one.to_text();
  ASSERT_EQ(one.layers.size(), 2U);
  EXPECT_EQ(one.layers[1].scale, std::vector<double>{0.5});
  const VerifyReport two = read("\"FP8\"", {{a + ".k_cache_scaling_factor", {1}, {0.5F}},
                                            {a + ".v_cache_scaling_factor", {1}, {2}}});
  EXPECT_EQ(two.layers[0].scale, std::vector<double>{2});
  EXPECT_EQ(two.layers[0].grid, kFp8E4M3);
  expect_finding(read("\"INT8\"", {{a + ".k_cache_scaling_factor", {1}, {0.5F}}}), Verdict::kFatal,
                 "both must be there");
}

TEST_F(TensorrtLlmTest, ScalesAndSettingsThatAreNotRead) {
  const std::string k = "model.layers.0.self_attn.k_proj.k_scale";
  const std::string v = "model.layers.0.self_attn.v_proj.v_scale";
  EXPECT_TRUE(read("\"INT8\"", {{k, {}, {1}}, {v, {1}, {2}}}).ok());
  expect_finding(read("\"INT8\"", {{k, {}, {1}}}), Verdict::kFatal, "both must be there");
  expect_finding(read("\"INT8\"", {{v, {}, {1}}}), Verdict::kFatal, "both must be there");
  expect_finding(read("\"INT8\"", {{k, {2}, {1, 1}}, {v, {}, {1}}}), Verdict::kFatal, "scalar");
  expect_finding(read("\"INT8\"", {{k, {}, {1e-45F}}, {v, {}, {1}}}), Verdict::kFatal,
                 "reciprocal");
  expect_finding(read("\"INT8\"", {{k, {}, {INFINITY}}, {v, {}, {1}}}), Verdict::kWrong,
                 "positive and finite");
  expect_finding(read("\"INT8\"", {{"model.layers.0.self_attn.k_scale", {1}, {1}}}),
                 Verdict::kWrong, "passed over");
  expect_finding(read("\"INT8\"", {}), Verdict::kWrong, "no scale");
  expect_finding(read("\"INT5\"", {{k, {}, {1}}, {v, {}, {1}}}), Verdict::kFatal, "INT5");
  expect_finding(read("null", {{k, {}, {1}}, {v, {}, {1}}}), Verdict::kWrong, "stays plain");
  expect_finding(read("{}}", {}), Verdict::kFatal, "not JSON");
}

}  // namespace
}  // namespace amct
