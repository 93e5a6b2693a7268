// amct export and amct verify: records in the form of runtimes, and what these make of them.
#include "amct/export/exporter.h"
#include "amct/export/verify.h"
#include "amct/record/record_file.h"

#include <cstdint>
#include <memory>
#include <optional>
#include <ostream>
#include <string>
#include <vector>

#include "cli/command.h"

namespace amct::cli {
namespace {

/// What both commands may be told of the model.
struct ModelArguments {
  std::string runtime;
  std::string folder;
  std::int64_t heads = 0;
  std::int64_t head_dim = 0;
  std::string dtype;
  std::int64_t ranks = 1;
};

std::optional<std::int64_t> if_given(std::int64_t number) {
  return number > 0 ? std::optional(number) : std::nullopt;
}

std::optional<DType> dtype_of(const std::string& name) {
  for (const DType dtype : {DType::kFloat32, DType::kFloat16, DType::kBFloat16}) {
    if (name == name_of(dtype)) return dtype;
  }
  return std::nullopt;
}

std::vector<std::string> runtime_names() {
  std::vector<std::string> names;
  for (const Runtime& runtime : runtimes()) names.emplace_back(runtime.name);
  return names;
}

void add_model_options(CLI::App& command, ModelArguments& given) {
  command.add_option("--model", given.folder, "Checkpoint folder of the model (config.json).");
  command.add_option("--heads", given.heads, "Key/value heads, where no checkpoint tells them.")
      ->check(CLI::PositiveNumber);
  command
      .add_option("--head-dim", given.head_dim,
                  "Channels of a head, where no checkpoint tells them.")
      ->check(CLI::PositiveNumber);
  command.add_option("--dtype", given.dtype, "Type of the model.")
      ->transform(one_of({"float32", "float16", "bfloat16"}));
  command.add_option("--ranks", given.ranks, "Size of the tensor parallelism.")
      ->check(CLI::PositiveNumber);
}

void print(const Context& context, const std::string& text) {
  context.out << text;
  if (!text.ends_with('\n')) context.out << '\n';
}

}  // namespace

void add_export(CLI::App& program, const OnParsed& on_parsed) {
  CLI::App& command =
      *program.add_subcommand("export", "Write the factors of a record as a runtime reads them.");
  command.footer(
      "\nExample: amct export record.txt --to lmdeploy -o kv_scales.txt\n"
      "Example: amct export record.txt --to vllm --model ./checkpoint");
  struct Arguments {
    std::string record;
    std::string output;
    bool allow_linear_tap = false;
    ModelArguments model;
  };
  const auto given = std::make_shared<Arguments>();
  command.add_option("RECORD", given->record, "A record.")->required();
  command.add_option("--to", given->model.runtime, "Runtime.")
      ->required()
      ->transform(one_of(runtime_names()));
  command.add_option(
      "-o,--output", given->output,
      "File or folder to write; without it the checkpoint of --model gets what it lacks.");
  command.add_flag("--allow-linear-tap", given->allow_linear_tap,
                   "Take keys that were observed at their projection, for models without rotary "
                   "embedding.");
  add_model_options(command, given->model);
  command.callback([given, on_parsed] {
    on_parsed([given = *given](const Context& context) {
      ExportOptions options;
      options.output = given.output;
      options.model_folder = given.model.folder;
      options.heads = if_given(given.model.heads);
      options.head_dim = if_given(given.model.head_dim);
      options.model_dtype = dtype_of(given.model.dtype);
      options.ranks = given.model.ranks;
      options.allow_linear_tap = given.allow_linear_tap;
      const ExportReport report = export_record(given.record, given.model.runtime, options);
      print(context, context.json ? report.to_json() : report.to_text());
      return Exit::kOk;
    });
  });
}

void add_verify(CLI::App& program, const OnParsed& on_parsed) {
  CLI::App& command = *program.add_subcommand(
      "verify", "Say what a runtime makes of a file or folder, key by key.");
  command.footer(
      "\nExits with 3 where the runtime would use something wrong, or not what the record says.\n\n"
      "Example: amct verify kv_scales.txt --as lmdeploy --record record.txt");
  struct Arguments {
    std::string path;
    std::string record;
    std::int64_t layers = 0;
    ModelArguments model;
  };
  const auto given = std::make_shared<Arguments>();
  command.add_option("PATH", given->path, "What was exported: a file or a folder.")->required();
  command.add_option("--as", given->model.runtime, "Runtime.")
      ->required()
      ->transform(one_of(runtime_names()));
  command.add_option("--record", given->record, "The record it was made from, to compare with.");
  command.add_option("--layers", given->layers, "Layers with a cache, where nothing tells them.")
      ->check(CLI::PositiveNumber);
  add_model_options(command, given->model);
  command.callback([given, on_parsed] {
    on_parsed([given = *given](const Context& context) {
      VerifyOptions options;
      if (!given.record.empty()) options.record = read_record(given.record);
      options.model_folder = given.model.folder;
      options.layers = if_given(given.layers);
      options.heads = if_given(given.model.heads);
      options.head_dim = if_given(given.model.head_dim);
      options.model_dtype = dtype_of(given.model.dtype);
      options.ranks = given.model.ranks;
      const VerifyReport report = verify_export(given.path, given.model.runtime, options);
      print(context, context.json ? report.to_json() : report.to_text());
      return report.ok() ? Exit::kOk : Exit::kDiffers;
    });
  });
}

}  // namespace amct::cli
