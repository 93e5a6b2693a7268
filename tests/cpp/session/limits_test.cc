// What is read may be so large, and no larger: at each limit of amct/core/limits.h, and one past
// it. Those of safetensors, NumPy archives and other JSON are in the tests of these.
#include "amct/core/limits.h"

#include "amct/config/calibration_config.h"
#include "amct/config/definition.h"
#include "amct/config/operator_params.h"
#include "amct/core/error.h"
#include "amct/core/file.h"
#include "amct/export/exporter.h"
#include "amct/export/verify.h"
#include "amct/observe/observer.h"
#include "amct/record/record_file.h"
#include "amct/search/search.h"
#include "amct/session/counts_file.h"
#include "amct/session/session.h"

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <vector>

#include <google/protobuf/struct.pb.h>
#include <gtest/gtest.h>
#include <zip.h>

#include "export/checkpoint.h"
#include "export/json_file.h"
#include "export/npz.h"
#include "record/protobuf_text.h"
#include "session/block_file.h"
#include "support/expect_error.h"
#include "support/files.h"
#include "support/memory.h"
#include "value_counts.pb.h"

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
  /// A counts file of one layer, as somebody else may have written it.
  static void write_counts(const std::string& path, const std::string& name) {
    AMCTCounts::LayerCounts layer;
    layer.set_config(config_of(name));
    layer.set_observer(Observer(Granularity::kPerTensor).serialize());
    CountsWriter writer(path, {});
    writer.add(layer.SerializeAsString());
    writer.commit();
  }
  /// A file that seems to have `size` bytes, and takes no room.
  std::string sparse(std::size_t size) const {
    const std::string path = file("");
    std::filesystem::resize_file(path, size);
    return path;
  }
};

TEST_F(LimitsTest, BytesOfFiles) {
  // At the limit, zeros are read as UTF-8, and found to be no text of that kind.
  const auto expect_limit = [&](std::size_t limit, const char* not_read, auto read) {
    const std::string path = sparse(limit);
    expect_error<ValueError>([&] { read(path); }, {path, not_read});
    std::filesystem::resize_file(path, limit + 1);
    expect_error<ValueError>([&] { read(path); },
                             {path, "larger than " + std::to_string(limit) + " bytes"});
  };
  expect_limit(kMaxConfigFileSize, "not JSON",
               [](const auto& path) { read_config(path, algorithm_catalog()); });
  expect_limit(kMaxConfigFileSize, "not a text of",
               [](const auto& path) { Definition::read(path, algorithm_catalog()); });
  expect_limit(kMaxTextFileSize, "not a text of", [](const auto& path) { read_record(path); });
  expect_limit(kMaxJsonFileSize, "not JSON", [](const auto& path) { read_json_object(path); });
  // What lmdeploy reads.
  expect_limit(kMaxJsonFileSize, "0 pairs", [](const auto& path) {
    const VerifyReport report = runtime_named("lmdeploy").verify(path, {});
    std::string text;
    for (const Finding& finding : report.findings) text += finding.why + ' ';
    throw ValueError(path + ": " + text);
  });
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
  write_counts(path, kAtLimit);
  EXPECT_EQ(CountsReader(path).next()->config.name, kAtLimit);
  write_counts(path, kPastLimit);
  expect_error<ValueError>([&] { CountsReader(path).next(); }, {path, "4096 bytes"});
  std::filesystem::remove(path);
  CalibrationConfig config =
      default_config(std::vector<std::string>{kPastLimit}, algorithm_catalog());
  expect_error<ValueError>([&] { to_json(config, algorithm_catalog()); }, {"4096 bytes"});
  expect_error<ValueError>([&] { const Session session(config, path); }, {"4096 bytes"});
  Session op(parse_operator_params({}, algorithm_catalog()), path);
  const float x = 1;
  const TensorView view = TensorView::contiguous(&x, DType::kFloat32, {1, 1});
  LayerConfig longer_name = config.layers[0];
  Observer observer(Granularity::kPerTensor);
  observer.observe(view);
  CountsWriter counts(folder / "counts", {});
  expect_error<ValueError>([&] { counts.add(longer_name, 0, observer); }, {"4096 bytes"});
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
  // Nor is it written, at once or layer by layer.
  const std::string path = folder / "record.txt";
  std::vector<LayerRecord> layers(kMaxLayers);
  for (std::size_t i = 0; i < kMaxLayers; ++i)
    layers[i] = {.name = std::to_string(i), .params = {{1, 0}}};
  merge_into_record(path, layers, {});
  EXPECT_EQ(read_record(path).size(), kMaxLayers);
  const std::vector<LayerRecord> one_more{{.name = "a", .params = {{1, 0}}}};
  expect_error<ValueError>([&] { merge_into_record(path, one_more, {}); }, {path, "65536 layers"});
  layers.push_back(one_more[0]);
  expect_error<ValueError>([&] { write_record(path, layers); }, {path, "65536 layers"});
  // Whose factors are there already are not one more.
  merge_into_record(path, std::span(layers).first(1), {});
  EXPECT_EQ(read_record(path).size(), kMaxLayers);
  // Entries without factors of the cache are not counted, and become layers with them.
  support::write_file(path, text.substr(text.find('}') + 2) + "record { key: '0' }");
  EXPECT_EQ(read_record(path).size(), kMaxLayers - 1);
  merge_into_record(path, std::span(layers).first(1), {});
  EXPECT_EQ(read_record(path).size(), kMaxLayers);
}

/// The record's own schema does not go so deep; google.protobuf.Value has no end.
TEST_F(LimitsTest, DepthOfProtobufText) {
  const auto parse_nested = [](int levels) {
    std::string text;
    for (int i = 0; i < levels; ++i) text += i % 2 == 0 ? "list_value { " : "values { ";
    for (int i = 0; i < levels; ++i) text += "} ";
    google::protobuf::Value message;
    parse_protobuf_text(text, "file", message);
  };
  parse_nested(kMaxProtobufDepth);
  expect_error<ValueError>([&] { parse_nested(kMaxProtobufDepth + 1); },
                           {"file: not a text of Value", "too deep"});
  // What is deeper than the schema goes has no name there.
  std::string text = "prune_record { producer { name: 'a' attr { ";
  for (int i = 0; i < 1'000'000; ++i) text += "x { ";
  expect_error<ValueError>([&] { read_record(file(text)); }, {"file: not a text of", "\"x\""});
}

TEST_F(LimitsTest, NumberOfLayersOfAnOperator) {
  OperatorParams params = parse_operator_params({}, algorithm_catalog());
  params.batch_num = 2;  // none is finished, so that nothing is written
  Session op(params, folder / "record.txt");
  const float x = 1;
  const TensorView view = TensorView::contiguous(&x, DType::kFloat32, {1, 1});
  for (std::size_t i = 0; i < kMaxLayers; ++i) op.observe(std::to_string(i), view);
  expect_error<ValueError>([&] { op.observe("a", view); }, {"an operator", "65536 layers"});
  EXPECT_EQ(op.unfinished().size(), kMaxLayers);
}

TEST_F(LimitsTest, NumberOfLayersOfACountsFile) {
  const std::vector<std::string> one{"n"};
  LayerConfig config = default_config(one, algorithm_catalog()).layers[0];
  Observer observer(Granularity::kPerTensor);
  const float x = 1;
  observer.observe(TensorView::contiguous(&x, DType::kFloat32, {1, 1}));
  CountsWriter writer(folder / "counts", {});
  CountsWriter too_many(folder / "too_many", {});
  for (std::size_t i = 0; i < kMaxLayers; ++i) {
    config.name = std::to_string(i);
    writer.add(config, i, observer);
    too_many.add(writer.layer(i));
  }
  expect_error<ValueError>([&] { writer.add(config, kMaxLayers, observer); },
                           {folder / "counts", "65536 layers"});
  writer.commit();
  too_many.add(too_many.layer(0));  // as bytes, which are not looked into
  too_many.commit();
  const auto count = [&](const char* file) {
    std::size_t layers = 0;
    for (CountsReader reader(folder / file); reader.next();) ++layers;
    return layers;
  };
  EXPECT_EQ(count("counts"), kMaxLayers);
  expect_error<ValueError>([&] { count("too_many"); }, {folder / "too_many", "65536 layers"});
}

/// An observer of minimum and maximum has no memory that grows with channels before they are read.
TEST_F(LimitsTest, ChannelsAndHeadsOfCounts) {
  const auto channels = [](std::int64_t number) {
    AMCTCounts::ObserverState state;
    state.set_range_only(true);
    state.set_batches(1);
    state.set_rows(1);
    state.set_channels(number);
    AMCTCounts::Range& range = *state.add_ranges();
    range.set_min(-1);
    range.set_max(1);
    return Observer::deserialize(state.SerializeAsString()).channels();
  };
  EXPECT_EQ(channels(kMaxCountedChannels), kMaxCountedChannels);
  expect_error<ValueError>([&] { channels(kMaxCountedChannels + 1); }, {"too many channels"});
  AMCTCounts::ObserverState state;
  state.set_granularity(2);
  state.set_range_only(true);
  for (std::int64_t i = 0; i < kMaxCountedHeads; ++i) state.add_heads();
  if (!support::kSanitized) {
    EXPECT_EQ(Observer::deserialize(state.SerializeAsString()).batches(), 0);
  }
  state.add_heads();
  expect_error<ValueError>([&] { Observer::deserialize(state.SerializeAsString()); },
                           {"heads do not fit"});
}

TEST_F(LimitsTest, NumbersOfAModel) {
  const auto layers = [](std::int64_t number) {
    return model_config(
        Json{{"num_hidden_layers", number}, {"num_key_value_heads", number}, {"head_dim", number}});
  };
  const ModelConfig most = layers(kMaxModelSize);
  EXPECT_EQ(most.layers, kMaxModelSize);
  EXPECT_EQ(most.heads, kMaxModelSize);
  EXPECT_EQ(most.head_dim, kMaxModelSize);
  const ModelConfig more = layers(kMaxModelSize + 1);
  EXPECT_FALSE(more.layers || more.heads || more.head_dim);
}

TEST_F(LimitsTest, CandidatesOfASearch) {
  OptionMap options = find_spec(algorithm_catalog(), "ifmr")->defaults();
  const AlgorithmSpec& spec = *find_spec(algorithm_catalog(), "ifmr");
  options["search_clip_min"] = false;
  options["search_range"] = std::vector<double>{1, 2};
  options["search_step"] = 1.0 / 1'000'000;
  EXPECT_EQ(spec.conflict(options), "");
  options["search_step"] = 1.0 / 1'000'001;
  EXPECT_NE(spec.conflict(options).find("more than 1,000,000 candidates"), std::string::npos);
  options["search_clip_min"] = true;  // a thousand of each end
  options["search_range"] = std::vector<double>{1, 1001};
  options["search_step"] = 1.0;
  EXPECT_EQ(spec.conflict(options), "");
  options["search_range"] = std::vector<double>{1, 1002};
  EXPECT_NE(spec.conflict(options).find("more than 1,000,000 candidates"), std::string::npos);
}

TEST_F(LimitsTest, BytesOfNumpyArchives) {
  // At the limit it is looked into, and found to be none.
  expect_error<ValueError>([&] { read_npz(sparse(kMaxNpzFile)); }, {"file: "});
  expect_error<ValueError>([&] { read_npz(sparse(kMaxNpzFile + 1)); }, {"too large for factors"});
  // 64 MiB four times are 256 MiB; entries that are no arrays count, too.
  const auto archive = [&](std::size_t last) {
    const std::string path = folder / "all.npz";
    int code = 0;
    zip_t* zip = zip_open(path.c_str(), ZIP_CREATE | ZIP_TRUNCATE, &code);
    ASSERT_NE(zip, nullptr);
    const std::string zeros(kMaxNpyArray + 1, '\0');
    for (int i = 0; i < 5; ++i) {
      const std::size_t size = i < 4 ? kMaxNpyArray : last;
      zip_source_t* source = zip_source_buffer(zip, zeros.data(), size, 0);
      const auto index = zip_file_add(zip, std::to_string(i).c_str(), source, 0);
      ASSERT_GE(index, 0);
      zip_set_file_compression(zip, static_cast<zip_uint64_t>(index), ZIP_CM_DEFLATE, 1);
    }
    ASSERT_EQ(zip_close(zip), 0);
  };
  archive(0);
  EXPECT_TRUE(read_npz(folder / "all.npz").empty());
  archive(1);
  expect_error<ValueError>([&] { read_npz(folder / "all.npz"); }, {"4", "too large for factors"});
}

TEST_F(LimitsTest, BlocksOfCountsFilesAndSnapshots) {
  const auto refuses_blocks = [&](const std::string& magic, const char* name, auto read) {
    const auto read_block = [&](std::uint64_t size) {
      std::string bytes = magic + '\x01';
      for (int i = 0; i < 8; ++i) bytes += static_cast<char>((size >> (8 * i)) & 0xFF);
      const std::string path = file(bytes + std::string(4, '\0'));
      std::filesystem::resize_file(path, std::size_t{1} << 40);
      read(path);
    };
    // Read, and found wrong; or not read at all.
    expect_error<ValueError>([&] { read_block(std::uint64_t{1} << 20); }, {name, "checksum"});
    for (const std::uint64_t size : {kMaxBlockSize + 1, std::uint64_t{1} << 63, ~std::uint64_t{0}})
      expect_error<ValueError>([&] { read_block(size); }, {name, "a block is longer than"});
  };
  refuses_blocks("AMCTcnt", "counts file", [](const auto& path) { CountsReader reader(path); });
  Session session(default_config(std::vector<std::string>{"n"}, algorithm_catalog()),
                  folder / "record.txt");
  refuses_blocks("AMCTsnp", "snapshot", [&](const auto& path) { session.restore(path); });
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
