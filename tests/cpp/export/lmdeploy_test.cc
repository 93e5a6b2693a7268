#include "amct/core/error.h"

#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "export/support.h"
#include "support/expect_error.h"

namespace amct {
namespace {

using support::expect_equal;
using support::expect_finding;
using support::findings;
using support::model_record;
using support::read_file;
using support::write_file;

class LmdeployTest : public support::ExportTest {
 protected:
  VerifyReport verify_text(const std::string& text, const std::vector<LayerRecord>& record = {}) {
    write_file(path, text);
    return verify(path, "lmdeploy", record);
  }
  /// A record as this library writes it.
  VerifyReport verify_record(const std::vector<LayerRecord>& layers) {
    write_empty_record(path);
    merge_into_record(path, layers, {});
    return verify(path, "lmdeploy");
  }
  const std::string path = folder / "lmdeploy.txt";
};

TEST_F(LmdeployTest, WhatIsWrittenIsRead) {
  auto layers = model_record(kInt8, 1, false, -7);
  layers[0].params[0] = {9.5e-05F, 128};
  layers[1].params[0] = {1.5F, -128};
  to("lmdeploy", {layers[3], layers[0], layers[2], layers[1]}, path);
  expect_equal(verify(path, "lmdeploy", layers));
  const std::string text = read_file(path);
  EXPECT_NE(text.find("record {\n  key: \"model.layers.0.self_attn.k_proj\"\n  kv_cache_value {\n"
                      "    scale: 0.000095\n    offset: -128\n  }\n}\n"),
            std::string::npos)
      << text;
  // It is a record still, of the turned sign.
  const std::vector<LayerRecord> read = read_record(path);
  ASSERT_EQ(read.size(), 4U);
  EXPECT_EQ(read[1].params, (std::vector<QuantParams>{{1.5F, 128}}));
  EXPECT_EQ(read[3].name, layers[3].name);
}

TEST_F(LmdeployTest, NamesCannotReadAsFactors) {
  auto layers = model_record(kInt8);
  layers[0].name = "a.0.scale: 1 offset: 2\"\n\\.k_proj";
  layers[1].name = "a.0.scale: 1 offset: 2\"\n\\.v_proj";
  layers[2].name = "a.1.层.k_proj";
  layers[3].name = "a.1.层.v_proj";
  to("lmdeploy", layers, path, false);
  expect_equal(verify(path, "lmdeploy", layers));
  EXPECT_EQ(read_record(path)[0].name, layers[0].name);
}

TEST_F(LmdeployTest, ARecordItselfHasTheWrongSign) {
  const auto layers = model_record(kInt8, 1, false, 5);
  expect_finding(verify_record(layers), Verdict::kWrong, "offsets are added");
  const VerifyReport report = verify(path, "lmdeploy", layers);
  EXPECT_EQ(report.layers[0].match, Match::kDifferent);
  EXPECT_NE(report.layers[0].difference.find("sign"), std::string::npos);
  EXPECT_EQ(report.layers[0].offset, std::vector<double>{-5});
  // Without offsets there is no sign.
  expect_equal([&] {
    verify_record(model_record(kInt8));
    return verify(path, "lmdeploy", model_record(kInt8));
  }());
}

TEST_F(LmdeployTest, FactorsOfChannelsGiveTheLastScaleAndTheFirstOffset) {
  auto layers = model_record(kInt8, 3);
  layers[0].params[0].offset = 4;
  const VerifyReport report = verify_record(layers);
  expect_finding(report, Verdict::kWrong, "the last scale and the first offset");
  EXPECT_EQ(report.layers[0].offset, std::vector<double>{-4});
  EXPECT_NEAR(report.layers[0].scale[0], layers[0].params[2].scale, 1e-3);
}

TEST_F(LmdeployTest, AnExponentDoesNotMatch) {
  auto layers = model_record(kInt8);
  layers[1].params[0].scale = 9.5e-05F;
  const VerifyReport report = verify_record(layers);
  expect_finding(report, Verdict::kWrong, "an exponent");
  VerifyOptions options;
  options.layers = support::kLayers;
  expect_finding(verify_export(path, "lmdeploy", options), Verdict::kFatal, "3 pairs");
}

TEST_F(LmdeployTest, TheOrderIsAllThatTellsLayersApart) {
  const auto layers = model_record(kInt8);
  expect_finding(verify_record({layers[2], layers[3], layers[0], layers[1]}), Verdict::kWrong,
                 "stands after");
  expect_finding(verify_record({layers[0], layers[2], layers[1], layers[3]}), Verdict::kWrong,
                 "stands after");
  const VerifyReport report = verify(path, "lmdeploy", layers);
  EXPECT_EQ(report.layers[0].match, Match::kEqual);
  EXPECT_EQ(report.layers[1].match, Match::kDifferent);
}

TEST_F(LmdeployTest, HalfAsManyPairsAreSharedByKeysAndValues) {
  const auto layers = model_record(kInt8);
  verify_record({layers[0], layers[2]});
  const VerifyReport report = verify(path, "lmdeploy", layers);
  expect_finding(report, Verdict::kWrong, "keys and values share");
  EXPECT_EQ(report.layers.size(), 4U);
}

TEST_F(LmdeployTest, TheExpressionIsTheReaders) {
  const auto pairs = [&](const std::string& text) {
    return findings(verify_text(text), Verdict::kUsed).size();
  };
  const std::string v = " scale: 2 offset: 0";
  EXPECT_EQ(pairs("scale: 1 offset: 0" + v), 2U);
  EXPECT_EQ(pairs("scale:1\n\toffset:-3" + v), 2U);
  EXPECT_EQ(pairs("scale: 1offset: 3.5" + v), 2U);
  EXPECT_EQ(pairs("# scale: 1 offset: 0" + v), 2U);
  EXPECT_EQ(pairs("scale: scale: 1 offset: 0" + v), 2U);
  EXPECT_EQ(pairs("scale: 1 scale: 1 offset: 0 offset: 2" + v), 2U);
  // One pair is none for a layer of two halves.
  for (const char* text : {"scale: 1e-05 offset: 0", "scale: +1 offset: 0", "scale: inf offset: 0",
                           "scale: 1, offset: 0", "scale: 1; offset: 0", "scale_d: 0.1 offset: 0",
                           "scale : 1 offset: 0", "offset: 0 scale: 1", "scale: 1 offset: +1",
                           "scale: 1 offset: -", "scale: 1 offset:", "scale:"}) {
    EXPECT_EQ(pairs(text), 0U) << text;
  }
  expect_finding(verify_text("scale: 1.2.3 offset: 0" + v), Verdict::kFatal, "ValueError");
  expect_finding(verify_text("scale: --1 offset: 0" + v), Verdict::kFatal, "ValueError");
  expect_finding(verify_text("scale: -1 offset: 0" + v), Verdict::kWrong, "positive");
  expect_finding(verify_text("scale: 0 offset: 0" + v), Verdict::kWrong, "positive");
}

TEST_F(LmdeployTest, FactorsAreKeptInTheModelsType) {
  auto layers = model_record(kInt8);
  layers[0].params[0].scale = 1e-8F;
  to("lmdeploy", layers, path);
  expect_equal(verify(path, "lmdeploy", layers));
  VerifyOptions options;
  options.record = layers;
  options.model_dtype = DType::kFloat16;
  const VerifyReport report = verify_export(path, "lmdeploy", options);
  expect_finding(report, Verdict::kWrong, "float16");
  EXPECT_EQ(report.layers[0].scale, std::vector<double>{0});
}

TEST_F(LmdeployTest, AnyBytesAreAFinding) {
  for (const std::string& text :
       {std::string(), std::string("\0scale:", 7), std::string("\xFF\xFE"), std::string("key: \""),
        std::string("key: \"\\"), std::string(1 << 20, '('), std::string(1 << 20, '{')}) {
    const VerifyReport report = verify_text(text);
    EXPECT_FALSE(report.ok()) << report.to_text();
  }
  std::string many;
  for (int i = 0; i < 100'000; ++i) many += "scale: 1 ";
  EXPECT_FALSE(verify_text(many).ok());
  expect_finding(verify(folder.path(), "lmdeploy"), Verdict::kFatal, "not a folder");
  support::expect_error<IoError>([&] { verify(folder / "none", "lmdeploy"); }, {"none"});
}

TEST_F(LmdeployTest, BytesThatAreNoTextAreEscaped) {
  const std::string path = folder / "factors";
  write_file(path, R"(record { key: "\377\376" scale: 0.5 offset: 0 } scale: 0.5 offset: 0)");
  const std::string text = verify(path, "lmdeploy").to_text();
  EXPECT_EQ(text.find('\xff'), std::string::npos) << text;
  EXPECT_EQ(text.find('\xfe'), std::string::npos) << text;
  EXPECT_NE(text.find("\\xff"), std::string::npos) << text;
}

}  // namespace
}  // namespace amct
