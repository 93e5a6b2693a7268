// amct solve: factors from counts, without the model.
#include "amct/core/error.h"
#include "amct/core/file.h"
#include "amct/core/grid.h"
#include "amct/record/record_file.h"
#include "amct/search/search.h"
#include "amct/session/counts_file.h"

#include <algorithm>
#include <array>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <ostream>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "cli/command.h"

namespace amct::cli {
namespace {

using Json = nlohmann::ordered_json;
using Changes = std::vector<std::pair<std::string, OptionValue>>;

struct Arguments {
  std::string counts;
  std::string record;
  bool has_record = false;
  std::string algorithm;
  std::string dst_type;
  std::string granularity;
  std::int64_t heads = 0;
  bool symmetric = false;
  bool asymmetric = false;
  std::vector<std::string> settings;  // key=value
};

/// What says which values were counted, and cannot be changed behind that. Weights of queries are
/// kept beside the counts, so they can be left out.
constexpr std::array<std::string_view, 6> kObserved{"tap",          "role",         "slice",
                                                    "slice_groups", "max_position", "sink_tokens"};

/// By their number in the configuration file.
std::vector<std::string> granularity_names() { return {"per_tensor", "per_channel", "per_head"}; }

Changes changes_of(const Arguments& given) {
  const bool per_head = given.granularity == "per_head";
  if (per_head && given.heads == 0)
    throw CLI::ValidationError("--granularity", "per_head needs --heads, the number of heads");
  if (!per_head && given.heads > 0)
    throw CLI::ValidationError("--heads", "is for --granularity per_head");
  Changes changes;
  if (!given.algorithm.empty()) changes.emplace_back("act_algo", given.algorithm);
  if (!given.dst_type.empty()) changes.emplace_back("dst_type", given.dst_type);
  if (!given.granularity.empty()) {
    const std::vector<std::string> names = granularity_names();
    changes.emplace_back("quant_granularity",
                         std::ranges::find(names, given.granularity) - names.begin());
  }
  if (given.heads > 0) changes.emplace_back("head_num", given.heads);
  if (given.symmetric || given.asymmetric) changes.emplace_back("asymmetric", given.asymmetric);
  for (const std::string& setting : given.settings) {
    const std::size_t equals = setting.find('=');
    if (equals == std::string::npos || equals == 0)
      throw CLI::ValidationError("--set", "must be KEY=VALUE, not " + setting);
    const std::string key = setting.substr(0, equals);
    if (std::ranges::find(kObserved, key) != kObserved.end()) {
      throw CLI::ValidationError(
          "--set", key +
                       " says what is observed, and the counts were observed as they are; "
                       "calibrate again to change it");
    }
    changes.emplace_back(key, option_value(setting.substr(equals + 1)));
  }
  return changes;
}

/// Settings that no layer can have are a wrong command line. Layers mostly have the same ones, so
/// the first tells.
void check_changes(const std::string& counts, const Changes& changes) {
  const std::optional<LayerCounts> layer = CountsReader(counts).next();
  if (!layer) return;
  try {
    with_settings(layer->config, changes, algorithm_catalog());
  } catch (const ValueError& error) {
    throw CLI::ValidationError(error.what());
  }
}

Exit solve(const std::string& counts, const std::string& record, const Changes& changes,
           const Context& context) {
  if (!record.empty()) {
    check_output_path(record);
    check_different_files(std::array{counts, record});
  }
  if (!changes.empty()) check_changes(counts, changes);
  context.progress("searching");
  const std::vector<LayerResult> results = solve_counts(counts, changes);
  context.end_progress();
  std::vector<std::vector<std::string>> rows{
      {"layer", "search", "format", "granularity", "offset", "SQNR dB", "clipped"}};
  Json json{{"record", nullptr}, {"layers", Json::array()}};
  if (!record.empty()) json["record"] = record;
  std::vector<LayerRecord> layers;
  for (const LayerResult& result : results) {
    layers.push_back(record_of(result));
    const auto sqnr = result.sqnr_db ? fmt::format("{:.1f}", *result.sqnr_db) : std::string("-");
    const auto clipped = result.clipped_fraction
                             ? fmt::format("{:.4f}%", *result.clipped_fraction * 100)
                             : std::string("-");
    rows.push_back({result.name, result.algorithm, std::string(result.grid.name),
                    std::string(name_of(result.granularity)), result.with_offset ? "yes" : "no",
                    sqnr, clipped});
    Json entry{{"layer", result.name},
               {"act_algo", result.algorithm},
               {"dst_type", result.grid.name},
               {"granularity", name_of(result.granularity)},
               {"with_offset", result.with_offset},
               {"min", result.min},
               {"max", result.max},
               {"sqnr_db", nullptr},
               {"clipped_fraction", nullptr}};
    if (result.sqnr_db) entry["sqnr_db"] = *result.sqnr_db;
    if (result.clipped_fraction) entry["clipped_fraction"] = *result.clipped_fraction;
    json["layers"].push_back(std::move(entry));
  }
  if (!record.empty()) write_record(record, layers);
  if (context.json) {
    context.write(json);
  } else {
    context.out << table(rows);
    if (!record.empty())
      context.out << '\n' << printable(record) << ": " << layers.size() << " layers\n";
  }
  return Exit::kOk;
}

std::vector<std::string> algorithm_names() {
  std::vector<std::string> names;
  for (const Algorithm& algorithm : algorithms()) names.push_back(algorithm.spec.name);
  return names;
}

std::vector<std::string> grid_names() {
  std::vector<std::string> names;
  for (const Grid& grid : grids()) names.emplace_back(grid.name);
  return names;
}

}  // namespace

void add_solve(CLI::App& program, const OnParsed& on_parsed) {
  CLI::App& command = *program.add_subcommand(
      "solve", "Search factors again from what a calibration saw, without the model.");
  command.footer(
      "\nWithout settings the factors are those of the calibration. A granularity may be coarser "
      "than\n"
      "what was observed, not finer.\n\n"
      "Example: amct solve all.counts -o int4.txt --algorithm mse --dst-type INT4\n"
      "Example: amct solve all.counts -o fp8.txt --dst-type FP8_E4M3 --granularity per_tensor");
  const auto given = std::make_shared<Arguments>();
  const std::vector<std::string> granularities = granularity_names();
  const std::map<std::string, std::string> numbers{
      {"0", granularities[0]}, {"1", granularities[1]}, {"2", granularities[2]}};
  command.add_option("COUNTS", given->counts, "Counts file.")->required();
  const CLI::Option* record = command.add_option(
      "-o,--record", given->record, "Record to write; without it the result is shown.");
  command.add_option("--algorithm", given->algorithm, "Search.")
      ->transform(one_of(algorithm_names()));
  command.add_option("--dst-type", given->dst_type, "What the cache stores.")
      ->transform(one_of(grid_names()));
  command.add_option("--granularity", given->granularity, "What has a factor of its own.")
      ->transform(one_of(granularities))
      ->transform(CLI::Transformer(numbers).description(""));
  command.add_option("--heads", given->heads, "Heads, for factors per head.")
      ->check(CLI::PositiveNumber);
  CLI::Option* symmetric =
      command.add_flag("--symmetric", given->symmetric, "Factors without offset.");
  command.add_flag("--asymmetric", given->asymmetric, "Factors with offset.")->excludes(symmetric);
  command.add_option("--set", given->settings,
                     "Another setting of the configuration file, KEY=VALUE: percentile=0.999, "
                     "query_weighted=false.");
  command.callback([given, record, on_parsed] {
    given->has_record = record->count() > 0;
    on_parsed([given = *given, changes = changes_of(*given)](const Context& context) {
      if (given.has_record) check_output_path(given.record);
      return solve(given.counts, given.record, changes, context);
    });
  });
}

void add_merge(CLI::App& program, const OnParsed& on_parsed) {
  CLI::App& command =
      *program.add_subcommand("merge", "Add up counts files, as if one run had seen all batches.");
  command.footer(
      "\nWhere they were to be searched in different ways, the first file that has a layer counts; "
      "`amct solve` takes others.\n"
      "\nExample: amct merge rank0.counts rank1.counts -o all.counts");
  const auto inputs = std::make_shared<std::vector<std::string>>();
  const auto output = std::make_shared<std::string>();
  command.add_option("COUNTS", *inputs, "Counts files.")->required();
  command.add_option("-o,--output", *output, "Counts file to write.")->required();
  command.callback([inputs, output, on_parsed] {
    on_parsed([inputs = *inputs, output = *output](const Context& context) {
      check_output_path(output);
      context.progress("merging");
      merge_counts(inputs, output);
      context.end_progress();
      if (context.json) {
        context.write(Json{{"counts", output}, {"files", inputs}});
      } else {
        context.out << printable(output) << ": the sum of " << inputs.size() << " files\n";
      }
      return Exit::kOk;
    });
  });
}

}  // namespace amct::cli
