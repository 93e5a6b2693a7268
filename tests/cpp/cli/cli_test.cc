// The command line, called in this process.
#include "cli/cli.h"

#include "amct/record/record_file.h"
#include "amct/search/search.h"
#include "amct/session/counts_file.h"
#include "amct/session/session.h"

#include <cstdio>
#include <memory>
#include <sstream>
#include <string>
#include <vector>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "cli/command.h"
#include "support/data.h"
#include "support/files.h"

namespace amct::cli {
namespace {

using Json = nlohmann::json;
using Arguments = std::vector<std::string>;

struct Result {
  int code;
  std::string out;
  std::string err;
};

Result call(const Arguments& arguments) {
  std::ostringstream out;
  std::ostringstream err;
  const int code = run(arguments, out, err);
  return {code, out.str(), err.str()};
}

class CliTest : public support::FolderTest {
 protected:
  void SetUp() override { calibrate(record, counts); }

  static void calibrate(const std::string& record, const std::string& counts,
                        std::int64_t sink_tokens = 0) {
    CalibrationConfig config =
        default_config(Arguments{"layers.0.k_proj", "layers.0.v_proj"}, algorithm_catalog());
    for (LayerConfig& layer : config.layers) {
      layer.granularity = Granularity::kPerChannel;
      layer.sink_tokens = sink_tokens;
    }
    Session session(config, record, {.counts_file = counts});
    for (const char* name : {"layers.0.v_proj", "layers.0.k_proj"}) {
      const support::Tensor batch = support::make_tensor(
          DType::kBFloat16, {64, 8}, support::sample(support::Distribution::kNormal, 512, 1));
      session.observe(name, batch.view());
    }
  }

  static void expect_error(const Arguments& arguments, Exit code, const std::string& what) {
    const Result result = call(arguments);
    EXPECT_EQ(result.code, static_cast<int>(code));
    EXPECT_EQ(result.out, "");
    EXPECT_EQ(result.err.substr(0, 6), "amct: ");
    EXPECT_NE(result.err.find(what), std::string::npos) << result.err;
    EXPECT_EQ(result.err.find('\n'), result.err.size() - 1) << "one line: " << result.err;
  }

  const std::string record = folder / "record.txt";
  const std::string counts = folder / "all.counts";
  const std::string other = folder / "other.txt";
};

TEST_F(CliTest, InspectShowsRecordsAndCounts) {
  const Result text = call({"inspect", record});
  EXPECT_EQ(text.code, 0);
  EXPECT_NE(text.out.find("layers.0.k_proj  key"), std::string::npos) << text.out;
  EXPECT_NE(text.out.find("a record of 2 layers"), std::string::npos);
  const Json of_record = Json::parse(call({"inspect", record, "--json"}).out);
  EXPECT_EQ(of_record["kind"], "record");
  EXPECT_EQ(of_record["layers"][1]["role"], "value");
  EXPECT_EQ(of_record["layers"][0]["scale"].size(), 8U);
  const Json of_counts = Json::parse(call({"--json", "inspect", counts}).out);
  EXPECT_EQ(of_counts["kind"], "counts");
  EXPECT_EQ(of_counts["layers"][0]["layer"], "layers.0.k_proj");  // in the configuration's order
  EXPECT_EQ(of_counts["layers"][0]["rows"], 64);
  EXPECT_EQ(of_counts["layers"][0]["kept"], "exact");
  EXPECT_EQ(of_counts["layers"][0]["sink_tokens"], 0);
  EXPECT_EQ(of_counts["layers"][0]["query_weighted"], false);
  const std::string shown = call({"inspect", counts}).out;
  EXPECT_NE(shown.find("counts of 2 layers"), std::string::npos);
  EXPECT_EQ(shown.find("sink_tokens"), std::string::npos) << shown;
  const std::string with_sinks = folder / "sinks.counts";
  calibrate(other, with_sinks, 4);
  const std::string of_sinks = call({"inspect", with_sinks}).out;
  EXPECT_NE(of_sinks.find("  kept   sink_tokens\n"), std::string::npos) << of_sinks;
  EXPECT_NE(of_sinks.find("exact            4\n"), std::string::npos) << of_sinks;
}

TEST_F(CliTest, SolveWritesARecord) {
  const Result result = call({"solve", counts, "-o", other});
  EXPECT_EQ(result.code, 0) << result.err;
  EXPECT_EQ(support::read_file(other), support::read_file(record));
  EXPECT_EQ(call({"diff", record, other}).code, 0);

  const Result int4 = call({"solve", counts, "--record", other, "--algorithm", "percentile",
                            "--set", "percentile=0.99", "--dst-type", "INT4", "--granularity",
                            "per_head", "--heads", "2", "--symmetric", "--json"});
  EXPECT_EQ(int4.code, 0) << int4.err;
  const Json json = Json::parse(int4.out);
  EXPECT_EQ(json["record"], other);
  EXPECT_EQ(json["layers"][0]["act_algo"], "percentile");
  EXPECT_EQ(json["layers"][0]["with_offset"], false);
  const std::vector<LayerRecord> layers = read_record(other);
  ASSERT_EQ(layers.size(), 2U);
  EXPECT_EQ(layers[0].grid, kInt4);
  EXPECT_TRUE(layers[0].per_head);
  EXPECT_EQ(layers[0].params.size(), 2U);
  EXPECT_EQ(layers[0].params[0].offset, 0);
}

TEST_F(CliTest, SolveWithoutARecordOnlyShows) {
  const Result result = call({"solve", counts, "--algorithm", "mse"});
  EXPECT_EQ(result.code, 0);
  EXPECT_NE(result.out.find("mse"), std::string::npos);
  EXPECT_EQ(folder.names(), (Arguments{"all.counts", "record.txt"}));
}

TEST_F(CliTest, MergeAddsUp) {
  const std::string sum = folder / "sum.counts";
  support::write_file(folder / "more.counts", support::read_file(counts));
  EXPECT_EQ(call({"merge", counts, folder / "more.counts", "-o", sum}).code, 0);
  const Json json = Json::parse(call({"inspect", sum, "--json"}).out);
  EXPECT_EQ(json["layers"][1]["rows"], 128);
  EXPECT_EQ(Json::parse(call({"merge", counts, "-o", sum, "--json"}).out)["counts"], sum);
}

TEST_F(CliTest, DiffTellsWhatDiffersByItsExitCode) {
  call({"solve", counts, "-o", other, "--algorithm", "minmax"});
  const Result result = call({"diff", record, other});
  EXPECT_EQ(result.code, static_cast<int>(Exit::kDiffers));
  EXPECT_NE(result.out.find("2 of 2 layers differ"), std::string::npos) << result.out;
  EXPECT_EQ(call({"diff", record, other, "--tolerance", "0.9"}).code,
            static_cast<int>(Exit::kDiffers));  // by their offsets
  const Json json = Json::parse(call({"diff", record, other, "--json"}).out);
  EXPECT_EQ(json["equal"], false);
  EXPECT_TRUE(json["layers"][0]["scale_ratio"].is_number());
  EXPECT_NE(json["layers"][0]["scale_ratio"], 1.0);
  EXPECT_NE(result.out.find("  x"), std::string::npos) << result.out;
  support::write_file(other, "record { key: 'x' kv_cache_value { scale: 1 offset: 0 } }");
  const Result foreign = call({"diff", record, other});
  EXPECT_NE(foreign.out.find("only in the first"), std::string::npos);
  EXPECT_NE(foreign.out.find("only in the second"), std::string::npos);
  EXPECT_NE(foreign.out.find("3 of 3 layers differ"), std::string::npos) << foreign.out;
  std::vector<LayerRecord> layers = read_record(record);
  layers[0].role = layers[0].known_role() == KVRole::kKey ? KVRole::kValue : KVRole::kKey;
  write_record(other, layers);
  const Result turned = call({"diff", record, other});
  EXPECT_EQ(turned.code, static_cast<int>(Exit::kDiffers));
  EXPECT_NE(turned.out.find("role key -> value"), std::string::npos) << turned.out;
  EXPECT_TRUE(Json::parse(call({"diff", record, record, "--json"}).out)["equal"]);
}

TEST_F(CliTest, ExportAndVerify) {
  call({"solve", counts, "-o", record, "--granularity", "per_tensor"});
  const std::string exported = folder / "scales.txt";
  const Result written = call({"export", record, "--to", "lmdeploy", "-o", exported});
  EXPECT_EQ(written.code, 0) << written.err;
  EXPECT_NE(written.out.find(exported), std::string::npos) << written.out;
  const Result good = call({"verify", exported, "--as", "lmdeploy", "--record", record});
  EXPECT_EQ(good.code, 0) << good.out;
  const Json json =
      Json::parse(call({"verify", exported, "--as", "lmdeploy", "--record", record, "--json"}).out);
  EXPECT_TRUE(json["ok"]);
  EXPECT_EQ(json["layers"].size(), 2U);
  // Pairs that the runtime's expression does not match.
  support::write_file(exported, "record { key: 'a' kv_cache_value { scale: 1e-05 offset: 0 } }");
  EXPECT_EQ(call({"verify", exported, "--as", "lmdeploy", "--record", record}).code,
            static_cast<int>(Exit::kDiffers));
}

TEST_F(CliTest, FirstTokensThatAreLeftOutAreShown) {
  EXPECT_EQ(call({"inspect", record}).out.find("sink_tokens"), std::string::npos);
  EXPECT_EQ(Json::parse(call({"inspect", record, "--json"}).out)["layers"][0]["sink_tokens"], 0);
  std::vector<LayerRecord> layers = read_record(record);
  layers[0].sink_tokens = 4;
  write_empty_record(other);
  merge_into_record(other, layers, {});
  const std::string text = call({"inspect", other}).out;
  EXPECT_NE(text.find("  sink_tokens\n"), std::string::npos) << text;
  EXPECT_EQ(Json::parse(call({"inspect", other, "--json"}).out)["layers"][0]["sink_tokens"], 4);
  const Result differing = call({"diff", record, other});
  EXPECT_EQ(differing.code, static_cast<int>(Exit::kDiffers));
  EXPECT_NE(differing.out.find("sink_tokens 0 -> 4"), std::string::npos) << differing.out;
  EXPECT_NE(differing.out.find("1 of 2 layers"), std::string::npos) << differing.out;
}

TEST_F(CliTest, AnExportSaysThatNoRuntimeKeepsTheFirstTokens) {
  write_empty_record(record);
  merge_into_record(
      record,
      std::vector<LayerRecord>{{.name = "layers.0.k_proj", .params = {{0.5F, 0}}, .sink_tokens = 4},
                               {.name = "layers.0.v_proj", .params = {{0.5F, 0}}}},
      {});
  const Result with_sinks = call({"export", record, "--to", "json", "-o", other});
  EXPECT_EQ(with_sinks.code, 0) << with_sinks.err;
  EXPECT_NE(
      with_sinks.out.find("warning: layer 'layers.0.k_proj' was calibrated without the first 4"),
      std::string::npos)
      << with_sinks.out;
}

TEST_F(CliTest, WhatARuntimeCannotSayIsRefusedWithWhatItCan) {
  expect_error({"export", record, "--to", "lmdeploy", "-o", other}, Exit::kError,
               "amct solve COUNTS");
}

TEST_F(CliTest, ErrorsAreOneLineThatSaysWhatToDo) {
  expect_error({}, Exit::kUsage, "name a command");
  expect_error({"sovle"}, Exit::kUsage, "did you mean 'solve'?");
  expect_error({"solve"}, Exit::kUsage, "COUNTS is required");
  expect_error({"solve", counts, "--granularity", "per_word"}, Exit::kUsage, "per_tensor");
  expect_error({"solve", counts, "--set", "x"}, Exit::kUsage, "KEY=VALUE");
  expect_error({"solve", counts, "--symmetric", "--asymmetric"}, Exit::kUsage, "excludes");
  expect_error({"completion", "csh"}, Exit::kUsage, "csh");
  expect_error({"inspect", folder / "none"}, Exit::kError, "No such file");
  expect_error({"solve", record}, Exit::kError, "not a counts file");
  expect_error({"solve", counts, "-o", folder.path()}, Exit::kError, "folder");
  expect_error({"solve", counts, "--granularity", "per_tensor", "--set", "percentile=0.9"},
               Exit::kUsage, "but this is 'ifmr'");
  support::write_file(other, "not a record");
  expect_error({"diff", record, other}, Exit::kError, "line 1");
}

TEST_F(CliTest, WordsThatAreNotKnownAreAWrongCommandLine) {
  expect_error({"export", record, "--to", "vlm", "-o", other}, Exit::kUsage, "mean 'vllm'?");
  expect_error({"verify", record, "--as", "nobody"}, Exit::kUsage, "lmdeploy");
  expect_error({"export", record, "--to", "json", "--dtype", "int8"}, Exit::kUsage, "bfloat16");
  expect_error({"solve", counts, "--algorithm", "mze"}, Exit::kUsage, "did you mean 'mse'?");
  expect_error({"solve", counts, "--dst-type", "fp8_e4m3x"}, Exit::kUsage, "mean 'FP8_E4M3'?");
  expect_error({"solve", counts, "--set", "nonsense=2"}, Exit::kUsage, "unknown key 'nonsense'");
  expect_error({"solve", counts, "--set", "quant_granularity=7"}, Exit::kUsage, "not 7");
  expect_error({"solve", counts, "--heads", "2"}, Exit::kUsage, "--granularity per_head");
  expect_error({"solve", counts, "--granularity", "per_head"}, Exit::kUsage, "needs --heads");
  expect_error({"solve", counts, "--dst-type", "FP8_E4M3", "--algorithm", "hfmg"}, Exit::kUsage,
               "evenly spread");
}

TEST_F(CliTest, WordsAreTakenInLettersOfEitherCase) {
  const Result result = call({"solve", counts, "--dst-type", "fp8_e4m3", "--granularity", "0",
                              "--algorithm", "MSE", "--json"});
  ASSERT_EQ(result.code, 0) << result.err;
  const Json layer = Json::parse(result.out)["layers"][0];
  EXPECT_EQ(layer["dst_type"], "FP8_E4M3");
  EXPECT_EQ(layer["granularity"], "per_tensor");
  EXPECT_EQ(layer["act_algo"], "mse");
}

TEST_F(CliTest, SolveCannotChangeWhatWasObserved) {
  for (const char* setting : {"tap=cache", "role=key", "slice=[0,4]", "slice_groups=2",
                              "max_position=9", "sink_tokens=4"})
    expect_error({"solve", counts, "-o", other, "--set", setting}, Exit::kUsage, "calibrate again");
  EXPECT_EQ(folder.names(), (Arguments{"all.counts", "record.txt"}));
  const Result weighted = call({"solve", counts, "--set", "query_weighted=false"});
  EXPECT_EQ(weighted.code, 0) << weighted.err;
}

TEST_F(CliTest, HelpAndVersion) {
  EXPECT_EQ(call({"--version"}).out.substr(0, 5), "amct ");
  for (const Arguments& arguments :
       {Arguments{"--help"}, {"solve", "--help"}, {"--help-all"}, {"inspect", "-h"}}) {
    const Result result = call(arguments);
    EXPECT_EQ(result.code, 0);
    EXPECT_NE(result.out.find("xample"), std::string::npos) << arguments[0];
  }
}

TEST_F(CliTest, CompletionAndReferenceNameEveryCommand) {
  for (const Arguments& arguments : {Arguments{"completion", "bash"},
                                     {"completion", "zsh"},
                                     {"completion", "fish"},
                                     {"reference"}}) {
    const Result result = call(arguments);
    EXPECT_EQ(result.code, 0);
    for (const char* command : {"inspect", "solve", "merge", "diff"})
      EXPECT_NE(result.out.find(command), std::string::npos) << command;
    EXPECT_NE(result.out.find("dst-type"), std::string::npos);
  }
}

TEST_F(CliTest, CompletionKnowsTheWordsOfOptions) {
  support::write_file(other, call({"completion", "bash"}).out);
  const auto completed = [&](const std::string& words) {
    const std::string line = "bash -c 'source \"" + other + "\"; COMP_WORDS=(" + words +
                             "); COMP_CWORD=$((${#COMP_WORDS[@]}-1)); _amct_bash; "
                             "echo \"${COMPREPLY[@]}\"'";
    // The shell is what is tested. NOLINTNEXTLINE(bugprone-command-processor,cert-env33-c)
    const std::unique_ptr<FILE, int (*)(FILE*)> pipe(::popen(line.c_str(), "r"), ::pclose);
    std::string text(4096, '\0');
    text.resize(std::fread(text.data(), 1, text.size(), pipe.get()));
    return text;
  };
  EXPECT_EQ(completed("amct solv"), "solve\n");
  EXPECT_EQ(completed("amct solve --dst-type FP8_E4"), "FP8_E4M3 FP8_E4M3FNUZ\n");
  EXPECT_EQ(completed("amct solve --dst-type = INT"), "INT8 INT4\n");
  EXPECT_EQ(completed("amct solve --algorithm=m"), "--algorithm=minmax --algorithm=mse\n");
  EXPECT_EQ(completed("amct export --to vllm-"), "vllm-ascend\n");
  EXPECT_EQ(completed("amct verify --as np"), "npz\n");
  EXPECT_EQ(completed("amct export --dtype b"), "bfloat16\n");
  EXPECT_EQ(completed("amct completion f"), "fish\n");
  EXPECT_EQ(completed("amct diff merge --tol"), "--tolerance\n");  // a file called merge
  EXPECT_EQ(completed("amct solve --record \"\""), "\n");          // a file, too
}

TEST(TableTest, NamesFromFilesCannotDriveTheTerminal) {
  // NOLINTNEXTLINE(misc-misleading-bidirectional): on purpose
  EXPECT_EQ(table({{"name", "number"}, {"x\x1b[2J", "10"}, {"\u202Eyyy", "2"}}),
            "name       number\nx\\x1b[2J       10\n\\u202eyyy       2\n");
}

TEST_F(CliTest, NamesFromFilesCannotDriveATerminalThatWatches) {
  LayerConfig layer =
      default_config(Arguments{"x\x1b]0;owned\x07\x1b[2J"}, algorithm_catalog()).layers[0];
  Observer observer(Granularity::kPerTensor);
  const support::Tensor batch = support::make_tensor(
      DType::kBFloat16, {4, 8}, support::sample(support::Distribution::kNormal, 32, 1));
  observer.observe(batch.view());
  CountsWriter writer(counts, {});
  writer.add(layer, 0, observer);
  writer.commit();
  std::ostringstream out;
  std::ostringstream err;
  EXPECT_EQ(run({"inspect", counts}, out, err, true), 0);
  EXPECT_NE(err.str().find("x\\x1b]0;owned\\x07\\x1b[2J"), std::string::npos);
  for (const std::string& text : {out.str(), err.str()}) {
    EXPECT_EQ(text.find('\a'), std::string::npos);
    EXPECT_EQ(text.find("\x1b]"), std::string::npos);
    EXPECT_EQ(text.find("\x1b[2J"), std::string::npos);
  }
}

TEST_F(CliTest, WhatIsReadIsNotWritten) {
  const std::string before = support::read_file(counts);
  expect_error({"solve", counts, "-o", counts}, Exit::kError, "is given twice");
  EXPECT_EQ(support::read_file(counts), before);
  const std::string factors = support::read_file(record);
  expect_error({"export", record, "--to", "json", "-o", record}, Exit::kError, "is given twice");
  EXPECT_EQ(support::read_file(record), factors);
}

TEST_F(CliTest, NamesThatAreNotUtf8AreJsonAllTheSame) {
  const std::string odd = folder / "odd\xff.txt";
  support::write_file(odd, support::read_file(record));
  const Result inspected = call({"inspect", "--json", odd});
  EXPECT_EQ(inspected.code, 0) << inspected.err;
  EXPECT_NE(inspected.out.find("odd\uFFFD.txt"), std::string::npos) << inspected.out;
  const Result missing = call({"inspect", odd + "\x9b"});
  EXPECT_EQ(missing.code, 1);
  EXPECT_NE(missing.err.find("odd\\xff.txt\\x9b"), std::string::npos) << missing.err;
}

TEST(OptionValueTest, IsWhatTheConfigurationFileWouldSay) {
  EXPECT_EQ(option_value("true"), OptionValue(true));
  EXPECT_EQ(option_value("4"), OptionValue(std::int64_t{4}));
  EXPECT_EQ(option_value("0.5"), OptionValue(0.5));
  EXPECT_EQ(option_value("[0.7, 1.3]"), OptionValue(std::vector<double>{0.7, 1.3}));
  EXPECT_EQ(option_value("skip"), OptionValue(std::string("skip")));
}

}  // namespace
}  // namespace amct::cli
