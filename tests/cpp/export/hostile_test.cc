// Whatever stands in the files that a runtime reads, verify reports it: no crash, no exception.
#include "amct/export/verify.h"

#include <algorithm>
#include <array>
#include <filesystem>
#include <random>
#include <string>
#include <vector>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "export/support.h"

namespace amct {
namespace {

using support::model_record;
using support::read_file;
using support::write_file;

class HostileTest : public support::ExportTest {
 protected:
  /// Reads the folder, and each of its files, as every runtime does.
  void verify_all(const std::string& file) {
    for (const Runtime& runtime : runtimes()) {
      for (const std::string& path : {checkpoint, file}) {
        std::string text;
        ASSERT_NO_THROW(text = verify(path, runtime.name).to_text()) << runtime.name << " " << file;
        ASSERT_EQ(text.find('\0'), std::string::npos);
        ASSERT_NO_THROW(verify(path, runtime.name, record).to_json());
      }
    }
  }
  /// Calls `change` for each small file of the folder, many times over, and puts it back.
  template <typename Change>
  void with_changes(int times, const Change& change) {
    std::vector<std::string> files;
    for (const auto& entry : std::filesystem::directory_iterator(checkpoint)) {
      if (entry.path().filename() != "model.safetensors") files.push_back(entry.path().string());
    }
    std::ranges::sort(files);
    for (const std::string& file : files) {
      const std::string whole = read_file(file);
      for (int i = 0; i < times; ++i) {
        write_file(file, change(file, whole));
        verify_all(file);
      }
      write_file(file, whole);
    }
  }

  std::vector<LayerRecord> record;
  std::mt19937 generator{5};
};

TEST_F(HostileTest, BytesThatChanged) {
  for (const char* runtime : {"vllm", "vllm-ascend"}) {
    support::write_checkpoint(checkpoint = folder / runtime);
    record = model_record(runtime_named(runtime).capability.grids.front());
    to(runtime, record);
    with_changes(12, [&](const std::string&, std::string content) {
      for (int i = 0; i < 3; ++i) {
        // The first bytes matter most: of a length, or of the first keys.
        const std::size_t range = generator() % 2 == 0 ? 16 : content.size();
        content[generator() % std::min(range, content.size())] = static_cast<char>(generator());
      }
      if (generator() % 3 == 0) content.resize(generator() % content.size());
      return content;
    });
  }
}

TEST_F(HostileTest, JsonOfOtherTypes) {
  using Plain = nlohmann::json;
  const std::array<Plain, 14> values{nullptr,
                                     true,
                                     -1,
                                     1e300,
                                     0,
                                     "",
                                     "x",
                                     "\0",
                                     "9.9.9",
                                     Plain::array(),
                                     {1},
                                     Plain::object(),
                                     {{"a", {{"b", 1}}}},
                                     std::string(3000, '.')};
  for (const char* runtime : {"vllm", "vllm-ascend", "modelopt", "tensorrt-llm"}) {
    support::write_checkpoint(checkpoint = folder / runtime);
    record = model_record(runtime_named(runtime).capability.grids.front());
    to(runtime, record);
    with_changes(25, [&](const std::string& file, const std::string& content) {
      if (!file.ends_with(".json")) return content;
      Plain json = Plain::parse(content);
      const Plain flat = json.flatten();
      const auto at = static_cast<std::ptrdiff_t>(generator() % flat.size());
      Plain::json_pointer pointer(std::next(flat.begin(), at).key());
      // A value, or an object around it.
      while (generator() % 3 == 0 && !pointer.parent_pointer().empty()) {
        pointer = pointer.parent_pointer();
      }
      const Plain& value = values.at(generator() % values.size());
      if (generator() % 4 == 0) {
        json = value;
      } else {
        json[pointer] = value;
      }
      return json.dump();
    });
  }
}

TEST_F(HostileTest, NamesOfTensors) {
  record = model_record(kFp8E4M3);
  to("vllm", record);
  std::vector<NewTensor> tensors;
  for (const std::string& prefix :
       {std::string(), std::string("."), std::string("model.layers.99999999999999999999"),
        std::string("model.layers.0.self_attn"), std::string("a\0b.0.self_attn", 15),
        std::string(10'000, '.'), std::string(10'000, '7') + ".0.self_attn"}) {
    for (const char* name :
         {"k_scale", ".k_scale", ".v_scale", ".kv_scale", ".k_proj.k_scale", ".attn.k_scale",
          ".k_proj.kv_cache_scale", ".v_proj.kv_cache_offset", ".kv_cache_scaling_factor",
          ".k_cache_scaling_factor", ".q.scale", ".k_cache.scale", ".k_proj.weight"}) {
      tensors.push_back({prefix + name, {1}, {1}});
    }
  }
  tensors.push_back({"model.layers.0.self_attn.k_proj.v_scale", {0}, {}});
  write_file(checkpoint + "/kv_cache_factors.safetensors", to_safetensors(tensors));
  verify_all(checkpoint + "/kv_cache_factors.safetensors");
  write_file(checkpoint + "/quant_model_description.json",
             R"({"kv_cache_type": "C8", "model.layers.0.self_attn.k_proj.kv_cache_scale": "C8",
                 "a.1.2.k_proj.kv_cache_scale": 3, "k_proj.kv_cache_scale": "C8"})");
  verify_all(checkpoint + "/quant_model_description.json");
}

}  // namespace
}  // namespace amct
