#include "export/factors.h"

#include "amct/core/error.h"

#include <bit>
#include <cmath>
#include <cstdlib>
#include <limits>
#include <random>
#include <string>

#include <gtest/gtest.h>

#include "export/support.h"
#include "support/data.h"
#include "support/expect_error.h"

namespace amct {
namespace {

using support::expect_error;
using support::expect_refused;
using support::ExportTest;
using support::model_record;

TEST(FactorsTest, PlainDecimalsHaveNoExponentAndReadBack) {
  EXPECT_EQ(plain_decimal(9.5e-05F), "0.000095");
  EXPECT_EQ(plain_decimal(0.05221764F), "0.05221764");
  EXPECT_EQ(plain_decimal(1.0F), "1");
  std::mt19937 generator(1);
  std::vector<float> values{std::numeric_limits<float>::min(), std::numeric_limits<float>::max(),
                            std::numeric_limits<float>::denorm_min()};
  while (values.size() < 20'000) {
    const auto value = std::fabs(std::bit_cast<float>(static_cast<std::uint32_t>(generator())));
    if (std::isfinite(value)) values.push_back(value);
  }
  for (const float value : values) {
    const std::string text = plain_decimal(value);
    EXPECT_EQ(text.find_first_not_of("0123456789."), std::string::npos) << text;
    EXPECT_EQ(std::strtof(text.c_str(), nullptr), value) << text;
  }
}

TEST(FactorsTest, RoundingIsThatOfTheType) {
  std::mt19937 generator(2);
  for (int i = 0; i < 200'000; ++i) {
    const auto value = std::bit_cast<float>(static_cast<std::uint32_t>(generator()));
    if (!std::isfinite(value)) continue;
    // The helpers of the tests saturate; overflow is checked below.
    const auto bfloat = static_cast<double>(bfloat16_to_float(support::to_bfloat16(value)));
    if (std::fabs(value) < 3.3e38F) {
      EXPECT_EQ(round_to(DType::kBFloat16, value), bfloat) << value;
    }
    const auto half = static_cast<double>(float16_to_float(support::to_float16(value)));
    if (std::fabs(value) < 65504) {
      EXPECT_EQ(round_to(DType::kFloat16, value), half) << value;
    }
    EXPECT_EQ(round_to(DType::kFloat32, value), static_cast<double>(value));
  }
  EXPECT_EQ(round_to(DType::kFloat16, 65519.0), 65504.0);
  EXPECT_EQ(round_to(DType::kFloat16, 65520.0), HUGE_VAL);
  EXPECT_EQ(round_to(DType::kFloat16, -65520.0), -HUGE_VAL);
  EXPECT_EQ(round_to(DType::kFloat16, 2.9e-8), 0.0);
  EXPECT_EQ(round_to(DType::kFloat16, 3.0e-8), 0x1p-24);
  EXPECT_EQ(round_to(DType::kBFloat16, 3.4e38), HUGE_VAL);
  EXPECT_EQ(round_to(DType::kBFloat16, 256.5), 256.0);
}

class RefusalTest : public ExportTest {
 protected:
  ExportOptions options() {
    ExportOptions options;
    options.output = folder / "out";
    options.model_folder = checkpoint;
    return options;
  }
};

TEST_F(RefusalTest, TheNearestSettingIsNamed) {
  using enum Granularity;
  const auto int8 = model_record(kInt8);
  const auto channels = model_record(kInt8, 8);
  const auto heads = model_record(kInt8, 2, true);
  const auto offsets = model_record(kInt8, 8, false, 3);
  const auto fp8 = model_record(kFp8E4M3);
  const auto fp8_channels = model_record(kFp8E4M3, 8);
  // The checkpoint has two heads, and without it a record of heads tells.
  const Setting two_heads{kFp8E4M3, kPerHead, false, Tap::kCache, 2};
  ExportOptions no_checkpoint;
  no_checkpoint.output = folder / "out";
  expect_refused("vllm", heads, no_checkpoint, two_heads, "INT8");
  expect_refused("lmdeploy", channels, options(), {kInt8, kPerTensor}, "per_channel");
  expect_refused("lmdeploy", heads, options(), {kInt8, kPerTensor}, "per_head");
  // Where offsets are read, those of an integer format are better with them.
  expect_refused("lmdeploy", fp8, options(), {kInt8, kPerTensor, true}, "FP8_E4M3 (read: INT8)");
  expect_refused("msmodelslim", fp8_channels, options(), {kInt8, kPerChannel, true}, "FP8_E4M3");
  expect_refused("lmdeploy", offsets, options(), {kInt8, kPerTensor, true}, "per_channel");
  expect_refused("vllm-ascend", offsets, options(), {kInt8, kPerChannel}, "offsets (read: none)");
  expect_refused("vllm-ascend", fp8_channels, options(), {kInt8, kPerChannel}, "FP8_E4M3");
  expect_refused("vllm", int8, options(), {kFp8E4M3, kPerTensor}, "INT8 (read: FP8_E4M3)");
  expect_refused("vllm", offsets, options(), two_heads, "INT8");
  expect_refused("vllm", fp8_channels, options(), two_heads,
                 "per_channel (read: per_tensor or per_head)");
  expect_refused("vllm", model_record(kFp8E4M3Fnuz), options(), {kFp8E4M3, kPerTensor}, "FNUZ");
  expect_refused("vllm", model_record(kHif8), options(), {kFp8E4M3, kPerTensor}, "HIF8");
  expect_refused("modelopt", model_record(kFp8E4M3, 2, true), options(), {kFp8E4M3, kPerTensor},
                 "per_head");
  expect_refused("tensorrt-llm", model_record(kInt8, 1, false, 4), options(), {kInt8, kPerTensor},
                 "offsets");
  expect_refused("tensorrt-llm", model_record(kInt4), options(), {kInt8, kPerTensor}, "INT4");
  expect_refused("tensorrt-llm", fp8_channels, options(), {kFp8E4M3, kPerTensor}, "per_channel");
  expect_refused("sglang", int8, options(), {kFp8E4M3, kPerTensor}, "INT8");
  expect_refused("msmodelslim", model_record(kInt4, 8, false, 1), options(),
                 {kInt8, kPerChannel, true}, "INT4");
  EXPECT_EQ(folder.names(), std::vector<std::string>{"checkpoint"});
}

TEST_F(RefusalTest, TheCommandGivesTheSetting) {
  EXPECT_EQ(
      (Setting{kFp8E4M3, Granularity::kPerHead}).command(),
      "amct solve COUNTS --dst-type FP8_E4M3 --granularity per_head --heads HEADS --symmetric "
      "-o record.txt");
  EXPECT_EQ((Setting{kInt8, Granularity::kPerHead, true, Tap::kCache, 2}).command(),
            "amct solve COUNTS --dst-type INT8 --granularity per_head --heads 2 -o record.txt");
  EXPECT_EQ((Setting{kInt8, Granularity::kPerChannel, true}).command(),
            "amct solve COUNTS --dst-type INT8 --granularity per_channel -o record.txt");
}

TEST_F(RefusalTest, WhatIsOneValueIsNoFinerThanIt) {
  auto layers = model_record(kFp8E4M3, 8);
  for (LayerRecord& layer : layers) layer.params.assign(8, layer.params.front());
  EXPECT_NO_THROW(to("vllm", layers, folder / "out"));
  for (LayerRecord& layer : layers) layer.params[7].scale *= 2;
  EXPECT_THROW(to("vllm", layers, folder / "out2"), Unrepresentable);
  for (LayerRecord& layer : layers) {
    for (int i : {4, 5, 6}) layer.params[i] = layer.params[7];
  }
  EXPECT_NO_THROW(to("vllm", layers, folder / "out3"));  // of two heads, by the checkpoint
}

TEST_F(RefusalTest, KeysObservedAtTheProjection) {
  auto layers = model_record(kInt8, 8);
  for (LayerRecord& layer : layers) layer.tap = Tap::kLinear;
  expect_refused("vllm-ascend", layers, options(), {kInt8, Granularity::kPerChannel},
                 "after rotary embedding");
  expect_error<Unrepresentable>([&] { to("vllm-ascend", layers, folder / "out"); },
                                {"tap cache", "allow_linear_tap", "layers.0.self_attn.k_proj"});
  ExportOptions allowed = options();
  allowed.allow_linear_tap = true;
  EXPECT_TRUE(export_layers(layers, "vllm-ascend", allowed).warnings.empty());
  for (LayerRecord& layer : layers) layer.params.resize(1);
  EXPECT_EQ(to("lmdeploy", layers, folder / "record").warnings.size(), 1U);
  // Values are stored as their projection puts them out.
  for (std::size_t i = 0; i < layers.size(); i += 2) layers[i].tap = Tap::kCache;
  EXPECT_TRUE(to("lmdeploy", layers, folder / "record").warnings.empty());
  EXPECT_TRUE(to("json", model_record(kInt8), folder / "json").warnings.empty());
}

TEST_F(RefusalTest, KeysThatTheModelNormalizes) {
  support::write_file(checkpoint + "/norms.safetensors",
                      to_safetensors(std::vector<NewTensor>{
                          {"model.layers.0.self_attn.k_norm.weight", {4}, {1, 1, 1, 1}}}));
  auto layers = model_record(kFp8E4M3);
  EXPECT_NO_THROW(to("vllm", layers, folder / "out"));
  for (LayerRecord& layer : layers) layer.tap = Tap::kLinear;
  expect_refused("vllm", layers, options(), {kFp8E4M3, Granularity::kPerTensor}, "k_norm");
}

TEST_F(RefusalTest, LayersThatAreNotThereAreNamed) {
  auto layers = model_record(kInt8);
  layers.erase(layers.begin(), layers.begin() + 2);
  const ExportReport report = to("lmdeploy", layers, folder / "record");
  ASSERT_EQ(report.warnings.size(), 1U);
  EXPECT_NE(report.warnings[0].find("no layer 0"), std::string::npos);
  for (const char* runtime : {"vllm", "modelopt", "tensorrt-llm"}) {
    auto fp8 = model_record(kFp8E4M3);
    fp8.resize(2);
    const auto warnings = to(runtime, fp8, folder / runtime).warnings;
    ASSERT_FALSE(warnings.empty());
    EXPECT_NE(warnings[0].find("no layer 1"), std::string::npos) << warnings[0];
  }
}

TEST_F(RefusalTest, ARecordWithoutLayers) {
  for (const Runtime& runtime : runtimes()) {
    expect_error<ValueError>([&] { export_layers({}, runtime.name, options()); },
                             {"no layers", "calibrate"});
  }
  EXPECT_EQ(folder.names(), std::vector<std::string>{"checkpoint"});
}

TEST_F(RefusalTest, OptionsThatMakeNoSense) {
  const auto layers = model_record(kInt8);
  expect_error<ValueError>([&] { export_layers(layers, "tgi", options()); },
                           {"'tgi'", "lmdeploy", "npz"});
  expect_error<ValueError>([&] { verify_export(checkpoint, "", {}); }, {"''"});
  for (const Runtime& runtime : runtimes()) {
    ExportOptions nothing;
    if (runtime.name == "sglang") nothing.model_type = "llama";
    const auto& grid = runtime.capability.grids.front();
    const auto record = model_record(grid, 1);
    expect_error<ValueError>([&] { export_layers(record, runtime.name, nothing); }, {"give"});
    ExportOptions none = options();
    none.model_folder = folder / "none";
    if (runtime.name == "json" || runtime.name == "npz") continue;
    expect_error<IoError>([&] { export_layers(record, runtime.name, none); }, {"none"});
    none.model_folder = checkpoint;
    none.heads = 0;
    expect_error<ValueError>([&] { export_layers(record, runtime.name, none); }, {"heads", "0"});
  }
  auto mixed = model_record(kInt8);
  mixed[1].grid = kFp8E4M3;
  expect_error<ValueError>([&] { export_layers(mixed, "tensorrt-llm", options()); },
                           {"v_proj' is FP8_E4M3", "INT8"});
  for (const char* runtime : {"vllm-ascend", "msmodelslim"}) {
    expect_error<ValueError>(
        [&] { export_layers(model_record(kInt8, 4, true), runtime, options()); },
        {"4 heads", "the model has 2"});
  }
}

}  // namespace
}  // namespace amct
