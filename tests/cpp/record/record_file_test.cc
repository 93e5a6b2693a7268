#include "amct/record/record_file.h"

#include "amct/core/error.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "support/expect_error.h"
#include "support/files.h"

namespace amct {
namespace {

using support::expect_error;
using support::read_file;
using support::write_file;

class RecordTest : public support::FolderTest {
 protected:
  std::vector<std::string> merge(const std::vector<LayerRecord>& layers,
                                 const std::vector<std::string>& order = {}) {
    return merge_into_record(path, layers, order);
  }
  std::vector<std::string> names() const {
    std::vector<std::string> result;
    for (const LayerRecord& layer : read_record(path)) result.push_back(layer.name);
    return result;
  }
  const std::string path = folder / "record.txt";
};

using Names = std::vector<std::string>;

TEST_F(RecordTest, TextIsWhatTheFormatSays) {
  merge({{"layers.0.k_proj", {{0.05221764F, -7}}}, {"c", {{1.0F, 1}, {9.5e-05F, -128}}}});
  EXPECT_EQ(read_file(path),
            "record {\n"
            "  key: \"layers.0.k_proj\"\n"
            "  kv_cache_value {\n"
            "    scale: 0.05221764\n"
            "    offset: -7\n"
            "  }\n"
            "}\n"
            "record {\n"
            "  key: \"c\"\n"
            "  kv_cache_value {\n"
            "    scale: 1.0\n"
            "    scale: 9.5e-05\n"
            "    offset: 1\n"
            "    offset: -128\n"
            "  }\n"
            "}\n");
}

TEST_F(RecordTest, EmptyRecordHoldsNoLayers) {
  write_file(path, "old");
  write_empty_record(path);
  EXPECT_EQ(read_file(path), "");
  EXPECT_TRUE(read_record(path).empty());
  merge({});
  EXPECT_TRUE(read_record(path).empty());
}

TEST_F(RecordTest, EveryScaleReadsBackAsTheSameBits) {
  std::mt19937 generator(1);
  LayerRecord layer{"l", {}};
  for (const float edge :
       {std::numeric_limits<float>::min(), std::numeric_limits<float>::max(),
        std::numeric_limits<float>::denorm_min(), 1.1920929e-07F, 1e-4F, 16777216.0F, 0.1F}) {
    layer.params.push_back({edge, 0});
  }
  while (layer.params.size() < 5000) {
    const auto scale = std::fabs(std::bit_cast<float>(static_cast<std::uint32_t>(generator())));
    if (!std::isfinite(scale) || scale == 0) continue;
    layer.params.push_back({scale, static_cast<std::int32_t>(generator() % 256) - 128});
  }
  merge({layer});
  EXPECT_EQ(read_record(path), std::vector<LayerRecord>{layer});
  const std::string before = read_file(path);
  EXPECT_EQ(merge({layer}), Names{"l"});
  EXPECT_EQ(read_file(path), before);
}

TEST_F(RecordTest, ReplacedLayersAreReturnedAndStayInPlace) {
  EXPECT_TRUE(merge({{"a", {{1, 1}}}, {"b", {{2, 2}}}, {"c", {{3, 3}}}}).empty());
  EXPECT_EQ(merge({{"c", {{5, 5}}}, {"new", {{6, 6}}}, {"a", {{4, 4}, {4, 5}}}}),
            (Names{"c", "a"}));
  EXPECT_EQ(read_record(path),
            (std::vector<LayerRecord>{
                {"a", {{4, 4}, {4, 5}}}, {"b", {{2, 2}}}, {"c", {{5, 5}}}, {"new", {{6, 6}}}}));
}

TEST_F(RecordTest, LayersStandInTheOrderGivenWhateverOrderTheyCome) {
  const Names order{"a", "b", "c", "d"};
  Names sequence{"a", "b", "c", "d"};
  do {
    write_empty_record(path);
    for (const std::string& name : sequence) merge({{name, {{1, 0}}}}, order);
    ASSERT_EQ(names(), order);
    write_empty_record(path);
    merge({{sequence[0], {{1, 0}}}, {sequence[1], {{1, 0}}}}, order);
    merge({{sequence[2], {{1, 0}}}, {sequence[3], {{1, 0}}}}, order);
    ASSERT_EQ(names(), order);
  } while (std::next_permutation(sequence.begin(), sequence.end()));
}

TEST_F(RecordTest, AFileOfAnotherOrderIsPutInOrder) {
  merge({{"c", {{1, 0}}}, {"a", {{1, 0}}}});  // an earlier run, with another configuration
  merge({{"b", {{1, 0}}}}, Names{"a", "b", "c"});
  EXPECT_EQ(names(), (Names{"a", "b", "c"}));
  merge({{"b", {{2, 0}}}}, Names{"c", "b", "a"});
  EXPECT_EQ(names(), (Names{"c", "b", "a"}));
}

TEST_F(RecordTest, LayersOutsideTheOrderKeepTheirPlaces) {
  merge({{"x", {{1, 0}}}, {"c", {{1, 0}}}, {"y", {{1, 0}}}, {"a", {{1, 0}}}});
  merge({{"b", {{1, 0}}}}, Names{"a", "b", "c"});
  EXPECT_EQ(names(), (Names{"x", "a", "y", "b", "c"}));
  merge({{"z", {{1, 0}}}}, Names{"a", "b", "c"});
  EXPECT_EQ(names(), (Names{"x", "a", "y", "b", "c", "z"}));
}

TEST_F(RecordTest, ExtensionsComeBackAndAreWrittenOnlyWhereTheySaySomething) {
  for (const Grid& grid : grids()) {
    for (const Tap tap : {Tap::kLinear, Tap::kCache}) {
      for (const std::optional<KVRole> role :
           {std::optional<KVRole>(), std::optional(KVRole::kKey), std::optional(KVRole::kValue)}) {
        const LayerRecord layer{"a.to_k", {{0.5F, 0}}, false, grid, tap, role};
        write_empty_record(path);
        merge({layer});
        EXPECT_EQ(read_record(path), std::vector{layer});
        const std::string text = support::read_file(path);
        EXPECT_EQ(text.find("dst_type") != std::string::npos, grid != kInt8);
        EXPECT_EQ(text.find("tap") != std::string::npos, tap == Tap::kCache);
        EXPECT_EQ(text.find("role") != std::string::npos, role.has_value());
      }
    }
  }
}

TEST_F(RecordTest, TheRoleIsLeftToTheNameWhereThatSaysIt) {
  merge({{"a.k_proj", {{1, 0}}, false, kInt8, Tap::kLinear, KVRole::kKey},
         {"b.qkv.value", {{1, 0}}, false, kInt8, Tap::kLinear, KVRole::kValue},
         {"c.k_proj", {{1, 0}}, false, kInt8, Tap::kLinear, KVRole::kValue}});
  const std::vector<LayerRecord> layers = read_record(path);
  EXPECT_EQ(layers.at(0).known_role(), KVRole::kKey);
  EXPECT_EQ(layers.at(1).known_role(), KVRole::kValue);
  EXPECT_EQ(layers.at(2).known_role(), KVRole::kValue);
  const std::string text = support::read_file(path);
  EXPECT_EQ(text.find("role"), text.rfind("role"));
}

TEST_F(RecordTest, AnUnknownFormatIsRefused) {
  support::write_file(path,
                      "record { key: 'a' kv_cache_value { scale: 1 offset: 0 dst_type: 'INT5' } }");
  expect_error<ValueError>([&] { read_record(path); }, {path, "layer 'a'", "dst_type", "INT5"});
}

TEST_F(RecordTest, TheSameLayerTwiceInOneCallIsWrittenOnceAndTheLastCounts) {
  merge({{"a", {{1, 1}}}, {"a", {{2, 2}}}});
  EXPECT_EQ(read_record(path), (std::vector<LayerRecord>{{"a", {{2, 2}}}}));
}

/// What other features of the toolkit write into the same file.
constexpr const char* kOtherFeatures = R"(record {
  key: "conv1"
  value {
    scale_d: 0.5
    offset_d: -3
    scale_w: 0.25
    scale_w: 0.125
    offset_w: 0
    offset_w: 1
    shift_bit: 7
    tensor_balance_factor: 1.5
    skip_fusion: true
    dst_type: "INT4"
    act_type: "FP8"
    wts_type: "INT8"
    fakequant_precision_mode: "FORCE"
    scale_h: 2.0
    offset_h: 4
    scale_r: 0.75
    offset_r: 9
  }
}
record {
  key: "k_proj"
  value {
    scale_d: 0.0625
  }
}
prune_record {
  producer {
    name: "conv1"
    attr {
      name: "ratio"
      type: FLOATS
      f: 0.5
      i: -9000000000
      s: "bytes\001"
      floats: 1.5
      ints: 3
      strings: "x"
    }
  }
  consumer {
    name: "conv2"
  }
  selective_prune {
    name: "conv3"
  }
}
)";

TEST_F(RecordTest, FieldsOfOtherFeaturesArePassedOverAndKept) {
  write_file(path, kOtherFeatures);
  EXPECT_TRUE(read_record(path).empty());
  // Only factors that are replaced count as replaced; k_proj had none of this kind.
  EXPECT_TRUE(merge({{"k_proj", {{0.1F, 5}}}, {"v_proj", {{0.2F, 6}}}}).empty());
  EXPECT_EQ(names(), (Names{"k_proj", "v_proj"}));
  std::string text = read_file(path);
  const std::string kv_k = "  kv_cache_value {\n    scale: 0.1\n    offset: 5\n  }\n";
  const std::string kv_v =
      "record {\n  key: \"v_proj\"\n  kv_cache_value {\n    scale: 0.2\n    offset: 6\n  }\n}\n";
  for (const std::string& addition : {kv_k, kv_v}) {
    const std::size_t at = text.find(addition);
    ASSERT_NE(at, std::string::npos) << text;
    text.erase(at, addition.size());
  }
  EXPECT_EQ(text, kOtherFeatures);
}

TEST_F(RecordTest, FactorsInASecondEntryOfTheSameKeyAreReplacedThere) {
  write_file(path, R"(record { key: "a" value { scale_d: 0.5 } }
                      record { key: "a" kv_cache_value { scale: 1 offset: 2 } })");
  EXPECT_EQ(merge({{"a", {{3, 4}}}}), Names{"a"});
  EXPECT_EQ(read_record(path), (std::vector<LayerRecord>{{"a", {{3, 4}}}}));
  EXPECT_NE(read_file(path).find("scale_d: 0.5"), std::string::npos);
}

TEST_F(RecordTest, HandWrittenTextIsRead) {
  write_file(
      path,
      "# a comment\nrecord < key: 'a' kv_cache_value: { scale: [1, 2e-3] offset: [-1, +0x10] } >");
  EXPECT_THROW(read_record(path), ValueError);  // protobuf text has no unary plus
  write_file(
      path,
      "# a comment\nrecord < key: 'a' kv_cache_value: { scale: [1, 2e-3] offset: [-1, 0x10] } >");
  EXPECT_EQ(read_record(path), (std::vector<LayerRecord>{{"a", {{1.0F, -1}, {2e-3F, 16}}}}));
}

TEST_F(RecordTest, NamesOfAnyTextReadBack) {
  const std::vector<LayerRecord> layers{
      {"层.k_proj", {{1, 0}}}, {"a\"b\\c\n", {{1, 0}}}, {"", {{1, 0}}}};
  merge(layers);
  EXPECT_EQ(read_record(path), layers);
}

TEST_F(RecordTest, RecordsThatMakeNoSenseAreRefusedWithTheLayersName) {
  const auto refuse = [&](const std::string& text, std::initializer_list<std::string_view> parts) {
    write_file(path, text);
    const std::string message = expect_error<ValueError>([&] { read_record(path); }, parts);
    EXPECT_NE(message.find(path), std::string::npos) << message;
  };
  const auto entry = [](const std::string& value) {
    return "record { key: \"a.k\" kv_cache_value { " + value + " } }";
  };
  refuse(entry("scale: 1"), {"'a.k'", "1 scales", "0 offsets"});
  refuse(entry("scale: 1 offset: 0 offset: 1"), {"'a.k'", "2 offsets"});
  refuse(entry(""), {"'a.k'", "0 scales"});
  refuse(entry("scale: 0 offset: 0"), {"'a.k'", "scale 0.0"});
  refuse(entry("scale: -0.5 offset: 0"), {"'a.k'", "scale -0.5"});
  refuse(entry("scale: nan offset: 0"), {"'a.k'", "scale nan"});
  refuse(entry("scale: inf offset: 0"), {"'a.k'", "scale inf"});
  refuse(entry("scale: 1 offset: 0") + entry("scale: 1 offset: 0"), {"'a.k'", "twice"});
  refuse("record { key: \"a\\377\" kv_cache_value { scale: 1 offset: 0 } }", {"UTF-8"});
  refuse("record {\n  kye: \"a\"\n}", {"line 2, column", "kye"});
  refuse("not a record at all", {"line 1"});
  refuse("record { key: \"a\"", {"line 1"});
  refuse("prune_record { producer { } }", {"name"});  // a required field is missing
}

TEST_F(RecordTest, AMissingRecordIsAnIoErrorOnReadingAndFineForMerging) {
  expect_error<IoError>([&] { read_record(path); }, {path});
  EXPECT_TRUE(merge({{"a", {{1, 0}}}}).empty());
  EXPECT_EQ(names(), Names{"a"});
  EXPECT_EQ(folder.names(), Names{"record.txt"});
}

TEST_F(RecordTest, HeadsAreWrittenAndReadBack) {
  const std::vector<LayerRecord> layers{{"heads", {{1, 2}, {3, 4}}, true},
                                        {"channels", {{1, 2}, {3, 4}}}};
  merge(layers, {});
  EXPECT_EQ(read_record(path), layers);
  const std::string text = support::read_file(path);
  EXPECT_NE(text.find("head_num: 2"), std::string::npos);
  EXPECT_EQ(text.find("head_num"), text.rfind("head_num"));
  support::write_file(path,
                      "record { key: 'a' kv_cache_value { scale: 1 offset: 0 head_num: 2 } }");
  expect_error<ValueError>([&] { read_record(path); }, {"'a'", "1 scales but 2 heads"});
}

}  // namespace
}  // namespace amct
