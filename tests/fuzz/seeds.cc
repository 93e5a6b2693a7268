// Writes seeds for the fuzz targets: real files, in the forms that the targets take. Some are those
// of users, which `tests/golden` has; the rest is written here by the library itself.
//
// Usage: fuzz_seeds FOLDER GOLDEN
#include "amct/config/calibration_config.h"
#include "amct/export/exporter.h"
#include "amct/record/record_file.h"
#include "amct/search/search.h"
#include "amct/session/session.h"

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "export/safetensors.h"
#include "folder.h"
#include "session/block_file.h"

namespace {

using namespace amct;
namespace fs = std::filesystem;

std::string content_of(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

void write(const fs::path& path, const std::string& content) {
  fs::create_directories(path.parent_path());
  std::ofstream(path, std::ios::binary) << content;
}

/// A file of blocks as counts_fuzz takes it: each after its size in two bytes.
std::string blocks_of(const fs::path& path, const char* magic, char kind) {
  BlockReader reader(path.string(), {.magic = magic, .version = 1, .name = "", .remedy = ""});
  std::string result(1, kind);
  for (std::string block = reader.next(); !block.empty(); block = reader.next()) {
    const std::size_t size = std::min<std::size_t>(block.size(), 0xFFFF);
    result += static_cast<char>(size & 0xFF);
    result += static_cast<char>(size >> 8);
    result += block.substr(0, size);
  }
  return result;
}

/// The files that users have: definitions, configurations and a record.
void copy_golden(const fs::path& golden, const fs::path& folder) {
  for (const fs::directory_entry& entry : fs::recursive_directory_iterator(golden)) {
    const std::string name = entry.path().filename().string();
    const char* target = name == "quant.cfg"                                ? "definition"
                         : name == "expected.json" || name == "config.json" ? "config"
                         : name == "record.txt"                             ? "record"
                                                                            : nullptr;
    if (target == nullptr) continue;
    const std::string test_case = entry.path().parent_path().filename().string();
    write(folder / target / ("golden-" + test_case), content_of(entry.path()));
  }
}

void write_checkpoint(const fs::path& folder) {
  fs::remove_all(folder);
  write(folder / "config.json",
        R"({"model_type":"llama","num_hidden_layers":1,"num_attention_heads":2,)"
        R"("num_key_value_heads":1,"head_dim":4,"hidden_size":8,"torch_dtype":"bfloat16"})");
  std::vector<NewTensor> tensors;
  for (const char* name : {"q_proj", "k_proj", "v_proj", "o_proj"}) {
    tensors.push_back({std::string("model.layers.0.self_attn.") + name + ".weight",
                       {1, 2},
                       std::vector<float>{1, 2}});
  }
  write(folder / "model.safetensors", to_safetensors(tensors));
}

void write_definitions(const fs::path& folder) {
  write(folder / "0",
        "batch_num: 3 kv_cache_quant_config { quant_layers: 'a' calibration_config { tap: cache "
        "mse_quantize { quant_granularity: per_channel } } }");
  write(folder / "1",
        "activation_offset: false override_layers_configs { layer_name: 'layers.*.v_proj' "
        "layer_name: 'b\\n\\x41' kv_data_quant_config { ifmr_quantize { search_range_start: 0.5 "
        "search_range_end: 1.5 search_step: .1 asymmetric: true } dst_type: INT4 } }");
  write(folder / "2",
        "# a comment\nkv_cache_quant_config < calibration_config: { hfmg_quantize { "
        "num_of_bins: 1024 quant_granularity: per_head } head_num: 4 max_position: 7 "
        "sink_tokens: 2, query_weighted: true; } >");
}

/// The forms of params_fuzz and c_api_fuzz.
void write_params(const fs::path& folder) {
  const std::string one(7, '\0');
  // act_algo, quant_granularity and num_bits; batch_num and num_of_bins.
  write(folder / "0", std::string("\0\3\4hfmg", 7) + std::string("\10\3\13per_channel", 14) +
                          std::string("\12\1\4", 3) + one);
  write(folder / "1", std::string("\2\1\2", 3) + one + std::string("\0\3\4hfmg", 7) +
                          std::string("\32\1\0\4", 4) + std::string(6, '\0'));
  write(folder / "2",
        std::string("\0\3\3mse", 6) + std::string("\14\3\4INT4", 7) + std::string("\4\0\1", 3));
}

std::string c_api_input(const char* algorithm, const char* granularity, const char* dst_type) {
  std::string input("\2\1", 2);  // two dimensions of eight bytes each, strides of one
  for (const char extent : {3, 4}) input += std::string(1, extent) + std::string(7, '\0');
  input += "\4\1";
  for (const std::string text : {algorithm, granularity, dst_type, "a.k_proj", "a.v_proj"})
    input += text + '\0';
  input += std::string("\0\2", 2);  // batch_num, heads
  return input + std::string("\0\0\0\x3F\0\0\0\x3F", 8) + std::string(4, '\0');
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) return 2;
  const fs::path folder(argv[1]);
  copy_golden(argv[2], folder);
  const fs::path work = folder / "work";
  fs::create_directories(work);
  const std::vector<std::string> names{"a", "b"};
  int number = 0;
  for (const Algorithm& algorithm : algorithms()) {
    for (const Granularity granularity : {Granularity::kPerTensor, Granularity::kPerChannel}) {
      const std::string seed = std::to_string(number++);
      CalibrationConfig config = default_config(names, algorithm_catalog());
      config.batch_num = 2;
      for (LayerConfig& layer : config.layers) {
        layer.algorithm = algorithm.spec.name;
        layer.options = algorithm.spec.defaults();
        layer.granularity = granularity;
      }
      write(folder / "config" / seed, to_json(config, algorithm_catalog()));
      Session session(config, work / "record.txt", {.counts_file = work / "counts"});
      const std::vector<float> values{0.5F, -1, 2, 3, -0.25F, 1e-3F, 7, -6};
      for (int batch = 0; batch < 2; ++batch) {
        for (const std::string& name : names)
          session.observe(name, TensorView::contiguous(values.data(), DType::kFloat32, {2, 4}));
        if (batch == 0) session.save(work / "snapshot", 1);
      }
      write(folder / "record" / seed, content_of(work / "record.txt"));
      write(folder / "counts" / ("c" + seed), blocks_of(work / "counts", "AMCTcnt", 0));
      write(folder / "counts" / ("s" + seed), blocks_of(work / "snapshot", "AMCTsnp", 1));
      write(folder / "counts" / ("w" + seed), std::string(1, 2) + content_of(work / "counts"));
    }
  }
  write_definitions(folder / "definition");
  write_params(folder / "params");
  write(folder / "c_api/0", c_api_input("mse", "per_channel", "INT8"));
  write(folder / "c_api/1", c_api_input("minmax", "per_head", "INT4"));
  write(folder / "c_api/2", c_api_input("", "", "FP8_E4M3"));
  const std::vector<LayerRecord> layers{
      {.name = "model.layers.0.self_attn.k_proj", .params = {{0.5F, 1}}, .tap = Tap::kCache},
      {.name = "model.layers.0.self_attn.v_proj", .params = {{0.25F, 0}}, .tap = Tap::kCache}};
  const auto all = runtimes();
  for (std::size_t i = 0; i < all.size(); ++i) {
    std::string seed(1, static_cast<char>(i));
    if (all[i].output == OutputKind::kFile) {
      ExportOptions options;
      options.output = work / "exported";
      options.model_type = "llama";
      std::vector<LayerRecord> fitting = layers;
      for (LayerRecord& layer : fitting) {
        layer.grid = all[i].capability.grids.front();
        if (!all[i].capability.with_offset) layer.params.front().offset = 0;
      }
      export_layers(fitting, all[i].name, options);
      seed += content_of(options.output);
    } else {
      const std::string name(all[i].name);
      write_checkpoint(work / "model");
      write(folder / "export" / (name + "-bare"), seed + fuzz::pack(work / "model"));
      ExportOptions options;
      options.model_folder = work / "model";
      std::vector<LayerRecord> fitting = layers;
      for (LayerRecord& layer : fitting) {
        layer.grid = all[i].capability.grids.front();
        layer.params.front().offset = 0;
      }
      export_layers(fitting, all[i].name, options);
      seed += fuzz::pack(work / "model");
    }
    write(folder / "export" / std::string(all[i].name), seed);
  }
  fs::remove_all(work);
  return 0;
}
