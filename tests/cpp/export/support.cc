#include "export/support.h"

#include <filesystem>

#include "support/expect_error.h"

namespace amct::support {
namespace {

constexpr const char* kConfig = R"({
  "architectures": ["LlamaForCausalLM"],
  "model_type": "llama",
  "num_hidden_layers": 2,
  "num_attention_heads": 4,
  "num_key_value_heads": 2,
  "head_dim": 4,
  "hidden_size": 16,
  "rms_norm_eps": 1e-05,
  "torch_dtype": "bfloat16",
  "zeta": {"b": 1, "a": [1, 2.5, null]}
}
)";

std::vector<NewTensor> weights() {
  std::vector<NewTensor> tensors;
  const auto add = [&](const std::string& name, std::int64_t rows, std::int64_t columns) {
    tensors.push_back({name, {rows, columns}, std::vector<float>(rows * columns)});
  };
  add("model.embed_tokens.weight", 3, 16);
  for (std::int64_t i = 0; i < kLayers; ++i) {
    const std::string prefix = "model.layers." + std::to_string(i) + ".";
    add(prefix + "self_attn.q_proj.weight", 16, 16);
    add(prefix + "self_attn.k_proj.weight", kHeads * kHeadDim, 16);
    add(prefix + "self_attn.v_proj.weight", kHeads * kHeadDim, 16);
    add(prefix + "self_attn.o_proj.weight", 16, 16);
    tensors.push_back({prefix + "input_layernorm.weight", {16}, std::vector<float>(16)});
  }
  add("lm_head.weight", 3, 16);
  return tensors;
}

}  // namespace

LayerRecord layer(const std::string& name, std::size_t count, const Grid& grid,
                  std::int32_t offset) {
  LayerRecord result{.name = name, .params = {}, .grid = grid, .tap = Tap::kCache};
  for (std::size_t i = 0; i < count; ++i) {
    const float jitter = static_cast<float>(name.size() * 7 % 5 + i) / 64.0F;
    result.params.push_back({0.0123F + jitter, offset});
  }
  return result;
}

std::vector<LayerRecord> model_record(const Grid& grid, std::size_t count, bool per_head,
                                      std::int32_t offset) {
  std::vector<LayerRecord> layers;
  for (std::int64_t i = 0; i < kLayers; ++i) {
    for (const char* name : {"k_proj", "v_proj"}) {
      layers.push_back(
          layer("model.layers." + std::to_string(i) + ".self_attn." + name, count, grid, offset));
      layers.back().per_head = per_head;
      for (QuantParams& params : layers.back().params) {
        params.scale *= 1.0F + 0.25F * static_cast<float>(layers.size());
      }
    }
  }
  return layers;
}

void write_checkpoint(const std::string& folder) {
  std::filesystem::create_directories(folder);
  write_file(folder + "/config.json", kConfig);
  write_file(folder + "/model.safetensors", to_safetensors(weights()));
}

void write_sharded_checkpoint(const std::string& folder) {
  std::filesystem::create_directories(folder);
  write_file(folder + "/config.json", kConfig);
  const std::vector<NewTensor> all = weights();
  const std::span<const NewTensor> tensors = all;
  const std::size_t half = tensors.size() / 2;
  const std::string first = "model-00001-of-00002.safetensors";
  const std::string second = "model-00002-of-00002.safetensors";
  write_file(folder + "/" + first, to_safetensors(tensors.first(half)));
  write_file(folder + "/" + second, to_safetensors(tensors.subspan(half)));
  std::string map;
  std::size_t bytes = 0;
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    map += (i == 0 ? "" : ", ") + ("\"" + tensors[i].name) + "\": \"" +
           (i < half ? first : second) + "\"";
    bytes += 4 * tensors[i].values.size();
  }
  write_file(folder + "/model.safetensors.index.json",
             "{\"metadata\": {\"total_size\": " + std::to_string(bytes) +
                 ", \"more\": \"kept\"}, \"weight_map\": {" + map + "}}");
}

std::vector<std::string> findings(const VerifyReport& report, Verdict verdict,
                                  std::string_view part) {
  std::vector<std::string> found;
  for (const Finding& finding : report.findings) {
    const std::string text = finding.key + ": " + finding.value + ": " + finding.why;
    if (finding.verdict == verdict && text.find(part) != std::string::npos) found.push_back(text);
  }
  return found;
}

ExportReport ExportTest::to(std::string_view runtime, const std::vector<LayerRecord>& layers,
                            const std::string& output, bool with_checkpoint) {
  ExportOptions options;
  options.output = output;
  if (with_checkpoint) options.model_folder = checkpoint;
  return export_layers(layers, runtime, options);
}

VerifyReport ExportTest::verify(const std::string& path, std::string_view runtime,
                                const std::vector<LayerRecord>& record) {
  VerifyOptions options;
  if (!record.empty()) options.record = record;
  return verify_export(path, runtime, options);
}

void expect_equal(const VerifyReport& report, std::size_t layers) {
  EXPECT_TRUE(report.ok()) << report.to_text();
  EXPECT_EQ(report.layers.size(), layers) << report.to_text();
  for (const EffectiveFactors& factors : report.layers) {
    EXPECT_EQ(factors.match, Match::kEqual) << report.to_text();
  }
}

void expect_finding(const VerifyReport& report, Verdict verdict, std::string_view part) {
  EXPECT_FALSE(findings(report, verdict, part).empty())
      << "no " << name_of(verdict) << " with '" << part << "' in\n"
      << report.to_text();
  EXPECT_FALSE(report.ok()) << report.to_text();
}

void expect_refused(std::string_view runtime, const std::vector<LayerRecord>& layers,
                    const ExportOptions& options, const Setting& nearest,
                    std::string_view problem) {
  const testing::ScopedTrace trace(__FILE__, __LINE__, std::string(runtime));
  expect_error<Unrepresentable>([&] { export_layers(layers, runtime, options); },
                                {runtime, problem, nearest.command()});
  try {
    export_layers(layers, runtime, options);
  } catch (const Unrepresentable& error) {
    EXPECT_EQ(error.nearest(), nearest) << error.nearest().command();
  }
}

}  // namespace amct::support
