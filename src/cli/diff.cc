// amct diff: how two records differ.
#include "amct/core/decimal.h"
#include "amct/record/record_file.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <map>
#include <memory>
#include <optional>
#include <ostream>
#include <string>
#include <vector>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "cli/command.h"

namespace amct::cli {
namespace {

using Json = nlohmann::ordered_json;

struct Difference {
  std::string layer;
  std::string what;         ///< in words; empty where the layers are equal
  bool compared = false;    ///< whether there are factors to compare
  double scale_ratio = 1;   ///< the one farthest from 1, second to first
  std::int64_t offset = 0;  ///< the largest, second less first
};

std::string_view role_of(const LayerRecord& layer) {
  const auto role = layer.known_role();
  return role ? name_of(*role) : "unknown";
}

/// What differs beside the factors.
std::string other_differences(const LayerRecord& a, const LayerRecord& b) {
  std::string what;
  const auto add = [&](std::string_view name, std::string_view from, std::string_view to) {
    if (from != to) what += fmt::format("{}{} {} -> {}", what.empty() ? "" : "; ", name, from, to);
  };
  add("format", a.grid.name, b.grid.name);
  add("role", role_of(a), role_of(b));
  add("tap", name_of(a.tap), name_of(b.tap));
  add("sink_tokens", std::to_string(a.sink_tokens), std::to_string(b.sink_tokens));
  add("per head", a.per_head ? "yes" : "no", b.per_head ? "yes" : "no");
  add("factors", std::to_string(a.params.size()), std::to_string(b.params.size()));
  return what;
}

Difference compare(const LayerRecord& a, const LayerRecord& b, double tolerance) {
  Difference difference{.layer = a.name, .what = other_differences(a, b)};
  if (a.params.size() != b.params.size()) return difference;
  difference.compared = true;
  double farthest = 0;
  std::size_t changed = 0;
  for (std::size_t i = 0; i < a.params.size(); ++i) {
    const double ratio =
        static_cast<double>(b.params[i].scale) / static_cast<double>(a.params[i].scale);
    const std::int64_t offset = std::int64_t{b.params[i].offset} - std::int64_t{a.params[i].offset};
    if (std::fabs(std::log(ratio)) > farthest) {
      farthest = std::fabs(std::log(ratio));
      difference.scale_ratio = ratio;
    }
    if (std::abs(offset) > std::abs(difference.offset)) difference.offset = offset;
    if (std::fabs(ratio - 1) > tolerance || offset != 0) ++changed;
  }
  if (changed == 0) return difference;
  difference.what += fmt::format("{}{} of {} factors", difference.what.empty() ? "" : "; ", changed,
                                 a.params.size());
  return difference;
}

Exit diff(const std::string& first, const std::string& second, double tolerance,
          const Context& context) {
  const std::vector<LayerRecord> a = read_record(first);
  const std::vector<LayerRecord> b = read_record(second);
  std::map<std::string, const LayerRecord*> others;
  for (const LayerRecord& layer : b) others.emplace(layer.name, &layer);
  std::vector<Difference> differences;
  for (const LayerRecord& layer : a) {
    const auto other = others.find(layer.name);
    if (other == others.end()) {
      differences.push_back({.layer = layer.name, .what = "only in the first"});
      continue;
    }
    Difference difference = compare(layer, *other->second, tolerance);
    if (!difference.what.empty()) differences.push_back(std::move(difference));
    others.erase(other);
  }
  for (const LayerRecord& layer : b) {
    if (others.contains(layer.name))
      differences.push_back({.layer = layer.name, .what = "only in the second"});
  }
  const std::size_t layers = a.size() + others.size();
  if (context.json) {
    Json json{{"equal", differences.empty()}, {"layers", Json::array()}};
    for (const Difference& d : differences) {
      json["layers"].push_back({{"layer", d.layer},
                                {"difference", d.what},
                                {"scale_ratio", d.scale_ratio},
                                {"offset", d.offset}});
    }
    context.write(json);
  } else if (differences.empty()) {
    context.out << "equal: " << a.size() << " layers\n";
  } else {
    std::vector<std::vector<std::string>> rows{{"layer", "differs in", "scale", "offset"}};
    for (const Difference& d : differences) {
      rows.push_back({d.layer, d.what,
                      d.compared ? fmt::format("x{:.6g}", d.scale_ratio) : std::string("-"),
                      d.compared ? fmt::format("{:+}", d.offset) : std::string("-")});
    }
    context.out << table(rows) << '\n'
                << differences.size() << " of " << layers << " layers differ\n";
  }
  return differences.empty() ? Exit::kOk : Exit::kDiffers;
}

}  // namespace

void add_diff(CLI::App& program, const OnParsed& on_parsed) {
  CLI::App& command = *program.add_subcommand("diff", "Compare two records, layer by layer.");
  command.footer(
      "\nExits with 3 where they differ.\n\nExample: amct diff old.txt new.txt --tolerance 0.01");
  const auto first = std::make_shared<std::string>();
  const auto second = std::make_shared<std::string>();
  const auto tolerance = std::make_shared<double>(0);
  command.add_option("FIRST", *first, "A record.")->required();
  command.add_option("SECOND", *second, "Another one.")->required();
  command
      .add_option("--tolerance", *tolerance, "Relative difference of scales that is passed over.")
      ->check(CLI::NonNegativeNumber);
  command.callback([=] {
    on_parsed([first = *first, second = *second, tolerance = *tolerance](const Context& context) {
      return diff(first, second, tolerance, context);
    });
  });
}

}  // namespace amct::cli
