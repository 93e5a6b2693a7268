// What is read may be so large, and no larger: at each limit of amct/core/limits.h, and one past
// it. Those of safetensors, NumPy archives and other JSON are in the tests of these.
#include "amct/core/limits.h"

#include "amct/config/calibration_config.h"
#include "amct/config/definition.h"
#include "amct/config/operator_params.h"
#include "amct/core/error.h"
#include "amct/core/file.h"
#include "amct/record/record_file.h"
#include "amct/search/search.h"
#include "amct/session/counts_file.h"
#include "amct/session/session.h"

#include <filesystem>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "session/block_file.h"
#include "support/expect_error.h"
#include "support/files.h"

namespace amct {
namespace {

using support::expect_error;

const std::string kAtLimit(kMaxLayerName, 'n');
const std::string kPastLimit(kMaxLayerName + 1, 'n');

std::string config_of(const std::string& name) {
  return "{\"" + name + R"(": {"kv_data_quant_config": {}}})";
}
CalibrationConfig parse(const std::string& text) {
  return parse_config(text, "c.json", algorithm_catalog());
}
Definition define(const std::string& text) {
  return Definition::parse(text, "d.cfg", algorithm_catalog());
}

/// Names 0, 1, ..., each between `before` and `after`.
std::string many(std::size_t count, const std::string& before, const std::string& after) {
  std::string text;
  for (std::size_t i = 0; i < count; ++i)
    text.append(before).append(std::to_string(i)).append(after);
  return text;
}

class LimitsTest : public support::FolderTest {
 protected:
  std::string file(const std::string& content) const {
    support::write_file(folder / "file", content);
    return folder / "file";
  }
  /// A file that seems to have `size` bytes, and takes no room.
  std::string sparse(std::size_t size) const {
    const std::string path = file("");
    std::filesystem::resize_file(path, size);
    return path;
  }
};

TEST_F(LimitsTest, BytesOfFiles) {
  const auto too_large = [&](std::size_t limit, auto read) {
    const std::string path = sparse(limit + 1);
    expect_error<ValueError>([&] { read(path); },
                             {path, "larger than " + std::to_string(limit) + " bytes"});
  };
  too_large(kMaxConfigFileSize, [](const auto& path) { read_config(path, algorithm_catalog()); });
  too_large(kMaxConfigFileSize,
            [](const auto& path) { Definition::read(path, algorithm_catalog()); });
  too_large(kMaxTextFileSize, [](const auto& path) { read_record(path); });
  // NULs are no configuration, but as many as may be.
  expect_error<ValueError>([&] { read_config(sparse(kMaxConfigFileSize), algorithm_catalog()); },
                           {"not JSON"});
}

TEST_F(LimitsTest, DepthOfAConfiguration) {
  const auto nested = [](std::size_t levels) {
    return "{\"a\": " + std::string(levels - 1, '[') + std::string(levels - 1, ']') + "}";
  };
  expect_error<ValueError>([&] { parse(nested(kMaxConfigDepth)); }, {"neither a known key"});
  expect_error<ValueError>([&] { parse(nested(kMaxConfigDepth + 1)); },
                           {"c.json: JSON is nested too deeply, more than 16 levels"});
}

TEST_F(LimitsTest, LengthOfNames) {
  const std::string path = folder / "record.txt";
  EXPECT_EQ(parse(config_of(kAtLimit)).layers[0].name, kAtLimit);
  expect_error<ValueError>([] { parse(config_of(kPastLimit)); }, {"c.json: ", "4096 bytes"});
  const auto listed = [](const std::string& name) {
    return "kv_cache_quant_config { quant_layers: '" + name + "' }";
  };
  EXPECT_EQ(define(listed(kAtLimit)).layers()[0], kAtLimit);
  expect_error<ValueError>([&] { define(listed(kPastLimit)); }, {"d.cfg: ", "4096 bytes"});
  merge_into_record(path, std::vector<LayerRecord>{{.name = kAtLimit, .params = {{1, 0}}}}, {});
  EXPECT_EQ(read_record(path)[0].name, kAtLimit);
  const std::vector<LayerRecord> longer{{.name = kPastLimit, .params = {{1, 0}}}};
  expect_error<ValueError>([&] { merge_into_record(path, longer, {}); }, {path, "4096 bytes"});
  EXPECT_EQ(read_record(path).size(), 1U);
  support::write_file(path,
                      "record { key: '" + kPastLimit + "' kv_cache_value { scale: 1 offset: 0 } }");
  expect_error<ValueError>([&] { read_record(path); }, {path, "4096 bytes"});
  std::filesystem::remove(path);
  CalibrationConfig config =
      default_config(std::vector<std::string>{kPastLimit}, algorithm_catalog());
  expect_error<ValueError>([&] { to_json(config, algorithm_catalog()); }, {"4096 bytes"});
  expect_error<ValueError>([&] { const Session session(config, path); }, {"4096 bytes"});
  Session op(parse_operator_params({}, algorithm_catalog()), path);
  const float x = 1;
  const TensorView view = TensorView::contiguous(&x, DType::kFloat32, {1, 1});
  op.observe(kAtLimit, view);
  expect_error<ValueError>([&] { op.observe(kPastLimit, view); }, {"4096 bytes"});
  EXPECT_EQ(read_record(path)[0].name, kAtLimit);
}

TEST_F(LimitsTest, NumberOfLayersOfAConfiguration) {
  const std::string begin = R"({"batch_num": 1)";
  const std::string text = begin + many(kMaxLayers, ",\"", R"(":{"kv_data_quant_config":{}})");
  CalibrationConfig config = parse(text + "}");
  EXPECT_EQ(config.layers.size(), kMaxLayers);
  expect_error<ValueError>([&] { parse(text + R"(,"a":{"kv_data_quant_config":{}}})"); },
                           {"c.json: ", "65536 layers"});
  // So many are no question of minutes.
  Session session(config, folder / "record.txt",
                  {.writing_share = 0.01, .counts_file = folder / "counts"});
  const float x = 1;
  const TensorView view = TensorView::contiguous(&x, DType::kFloat32, {1, 1});
  for (int i = 0; i < 1000; ++i) session.observe(std::to_string(i), view);
  session.finish();
  EXPECT_EQ(session.results().size(), 1000U);
  EXPECT_EQ(read_record(folder / "record.txt").size(), 1000U);
  config.layers.emplace_back(config.layers[0]).name = "a";
  expect_error<ValueError>([&] { const Session more(config, folder / "r"); }, {"65536 layers"});
  expect_error<ValueError>([&] { to_json(config, algorithm_catalog()); }, {"65536 layers"});
}

TEST_F(LimitsTest, NumberOfLayersOfADefinition) {
  const std::string text = "kv_cache_quant_config { " + many(kMaxLayers, "quant_layers:'", "' ");
  EXPECT_EQ(define(text + "}").layers().size(), kMaxLayers);
  expect_error<ValueError>([&] { define(text + "quant_layers:'a' }"); }, {"d.cfg: ", "65536"});
  const std::string patterns =
      "override_layers_configs { " + many(kMaxPatterns, "layer_name:'*.", "' ");
  EXPECT_EQ(define(patterns + "}").layers().size(), kMaxPatterns);
  expect_error<ValueError>([&] { define(patterns + "layer_name:'*' }"); },
                           {"d.cfg: ", "1024 patterns"});
}

TEST_F(LimitsTest, NumberOfLayersOfARecord) {
  const std::string text = many(kMaxLayers, "record{key:'", "' kv_cache_value{scale:1 offset:0}}");
  EXPECT_EQ(read_record(file(text)).size(), kMaxLayers);
  expect_error<ValueError>(
      [&] { read_record(file(text + "record{key:'a' kv_cache_value{scale:1 offset:0}}")); },
      {"file: ", "65536 layers"});
}

TEST_F(LimitsTest, DepthOfProtobufText) {
  // Deeper than the schema goes, nothing has a name.
  std::string text = "prune_record { producer { name: 'a' attr { ";
  expect_error<ValueError>([&] { read_record(file(text)); }, {"file: not a text of"});
  for (int i = 0; i < 1'000'000; ++i) text += "x { ";
  expect_error<ValueError>([&] { read_record(file(text)); }, {"file: not a text of", "\"x\""});
}

TEST_F(LimitsTest, BlocksOfCountsFiles) {
  const auto read = [&](std::uint64_t size) {
    std::string bytes("AMCTcnt\x01");
    for (int i = 0; i < 8; ++i) bytes += static_cast<char>((size >> (8 * i)) & 0xFF);
    const std::string path = file(bytes + std::string(4, '\0'));
    std::filesystem::resize_file(path, std::size_t{1} << 40);
    CountsReader reader(path);
  };
  // Read, and found wrong; or not read at all.
  expect_error<ValueError>([&] { read(std::uint64_t{1} << 20); }, {"checksum"});
  for (const std::uint64_t size : {kMaxBlockSize + 1, std::uint64_t{1} << 63, ~std::uint64_t{0}})
    expect_error<ValueError>([&] { read(size); }, {"a block is longer than"});
}

TEST_F(LimitsTest, SettingsOfTheConfigurationAreNoNamesOfLayers) {
  for (const char* name : {"batch_num", "activation_offset"}) {
    const CalibrationConfig config =
        default_config(std::vector<std::string>{name}, algorithm_catalog());
    expect_error<ValueError>([&] { to_json(config, algorithm_catalog()); }, {name, "setting"});
  }
}

}  // namespace
}  // namespace amct
