// The configurations of tests/golden/config, byte for byte.
#include "amct/config/calibration_config.h"
#include "amct/config/definition.h"
#include "amct/core/error.h"
#include "amct/record/record_file.h"
#include "amct/search/search.h"

#include <algorithm>
#include <filesystem>
#include <set>
#include <string>
#include <vector>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "support/files.h"

namespace amct {
namespace {

namespace fs = std::filesystem;
using support::read_file;

const fs::path kGolden = AMCT_GOLDEN_DIR;

std::vector<std::string> case_names() {
  std::vector<std::string> names;
  for (const fs::directory_entry& entry : fs::directory_iterator(kGolden / "config")) {
    if (entry.is_directory()) names.push_back(entry.path().filename().string());
  }
  std::sort(names.begin(), names.end());
  return names;
}

std::vector<ModelLayer> golden_model() {
  const auto json = nlohmann::json::parse(read_file(kGolden / "config/model_layers.json"));
  std::vector<ModelLayer> layers;
  for (const auto& pair : json) {
    layers.push_back({pair[0].get<std::string>(), pair[1].get<std::string>(), pair[1] == "Linear"});
  }
  return layers;
}

class GoldenConfigTest : public testing::TestWithParam<std::string> {
 protected:
  fs::path file(const char* name) const { return kGolden / "config" / GetParam() / name; }

  /// What create_quant_cali_config does: the definition's layers win over those of the dict.
  std::string create() const {
    const AlgorithmCatalog& catalog = algorithm_catalog();
    std::vector<std::string> names;
    if (fs::exists(file("quant_layers.json"))) {
      const auto json = nlohmann::json::parse(read_file(file("quant_layers.json")));
      names = json.at("kv_cache_quant_layers").get<std::vector<std::string>>();
    }
    if (!fs::exists(file("quant.cfg"))) {
      check_layers(names, golden_model(), "quant_layers");
      return to_json(default_config(names, catalog), catalog);
    }
    const Definition definition = Definition::read(file("quant.cfg"), catalog);
    if (!definition.layers().empty()) names = definition.layers();
    check_layers(names, golden_model(), file("quant.cfg"));
    return to_json(definition.configure(names), catalog);
  }
};

INSTANTIATE_TEST_SUITE_P(Cases, GoldenConfigTest, testing::ValuesIn(case_names()),
                         [](const auto& param) { return param.param; });

TEST_P(GoldenConfigTest, GivesTheExpectedFileOrError) {
  if (fs::exists(file("expected.json"))) {
    const std::string expected = read_file(file("expected.json"));
    EXPECT_EQ(create(), expected);
    const CalibrationConfig config = parse_config(expected, "expected.json", algorithm_catalog());
    EXPECT_EQ(to_json(config, algorithm_catalog()), expected);
    return;
  }
  // These two never reach the library: the dict's key and the empty list are the front end's.
  if (GetParam() == "dict_wrong_key" || GetParam() == "dict_empty_list") return;
  ASSERT_EQ(read_file(file("expected_error.txt")).substr(0, 10), "ValueError");
  EXPECT_THROW(create(), ValueError);
}

TEST(GoldenFilesTest, AreAllThere) {
  EXPECT_EQ(case_names().size(), 26U) << "a case was added or lost; nothing else would notice";
}

TEST(GoldenModelTest, DefinitionGivesTheConfiguration) {
  const Definition definition = Definition::read(kGolden / "model/quant.cfg", algorithm_catalog());
  EXPECT_EQ(to_json(definition.configure(definition.layers()), algorithm_catalog()),
            read_file(kGolden / "model/config.json"));
}

TEST(GoldenModelTest, RecordIsReadInTheConfigurationsOrder) {
  const std::vector<LayerRecord> record = read_record(kGolden / "model/record.txt");
  const CalibrationConfig config = read_config(kGolden / "model/config.json", algorithm_catalog());
  ASSERT_EQ(record.size(), config.layers.size());
  for (std::size_t i = 0; i < record.size(); ++i) {
    EXPECT_EQ(record[i].name, config.layers[i].name);
    const bool per_tensor = config.layers[i].granularity == Granularity::kPerTensor;
    EXPECT_EQ(record[i].params.size() == 1, per_tensor) << record[i].name;
  }
  EXPECT_EQ(record[0].params[0], (QuantParams{0.05221764F, -7}));
}

}  // namespace
}  // namespace amct
