// The plain formats, json and npz: everything of every record, and any file is read.
#include "amct/core/error.h"

#include <array>
#include <random>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "export/json_file.h"
#include "export/npz.h"
#include "export/support.h"
#include "support/expect_error.h"

namespace amct {
namespace {

using support::expect_equal;
using support::expect_error;
using support::expect_finding;
using support::model_record;
using support::read_file;
using support::write_file;

constexpr std::array kRuntimes{"json", "npz"};

class PlainTest : public support::ExportTest {
 protected:
  const std::string path = folder / "factors";
};

TEST_F(PlainTest, EverythingIsWrittenAndRead) {
  for (const char* runtime : kRuntimes) {
    for (const Grid& grid : grids()) {
      for (const std::size_t count : {1U, 2U, 6U}) {
        auto layers = model_record(grid, count, count == 2, grid.is_float() ? 0 : -3);
        layers[1].tap = Tap::kLinear;
        layers[3].role = KVRole::kValue;
        to(runtime, {layers[2], layers[1], layers[0], layers[3]}, path, false);
        const VerifyReport report = verify(path, runtime, layers);
        expect_equal(report);
        EXPECT_EQ(report.layers[0].source, layers[0].name);
        EXPECT_EQ(report.layers[0].scale.size(), count);
      }
    }
  }
}

TEST_F(PlainTest, LayersWithoutANumberStandAsTheyCome) {
  for (const char* runtime : kRuntimes) {
    const std::vector<LayerRecord> layers{{"b.k_proj", {{2, 1}}}, {"a\"\\\n层😀", {{1, 0}}}};
    const ExportReport report = to(runtime, layers, path, false);
    EXPECT_NE(report.to_text().find("order"), std::string::npos);
    const VerifyReport read = verify(path, runtime, layers);
    expect_equal(read, 2);
    EXPECT_EQ(read.layers[1].source, layers[1].name);
  }
}

TEST_F(PlainTest, DifferencesAreFound) {
  for (const char* runtime : kRuntimes) {
    auto layers = model_record(kInt8);
    to(runtime, layers, path, false);
    layers[0].params[0].offset = 1;
    layers[1].name = "other.0.v_proj";
    const VerifyReport report = verify(path, runtime, layers);
    EXPECT_EQ(report.layers[0].match, Match::kDifferent);
    EXPECT_EQ(report.layers[1].match, Match::kMissing);
    expect_finding(report, Verdict::kWrong, "other.0.v_proj");
  }
}

TEST_F(PlainTest, AFileCutOffOrChangedAnywhereIsAFinding) {
  for (const char* runtime : kRuntimes) {
    to(runtime, model_record(kInt8, 2), path, false);
    const std::string whole = read_file(path);
    for (std::size_t length = 0; length + 1 < whole.size(); length += 1 + whole.size() / 200) {
      write_file(path, whole.substr(0, length));
      EXPECT_FALSE(verify(path, runtime).ok()) << length;
    }
    std::mt19937 generator(3);
    for (int i = 0; i < 300; ++i) {
      std::string changed = whole;
      for (int j = 0; j < 4; ++j)
        changed[generator() % changed.size()] = static_cast<char>(generator());
      write_file(path, changed);
      const std::string text = verify(path, runtime).to_text();
      EXPECT_FALSE(text.empty());
    }
  }
}

using PlainJsonTest = support::ExportTest;

TEST_F(PlainJsonTest, TheFormIsAsDocumented) {
  const std::string path = folder / "factors.json";
  to("json", {{"layers.0.k_proj", {{0.05221764F, -7}}}}, path, false);
  const Json json = read_json_object(path);
  EXPECT_EQ(json["format"], "amct-kv-factors");
  EXPECT_EQ(json["version"], 1);
  EXPECT_EQ(json["layers"].dump(),
            R"([{"name":"layers.0.k_proj","index":0,"role":"key","dst_type":"INT8",)"
            R"("granularity":"per_tensor","tap":"linear","scale":[0.05221764],"offset":[-7]}])");
}

TEST_F(PlainJsonTest, FirstTokensThatTheFactorsAreNotForAreSaid) {
  const std::string path = folder / "factors.json";
  const std::vector<LayerRecord> layers{
      {.name = "layers.0.k_proj", .params = {{0.5F, 1}}, .sink_tokens = 4},
      {.name = "layers.0.v_proj", .params = {{0.5F, 1}}}};
  to("json", layers, path, false);
  const Json json = read_json_object(path);
  EXPECT_EQ(json["layers"][0]["sink_tokens"], 4);
  EXPECT_FALSE(json["layers"][1].contains("sink_tokens"));
  expect_equal(verify(path, "json", layers), 2);
  std::vector<LayerRecord> others = layers;
  others[1].sink_tokens = 2;
  expect_finding(verify(path, "json", others), Verdict::kWrong, "sink_tokens is 2 in the record");
  others = layers;
  others[0].tap = Tap::kCache;
  expect_finding(verify(path, "json", others), Verdict::kWrong, "the record's tap is 'cache'");
}

TEST_F(PlainJsonTest, EntriesThatMakeNoSenseAreFindings) {
  const std::string path = folder / "factors.json";
  to("json", {{"layers.0.k_proj", {{0.5F, -7}}}}, path, false);
  const Json right = read_json_object(path);
  const auto with = [&](const char* key, const Json& value) {
    Json json = right;
    json["layers"][0][key] = value;
    write_file(path, to_json_text(json));
    return verify(path, "json");
  };
  expect_finding(with("dst_type", "INT5"), Verdict::kFatal, "INT5");
  expect_finding(with("dst_type", 3), Verdict::kFatal, "dst_type");
  expect_finding(with("sink_tokens", -1), Verdict::kFatal, "sink_tokens");
  expect_finding(with("sink_tokens", "4"), Verdict::kFatal, "sink_tokens");
  expect_finding(with("granularity", "per_channel"), Verdict::kFatal, "granularity");
  expect_finding(with("scale", Json::array({1, 2})), Verdict::kFatal, "same length");
  expect_finding(with("scale", Json::array({"1"})), Verdict::kFatal, "number");
  expect_finding(with("scale", Json::array({-1})), Verdict::kWrong, "positive");
  expect_finding(with("scale", Json::array({1e300})), Verdict::kWrong, "positive");
  expect_finding(with("offset", Json::array({1LL << 40})), Verdict::kFatal, "32 bits");
  expect_finding(with("offset", Json::array({1.5})), Verdict::kFatal, "integer");
  for (const char* key : {"format", "version", "convention"}) {
    Json json = right;
    json[key] = "other";
    write_file(path, to_json_text(json));
    expect_finding(verify(path, "json"), Verdict::kFatal, key);
  }
}

TEST(NpzTest, ArraysReadBackAndTheSameArraysGiveTheSameBytes) {
  const support::TempFolder folder;
  const std::vector<NpyArray> arrays{{"a/b.scale", std::vector<float>{1.5F, 2}},
                                     {"层", std::vector<std::int32_t>{-1, 1 << 30, 7}},
                                     {"none", std::vector<float>{}},
                                     {"text", std::string("a层😀\x7F\u0080߿")}};
  const std::string file = to_npz(arrays);
  EXPECT_EQ(to_npz(arrays), file);
  support::write_file(folder / "a.npz", file);
  const std::vector<NpyArray> read = read_npz(folder / "a.npz");
  ASSERT_EQ(read.size(), arrays.size());
  for (std::size_t i = 0; i < read.size(); ++i) {
    EXPECT_EQ(read[i].name, arrays[i].name);
    EXPECT_EQ(read[i].values, arrays[i].values) << read[i].name;
  }
  expect_error<ValueError>([] { to_npz(std::vector<NpyArray>{{std::string("a\0b", 3), {}}}); },
                           {"NUL"});
  expect_error<ValueError>([] { to_npz(std::vector<NpyArray>{{"a\x1b", {}}}); },
                           {"'a\\x1b'", "control characters", "json"});
}

}  // namespace
}  // namespace amct
