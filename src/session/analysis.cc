#include "amct/session/analysis.h"

#include "amct/core/error.h"
#include "amct/core/grid.h"
#include "amct/session/counts_file.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <optional>
#include <span>
#include <utility>

#include "session/joined_groups.h"

namespace amct {
namespace {

constexpr int kLowestEighth = 1;
constexpr int kHighestEighth = 10;

Granularity granularity_of(const LayerRecord& factors, const Observer& observer) {
  if (factors.per_head) return Granularity::kPerHead;
  const auto channels = static_cast<std::size_t>(observer.channels());
  if (factors.params.size() == channels && observer.granularity() == Granularity::kPerChannel)
    return Granularity::kPerChannel;
  if (factors.params.size() == 1) return Granularity::kPerTensor;
  throw ValueError("it has " + std::to_string(factors.params.size()) + " factors, but " +
                   std::to_string(channels) + " channels were observed " +
                   std::string(name_of(observer.granularity())));
}

double lowest(const Grid& grid, QuantParams params) {
  if (grid.is_float()) return -static_cast<double>(grid.limit(false)) * params.scale;
  return grid.dequantize(grid.qmin, params);
}

double highest(const Grid& grid, QuantParams params) {
  if (grid.is_float()) return static_cast<double>(grid.limit(false)) * params.scale;
  return grid.dequantize(grid.qmax, params);
}

/// What one group gives to its layer.
struct Part {
  GroupAnalysis group;
  std::vector<double> squared_errors;  // of the curve's points
};

std::vector<double> factors_of_curve() {
  std::vector<double> factors;
  for (int i = kLowestEighth; i <= kHighestEighth; ++i) factors.push_back(i / 8.0);
  return factors;
}

Part analyse_group(const ValueCounts& values, const Grid& grid, QuantParams params,
                   std::span<const double> factors) {
  if (values.empty()) throw StateError("a group has no finite value");
  Part part{.group = {.min = values.min(),
                      .max = values.max(),
                      .params = params,
                      .clip_low = lowest(grid, params),
                      .clip_high = highest(grid, params),
                      .error = quantization_error(values, grid, params)},
            .squared_errors = {}};
  // As the factors are: with an offset where they have one.
  const bool with_offset = params.offset != 0;
  for (const double factor : factors) {
    const QuantParams tried = minmax_params(grid, static_cast<float>(values.min() * factor),
                                            static_cast<float>(values.max() * factor), with_offset);
    part.squared_errors.push_back(quantization_error(values, grid, tried).squared_error);
  }
  return part;
}

/// Adds values to equal bins; `low` < `high` hold them all.
void add_to_histogram(const ValueCounts& values, double low, double high,
                      std::vector<std::uint64_t>& bins) {
  const double scale = static_cast<double>(bins.size()) / (high - low);
  for (std::size_t i = 0; i < values.values().size(); ++i) {
    const double place = (static_cast<double>(values.values()[i]) - low) * scale;
    const auto bin = std::min(bins.size() - 1, static_cast<std::size_t>(std::max(0.0, place)));
    bins[bin] += values.count(i);
  }
}

}  // namespace

LayerAnalysis analyse(const LayerRecord& factors, const Observer& observer, std::int64_t bins) {
  if (bins < 1) throw ValueError("a histogram needs at least one bin");
  if (observer.is_range_only()) throw ValueError("only the range of its values was kept");
  const Granularity granularity = granularity_of(factors, observer);
  const std::size_t joined =
      groups_joined(granularity, static_cast<std::int64_t>(factors.params.size()), observer);
  const std::size_t groups = observer.groups() / joined;
  if (groups != factors.params.size()) {
    throw ValueError("it has " + std::to_string(factors.params.size()) + " factors for " +
                     std::to_string(groups) + " groups");
  }
  const std::vector<double> curve = factors_of_curve();
  std::vector<Part> parts(groups);
  visit_joined(observer, joined, [&](std::size_t group, const ValueCounts& values) {
    parts[group] = analyse_group(values, factors.grid, factors.params[group], curve);
  });

  LayerAnalysis result;
  result.name = factors.name;
  result.histogram_low = parts.front().group.min;
  result.histogram_high = parts.front().group.max;
  for (const double factor : curve) result.curve.push_back({factor, 0});
  for (const Part& part : parts) {
    result.error += part.group.error;
    result.histogram_low = std::min<double>(result.histogram_low, part.group.min);
    result.histogram_high = std::max<double>(result.histogram_high, part.group.max);
    for (std::size_t i = 0; i < curve.size(); ++i) result.curve[i].loss += part.squared_errors[i];
    result.groups.push_back(part.group);
  }
  for (LossPoint& point : result.curve) point.loss /= result.error.total;
  if (!(result.histogram_low < result.histogram_high)) {  // a constant
    result.histogram_low -= 1;
    result.histogram_high += 1;
  }
  result.histogram.assign(static_cast<std::size_t>(bins), 0);
  const bool per_channel = observer.granularity() == Granularity::kPerChannel;
  for (std::size_t group = 0; group < observer.groups(); ++group) {
    const ValueCounts values = observer.value_counts(group);
    add_to_histogram(values, result.histogram_low, result.histogram_high, result.histogram);
    if (per_channel) result.channel_max_abs.push_back(values.max_abs());
  }
  return result;
}

std::vector<LayerAnalysis> analyse_files(const std::string& record_file,
                                         const std::string& counts_file, std::int64_t bins) {
  const std::vector<LayerRecord> layers = read_record(record_file);
  std::map<std::string, LayerAnalysis> found;
  CountsReader reader(counts_file);
  while (const std::optional<LayerCounts> counts = reader.next()) {
    const std::string& name = counts->config.name;
    const auto factors = std::ranges::find(layers, name, &LayerRecord::name);
    if (factors == layers.end()) continue;
    const std::string where = record_file + ": layer '" + name + "': ";
    try {
      found.emplace(name, analyse(*factors, counts->observer, bins));
    } catch (const StateError& error) {
      throw StateError(where + error.what());
    } catch (const ValueError& error) {
      throw ValueError(where + error.what());
    }
  }
  if (found.empty()) {
    throw ValueError(counts_file + ": has no layer of " + record_file +
                     "; they are of different models");
  }
  std::vector<LayerAnalysis> result;
  for (const LayerRecord& layer : layers) {
    if (const auto analysis = found.find(layer.name); analysis != found.end())
      result.push_back(std::move(analysis->second));
  }
  return result;
}

}  // namespace amct
