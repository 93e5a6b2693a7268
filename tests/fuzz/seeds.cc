// Writes seeds for the fuzz targets: real files, in the forms that the targets take.
//
// Usage: fuzz_seeds FOLDER
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

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) return 2;
  const fs::path folder(argv[1]);
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
  write(folder / "definition/0",
        "batch_num: 3 kv_cache_quant_config { quant_layers: 'a' calibration_config { tap: cache "
        "mse_quantize { quant_granularity: per_channel } } }");
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
      const std::string config =
          R"({"model_type":"llama","num_hidden_layers":1,"num_attention_heads":2,"head_dim":4})";
      seed += '\0';
      seed += static_cast<char>(config.size());
      seed += '\0';
      seed += config;
    }
    write(folder / "export" / std::string(all[i].name), seed);
  }
  fs::remove_all(work);
  return 0;
}
