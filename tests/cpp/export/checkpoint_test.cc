// Exporting into a checkpoint folder: what is added, what stays, and what is refused.
#include "export/checkpoint.h"

#include "amct/core/error.h"

#include <filesystem>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "export/support.h"
#include "support/expect_error.h"

namespace amct {
namespace {

using support::expect_equal;
using support::expect_error;
using support::expect_finding;
using support::ExportTest;
using support::model_record;
using support::read_file;
using support::write_file;

class CheckpointTest : public ExportTest {
 protected:
  std::string in(const std::string& name) const { return checkpoint + "/" + name; }
  Json json(const std::string& name) const { return read_json_object(in(name)); }
  std::vector<std::string> names() const {
    std::vector<std::string> names;
    for (const auto& entry : std::filesystem::directory_iterator(checkpoint)) {
      names.push_back(entry.path().filename().string());
    }
    std::ranges::sort(names);
    return names;
  }
};

TEST_F(CheckpointTest, TheConfigurationKeepsWhatItHeldAndItsOrder) {
  const Json before = json("config.json");
  to("vllm", model_record(kFp8E4M3));
  Json after = json("config.json");
  EXPECT_EQ(std::prev(after.end()).key(), "quantization_config");
  after.erase("quantization_config");
  EXPECT_EQ(after.dump(), before.dump());
  EXPECT_NE(read_file(in("config.json")).find("\"rms_norm_eps\": 1e-05"), std::string::npos);
}

TEST_F(CheckpointTest, ASingleFileGetsAnIndexOfAllTensors) {
  const ExportReport report = to("vllm", model_record(kFp8E4M3));
  EXPECT_EQ(names(),
            (std::vector<std::string>{"config.json", kShardName, "model.safetensors", kIndexName}));
  const Json index = json(kIndexName);
  const SafetensorsFile weights(in("model.safetensors"));
  const SafetensorsFile shard(in(kShardName));
  EXPECT_EQ(index["metadata"]["total_size"], weights.data_size() + shard.data_size());
  EXPECT_EQ(index["weight_map"].size(), weights.tensors().size() + shard.tensors().size());
  for (const TensorInfo& tensor : weights.tensors()) {
    EXPECT_EQ(index["weight_map"][tensor.name], "model.safetensors");
  }
  for (const TensorInfo& tensor : shard.tensors()) {
    EXPECT_EQ(index["weight_map"][tensor.name], kShardName);
  }
  EXPECT_NE(report.to_text().find("transformers prefers model.safetensors"), std::string::npos);
}

TEST_F(CheckpointTest, AnIndexIsExtended) {
  checkpoint = folder / "sharded";
  support::write_sharded_checkpoint(checkpoint);
  const Json before = json(kIndexName);
  to("vllm", model_record(kFp8E4M3));
  const Json after = json(kIndexName);
  EXPECT_EQ(after["metadata"]["more"], "kept");
  EXPECT_EQ(after["metadata"]["total_size"], before["metadata"]["total_size"].get<int>() + 16);
  EXPECT_EQ(after["weight_map"].size(), before["weight_map"].size() + 4);
  for (const auto& [name, file] : before["weight_map"].items()) {
    EXPECT_EQ(after["weight_map"][name], file);
  }
  expect_equal(verify(checkpoint, "vllm", model_record(kFp8E4M3)));
}

TEST_F(CheckpointTest, DoingItAgainReplacesTheFirst) {
  for (const bool sharded : {false, true}) {
    checkpoint = folder / (sharded ? "two" : "one");
    (sharded ? support::write_sharded_checkpoint : support::write_checkpoint)(checkpoint);
    for (const char* runtime : {"vllm", "modelopt", "tensorrt-llm", "vllm-ascend", "msmodelslim"}) {
      const std::string copy = folder / (std::string(runtime) + (sharded ? "2" : "1"));
      std::filesystem::copy(checkpoint, copy);
      const Grid& grid = runtime_named(runtime).capability.grids.front();
      ExportOptions options;
      options.model_folder = copy;
      auto layers = model_record(grid);
      export_layers(layers, runtime, options);
      const std::string index = read_file(copy + "/" + kIndexName);
      const std::string config = read_file(copy + "/config.json");
      for (LayerRecord& layer : layers) layer.params[0].scale *= 1.5F;
      export_layers(layers, runtime, options);
      EXPECT_EQ(read_file(copy + "/" + kIndexName), index) << runtime;
      EXPECT_EQ(read_file(copy + "/config.json"), config) << runtime;
      if (std::string_view(runtime) != "tensorrt-llm") {
        expect_equal(verify(copy, runtime, layers));
      }
    }
  }
  // Scales per head and then per tensor: the size is right again.
  checkpoint = folder / "one";
  to("vllm", model_record(kFp8E4M3));
  const std::string index = read_file(in(kIndexName));
  to("vllm", model_record(kFp8E4M3, 2, true));
  EXPECT_NE(read_file(in(kIndexName)), index);
  to("vllm", model_record(kFp8E4M3));
  EXPECT_EQ(read_file(in(kIndexName)), index);
}

TEST_F(CheckpointTest, QuantizedCheckpointsAreRefusedUntouched) {
  const auto refuse = [&](const char* runtime, std::initializer_list<std::string_view> parts) {
    const Grid& grid = runtime_named(runtime).capability.grids.front();
    std::vector<std::string> contents;
    for (const std::string& name : names()) contents.push_back(read_file(in(name)));
    expect_error<ValueError>([&] { to(runtime, model_record(grid)); }, parts);
    std::vector<std::string> after;
    for (const std::string& name : names()) after.push_back(read_file(in(name)));
    EXPECT_EQ(after, contents);
  };
  const std::string config = read_file(in("config.json"));
  Json quantized = json("config.json");
  quantized["quantization_config"] = Json::parse(
      R"({"quant_method": "compressed-tensors", "config_groups": {"group_0": {"targets": ["Linear"]}}})");
  write_file(in("config.json"), to_json_text(quantized));
  for (const char* runtime : {"vllm", "modelopt", "tensorrt-llm", "vllm-ascend", "msmodelslim"}) {
    refuse(runtime, {"is quantized already", "compressed-tensors", checkpoint});
  }
  write_file(in("config.json"), config);
  write_file(in("hf_quant_config.json"), R"({"quantization": {"quant_algo": "FP8"}})");
  for (const char* runtime : {"vllm", "modelopt", "tensorrt-llm", "vllm-ascend"}) {
    refuse(runtime, {"is quantized already", "hf_quant_config.json"});
  }
  std::filesystem::remove(in("hf_quant_config.json"));
  // One runtime's export is another's quantized checkpoint.
  to("vllm-ascend", model_record(kInt8));
  refuse("vllm", {"quant_model_description.json"});
  refuse("tensorrt-llm", {"quant_model_description.json"});
}

TEST_F(CheckpointTest, TensorsOfThatNameInOthersFilesAreNotDoubled) {
  write_file(
      in("more.safetensors"),
      to_safetensors(std::vector<NewTensor>{{"model.layers.1.self_attn.k_scale", {1}, {2}}}));
  expect_error<ValueError>([&] { to("vllm", model_record(kFp8E4M3)); },
                           {"model.layers.1.self_attn.k_scale", "did not write"});
}

TEST_F(CheckpointTest, WhatIsNoCheckpointIsRefused) {
  const auto layers = model_record(kFp8E4M3);
  std::filesystem::remove(in("model.safetensors"));
  expect_error<ValueError>([&] { to("vllm", layers); }, {"no weights in *.safetensors"});
  write_file(in("model.safetensors"), "broken");
  expect_error<ValueError>([&] { to("vllm", layers); }, {"model.safetensors", "too short"});
  write_file(in(kIndexName), "{}");
  expect_error<ValueError>([&] { to("vllm", layers); }, {kIndexName, "weight_map"});
  write_file(in("config.json"), "[]");
  expect_error<ValueError>([&] { to("vllm", layers); }, {"config.json", "object"});
  std::filesystem::remove(in("config.json"));
  expect_error<ValueError>([&] { to("vllm", layers); }, {"not a checkpoint", "config.json"});
}

TEST_F(CheckpointTest, AnOutputFolderLeavesTheCheckpointAlone) {
  const std::string config = read_file(in("config.json"));
  const std::string output = folder / "out";
  const ExportReport report = to("vllm", model_record(kFp8E4M3), output);
  EXPECT_EQ(names(), (std::vector<std::string>{"config.json", "model.safetensors"}));
  EXPECT_EQ(read_file(in("config.json")), config);
  ASSERT_EQ(report.files.size(), 3U);
  for (const WrittenFile& file : report.files) EXPECT_TRUE(file.path.starts_with(output));
  EXPECT_NO_THROW(to("vllm", model_record(kFp8E4M3), output));  // again
  // Laid over a copy of the checkpoint they are what writing into it gives.
  const std::string copy = folder / "copy";
  std::filesystem::copy(checkpoint, copy);
  for (const WrittenFile& file : report.files) {
    std::filesystem::copy(file.path, copy + file.path.substr(output.size()),
                          std::filesystem::copy_options::overwrite_existing);
  }
  to("vllm", model_record(kFp8E4M3));
  for (const std::string& name : names())
    EXPECT_EQ(read_file(copy + "/" + name), read_file(in(name)));
  // Another checkpoint is not a place for them.
  const std::string other = folder / "other";
  support::write_checkpoint(other);
  expect_error<ValueError>([&] { to("vllm", model_record(kFp8E4M3), other); },
                           {other, "checkpoint of its own"});
  expect_error<ValueError>([&] { to("vllm", model_record(kFp8E4M3), other, false); },
                           {other, "checkpoint of its own"});
  expect_error<ValueError>([&] { to("vllm", model_record(kFp8E4M3), in("config.json")); },
                           {"is a file"});
}

TEST_F(CheckpointTest, WithoutACheckpointThePiecesAreWritten) {
  for (const char* runtime : {"vllm", "modelopt"}) {
    const std::string output = folder / runtime;
    const ExportReport report = to(runtime, model_record(kFp8E4M3), output, false);
    ASSERT_EQ(report.files.size(), 2U);
    EXPECT_TRUE(report.files[1].path.ends_with("quantization_config.json"));
    expect_equal(verify(output, runtime, model_record(kFp8E4M3)));
  }
}

TEST_F(CheckpointTest, FilesHaveThePermissionsOfTheConfiguration) {
  using enum std::filesystem::perms;
  std::filesystem::permissions(in("config.json"),
                               owner_read | owner_write | group_read | others_read);
  to("vllm", model_record(kFp8E4M3));
  for (const std::string& name : {std::string("config.json"), std::string(kShardName)}) {
    EXPECT_EQ(support::mode_of(in(name)), 0644U) << name;
  }
}

TEST_F(CheckpointTest, ALinkIsReplacedAndNotWhatItPointsTo) {
  const std::string blob = folder / "blob";
  std::filesystem::rename(in("config.json"), blob);
  std::filesystem::create_symlink(blob, in("config.json"));
  const std::string before = read_file(blob);
  to("vllm", model_record(kFp8E4M3));
  EXPECT_EQ(read_file(blob), before);
  EXPECT_TRUE(json("config.json").contains("quantization_config"));
}

TEST_F(CheckpointTest, LayersGetTheCheckpointsNames) {
  auto layers = model_record(kFp8E4M3);
  for (LayerRecord& layer : layers) layer.name = layer.name.substr(std::string("model.").size());
  to("vllm", layers);  // of the model without its head: "layers.0..."
  expect_equal(verify(checkpoint, "vllm", layers));
  EXPECT_EQ(json(kIndexName)["weight_map"]["model.layers.0.self_attn.k_scale"], kShardName);
  layers[0].name = "layers.0.attention.k_proj";
  layers[1].name = "layers.0.attention.v_proj";
  expect_error<ValueError>([&] { to("vllm", layers); },
                           {"'layers.0.attention.k_proj'", "no weight", "another model"});
}

TEST_F(CheckpointTest, AMultimodalModelsOwnLayersAreTold) {
  std::vector<NewTensor> tensors;
  for (const char* prefix : {"vision_tower.encoder.", "language_model.model."}) {
    for (const char* projection : {"k_proj", "v_proj"}) {
      tensors.push_back(
          {std::string(prefix) + "layers.0.self_attn." + projection + ".weight", {1, 1}, {0}});
    }
  }
  write_file(in("model.safetensors"), to_safetensors(tensors));
  auto layers = model_record(kFp8E4M3);
  layers.resize(2);
  layers[0].name = "model.language_model.layers.0.self_attn.k_proj";
  layers[1].name = "model.language_model.layers.0.self_attn.v_proj";
  to("vllm", layers);
  EXPECT_TRUE(
      json(kIndexName)["weight_map"].contains("language_model.model.layers.0.self_attn.k_scale"));
  layers[0].name = "layers.0.self_attn.k_proj";
  layers[1].name = "layers.0.self_attn.v_proj";
  expect_error<ValueError>([&] { to("vllm", layers); },
                           {"could be", "vision_tower", "language_model"});
}

TEST_F(CheckpointTest, TheModelsNumbersAreRead) {
  const auto read = [](const char* text) { return model_config(Json::parse(text)); };
  const ModelConfig plain = Checkpoint(checkpoint).model();
  EXPECT_EQ(plain.model_type, "llama");
  EXPECT_EQ(plain.layers, 2);
  EXPECT_EQ(plain.heads, 2);
  EXPECT_EQ(plain.head_dim, 4);
  EXPECT_EQ(plain.dtype, DType::kBFloat16);
  const ModelConfig inner = read(R"({"model_type": "m", "num_key_value_heads": 1,
      "text_config": {"num_hidden_layers": 3, "num_key_value_heads": 8, "hidden_size": 64,
                      "num_attention_heads": 16, "dtype": "float16", "tie_word_embeddings": true}})");
  EXPECT_EQ(inner.layers, 3);
  EXPECT_EQ(inner.heads, 8);
  EXPECT_EQ(inner.head_dim, 4);
  EXPECT_EQ(inner.dtype, DType::kFloat16);
  EXPECT_TRUE(inner.tied_embeddings);
  const ModelConfig odd = read(R"({"num_hidden_layers": -1, "num_key_value_heads": [1, 2],
      "head_dim": 1e300, "hidden_size": 99999999999, "dtype": 3, "text_config": 7})");
  EXPECT_FALSE(odd.layers || odd.heads || odd.head_dim || odd.dtype);
}

TEST_F(CheckpointTest, AnotherLoadersFilesAreNotInTheIndex) {
  std::filesystem::copy(in("model.safetensors"), in("consolidated.safetensors"));
  const ExportReport report = to("vllm", model_record(kFp8E4M3));
  EXPECT_NE(report.to_text().find("warning: the checkpoint has files named consolidated"),
            std::string::npos);
  expect_equal(verify(checkpoint, "vllm", model_record(kFp8E4M3)));
  const Json index = json(kIndexName);
  for (const auto& [name, file] : index["weight_map"].items()) {
    EXPECT_NE(file, "consolidated.safetensors") << name;
  }
}

TEST_F(CheckpointTest, AFolderOfItsOwnIsReadBesideTheCheckpoint) {
  const std::string own = folder / "own";
  for (const Runtime& runtime : runtimes()) {
    if (runtime.output != OutputKind::kFolder || runtime.name == "sglang") continue;
    const auto layers = model_record(runtime.capability.grids.front());
    std::filesystem::remove_all(own);
    to(runtime.name, layers, own);
    VerifyOptions options;
    options.record = layers;
    options.model_folder = checkpoint;
    const VerifyReport report = verify_export(own, runtime.name, options);
    EXPECT_TRUE(report.ok()) << report.to_text();
  }
  to("vllm", model_record(kFp8E4M3), own);
  expect_finding(verify(own, "vllm"), Verdict::kFatal, "copy of the checkpoint");
}

}  // namespace
}  // namespace amct
