// Calibration sessions.
#include "amct/session/session.h"

#include "amct/search/search.h"
#include "amct/session/analysis.h"
#include "amct/session/counts_file.h"

#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include <nanobind/stl/map.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include "bindings.h"

namespace amct_python {
namespace {

using namespace nb::literals;
using amct::LayerResult;

std::vector<std::pair<std::string, amct::OptionValue>> settings_of(const nb::dict& given) {
  std::vector<std::pair<std::string, amct::OptionValue>> settings;
  for (const auto& [key, value] : given) {
    auto name = nb::cast<std::string>(key);
    amct::OptionValue converted = option_of(name, value);
    settings.emplace_back(std::move(name), std::move(converted));
  }
  return settings;
}

void merge_counts(const std::vector<std::string>& inputs, const std::string& output) {
  amct::merge_counts(inputs, output);
}

/// Of a layer: its channels, those of a head (0: not known), and its slice of a fused projection.
using Whole = std::tuple<std::int64_t, std::int64_t,
                         std::optional<std::tuple<std::int64_t, std::int64_t, std::int64_t>>>;

void join_counts(const std::vector<std::string>& inputs, const std::string& output,
                 const std::map<std::string, Whole>& whole) {
  std::map<std::string, amct::WholeLayer> known;
  for (const auto& [name, layer] : whole) {
    const auto& [channels, head_channels, slice] = layer;
    amct::WholeLayer& added = known[name];
    added = {.channels = channels, .head_channels = head_channels, .slice = {}};
    if (!slice) continue;
    const auto& [begin, end, groups] = *slice;
    added.slice = amct::ChannelSlice{.begin = begin, .end = end, .groups = groups};
  }
  amct::join_counts(inputs, output, known);
}

amct::Session operator_session(const nb::dict& params, const std::string& record_file,
                               std::size_t memory_budget) {
  return {amct::parse_operator_params(settings_of(params), amct::algorithm_catalog()),
          record_file,
          {.memory_budget = memory_budget}};
}

/// (whether the layer is finished now or was before, layers that were overwritten in the record).
using Observed = std::pair<bool, std::vector<std::string>>;

Observed observed(amct::Observation observation) {
  return {observation.kind != amct::Observation::Kind::kAdded, std::move(observation.overwritten)};
}

Observed observe(amct::Session& session, const std::string& name, const Array& batch) {
  const amct::TensorView view = view_of(batch);
  const nb::gil_scoped_release release;
  return observed(session.observe(name, view));
}

/// A list in CPU memory.
template <typename T>
using List = nb::ndarray<const T, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

/// Its elements; torch has signed integers where the library has unsigned ones.
template <typename To, typename From>
std::span<const To> span_of(const List<From>& list) {
  static_assert(sizeof(To) == sizeof(From));
  return {reinterpret_cast<const To*>(list.data()), list.size()};
}

Observed observe_counts(amct::Session& session, const std::string& name, bool is_bfloat16,
                        std::int64_t channels, std::int64_t rows, std::int64_t batches,
                        const List<std::int64_t>& group_begin, const List<std::int16_t>& patterns,
                        const List<std::int64_t>& counts) {
  const amct::CountedBatches counted{
      .dtype = is_bfloat16 ? amct::DType::kBFloat16 : amct::DType::kFloat16,
      .channels = channels,
      .rows = rows,
      .batches = batches,
      .group_begin = span_of<std::size_t>(group_begin),
      .patterns = span_of<std::uint16_t>(patterns),
      .counts = span_of<std::uint64_t>(counts)};
  const nb::gil_scoped_release release;
  return observed(session.observe_counts(name, counted));
}

void add_channel_weights(amct::Session& session, const std::string& name,
                         const List<std::int64_t>& weights) {
  const nb::gil_scoped_release release;
  session.add_channel_weights(name, span_of<std::uint64_t>(weights));
}

Observed observe_ranges(amct::Session& session, const std::string& name, std::int64_t channels,
                        std::int64_t rows, std::int64_t batches, std::int64_t non_finite,
                        const List<float>& min, const List<float>& max) {
  const amct::RangedBatches ranged{.channels = channels,
                                   .rows = rows,
                                   .batches = batches,
                                   .non_finite = non_finite,
                                   .min = span_of<float>(min),
                                   .max = span_of<float>(max)};
  const nb::gil_scoped_release release;
  return observed(session.observe_ranges(name, ranged));
}

std::optional<std::int64_t> check(const amct::Session& session, const std::string& name,
                                  std::vector<std::int64_t> shape, std::int64_t batches_before,
                                  std::int64_t channels_before, std::int64_t non_finite,
                                  std::int64_t first_index) {
  const amct::RemoteBatch batch{.shape = std::move(shape),
                                .channels_before = channels_before,
                                .non_finite = non_finite,
                                .first_index = first_index};
  const nb::gil_scoped_release release;
  return session.check(name, batch, batches_before);
}

void bind_analysis(nb::module_& module) {
  using amct::GroupAnalysis;
  using amct::LayerAnalysis;
  nb::class_<GroupAnalysis>(module, "GroupAnalysis", "One group of values that share factors.")
      .def_ro("min", &GroupAnalysis::min, "Smallest value.")
      .def_ro("max", &GroupAnalysis::max, "Largest value.")
      .def_prop_ro("scale", [](const GroupAnalysis& g) { return g.params.scale; })
      .def_prop_ro("offset", [](const GroupAnalysis& g) { return g.params.offset; })
      .def_ro("clip_low", &GroupAnalysis::clip_low, "Smallest value that can be read back.")
      .def_ro("clip_high", &GroupAnalysis::clip_high, "Largest value that can be read back.")
      .def_prop_ro(
          "mse", [](const GroupAnalysis& g) { return g.error.mse(); }, "Mean squared error.")
      .def_prop_ro(
          "sqnr_db", [](const GroupAnalysis& g) { return g.error.sqnr_db(); },
          "Signal to quantization noise ratio, in dB.")
      .def_prop_ro(
          "clipped_fraction", [](const GroupAnalysis& g) { return g.error.clipped_fraction(); },
          "Share of clipped values, 0 to 1.");
  nb::class_<LayerAnalysis>(module, "LayerAnalysis", "How factors sit on a layer's values.")
      .def_ro("name", &LayerAnalysis::name)
      .def_prop_ro("mse", [](const LayerAnalysis& a) { return a.error.mse(); })
      .def_prop_ro("sqnr_db", [](const LayerAnalysis& a) { return a.error.sqnr_db(); })
      .def_prop_ro("clipped_fraction",
                   [](const LayerAnalysis& a) { return a.error.clipped_fraction(); })
      .def_prop_ro(
          "total", [](const LayerAnalysis& a) { return a.error.total; }, "Number of values.")
      .def_ro("histogram_low", &LayerAnalysis::histogram_low, "Edge of the first bin.")
      .def_ro("histogram_high", &LayerAnalysis::histogram_high, "Edge of the last bin.")
      .def_ro("histogram", &LayerAnalysis::histogram, "Counts of all values in equal bins.")
      .def_prop_ro(
          "curve",
          [](const LayerAnalysis& a) {
            std::vector<std::pair<double, double>> points;
            for (const amct::LossPoint& point : a.curve)
              points.emplace_back(point.factor, point.loss);
            return points;
          },
          "(factor, mean squared error) of clip ranges that are the values' own times a factor.")
      .def_ro("groups", &LayerAnalysis::groups, "One, or one a channel or head.")
      .def_ro("channel_max_abs", &LayerAnalysis::channel_max_abs,
              "Largest magnitude of each channel, where channels were observed; else empty.");
  module.def("analyse_files", &amct::analyse_files, nb::call_guard<nb::gil_scoped_release>(),
             "record_file"_a, "counts_file"_a, "bins"_a = 128,
             "How the factors of a record sit on the values of a counts file.");
}

void bind_layer_plan(nb::module_& module) {
  nb::class_<amct::LayerPlan>(module, "LayerPlan", "How a layer is observed.")
      .def_prop_ro(
          "per_channel",
          [](const amct::LayerPlan& p) { return p.granularity == amct::Granularity::kPerChannel; },
          "Whether each channel is observed by itself.")
      .def_ro("channel_factors", &amct::LayerPlan::channel_factors,
              "Whether each channel has factors of its own.")
      .def_ro("weighs_channels", &amct::LayerPlan::weighs_channels,
              "Whether channels are to be weighed before each batch.")
      .def_prop_ro(
          "per_head",
          [](const amct::LayerPlan& p) { return p.granularity == amct::Granularity::kPerHead; },
          "Whether factors are per head.")
      .def_ro("range_only", &amct::LayerPlan::range_only, "Whether the range of values is enough.")
      .def_prop_ro(
          "skips_non_finite",
          [](const amct::LayerPlan& p) { return p.nonfinite == amct::NonFinitePolicy::kSkip; },
          "Whether NaN and infinite values are left out, where an error would be raised else.")
      .def_ro("batch_num", &amct::LayerPlan::batch_num, "Batches needed.");
}

void bind_layer_result(nb::module_& module) {
  nb::class_<LayerResult>(module, "LayerResult", "What a finished layer is known by.")
      .def_ro("name", &LayerResult::name, "Path of the module in the model.")
      .def_ro("algorithm", &LayerResult::algorithm,
              "The search: 'ifmr', 'hfmg', 'minmax', 'percentile', 'mse' or 'kl'.")
      .def_prop_ro(
          "dst_type", [](const LayerResult& r) { return std::string(r.grid.name); },
          "What the cache stores: 'INT8', 'INT4', 'FP8_E4M3', ...")
      .def_prop_ro(
          "granularity", [](const LayerResult& r) { return std::string(name_of(r.granularity)); },
          "'per_tensor', 'per_channel' or 'per_head'.")
      .def_ro("sink_tokens", &LayerResult::sink_tokens,
              "First tokens of each sequence that were left out.")
      .def_ro("with_offset", &LayerResult::with_offset, "Whether the factors have an offset.")
      .def_ro("batches", &LayerResult::batches, "Batches observed.")
      .def_ro("tokens", &LayerResult::rows, "Rows observed: elements / channels.")
      .def_ro("channels", &LayerResult::channels, "Size of the last dimension.")
      .def_ro("non_finite", &LayerResult::non_finite, "NaN and infinite values left out.")
      .def_ro("min", &LayerResult::min, "Smallest value observed.")
      .def_ro("max", &LayerResult::max, "Largest value observed.")
      .def_prop_ro(
          "scales",
          [](const LayerResult& r) {
            std::vector<float> scales;
            for (const amct::QuantParams& params : r.params) scales.push_back(params.scale);
            return scales;
          },
          "One scale, or one a channel.")
      .def_prop_ro(
          "offsets",
          [](const LayerResult& r) {
            std::vector<std::int32_t> offsets;
            for (const amct::QuantParams& params : r.params) offsets.push_back(params.offset);
            return offsets;
          },
          "One offset, or one a channel.")
      .def_ro("sqnr_db", &LayerResult::sqnr_db,
              "Signal to quantization noise ratio, in dB; None where only the range was kept.")
      .def_ro("clipped_fraction", &LayerResult::clipped_fraction,
              "Share of clipped values, 0 to 1; None where only the range was kept.")
      .def_ro(
          "rows", &LayerResult::rows,
          "Rows (tokens) observed; of keys that are turned to other positions each counts again.")
      .def_prop_ro(
          "tap", [](const LayerResult& r) { return std::string(name_of(r.tap)); },
          "Where it was observed: 'linear' or 'cache'.")
      .def_ro("is_sketch", &LayerResult::is_sketch,
              "Whether float32 values went beyond the memory budget and were sketched.")
      .def_ro("observe_seconds", &LayerResult::observe_seconds, "Time spent counting.")
      .def_ro("search_seconds", &LayerResult::search_seconds, "Time spent searching.");
}

}  // namespace

void bind_session(nb::module_& module) {
  bind_layer_result(module);
  bind_layer_plan(module);
  nb::class_<amct::Session>(module, "Session", "A calibration run. Thread-safe.")
      .def(
          "__init__",
          [](amct::Session* self, amct::CalibrationConfig config, std::string record_file,
             std::size_t memory_budget, double writing_share, bool search_in_background,
             std::string counts_file) {
            new (self) amct::Session(std::move(config), std::move(record_file),
                                     {.memory_budget = memory_budget,
                                      .writing_share = writing_share,
                                      .search_in_background = search_in_background,
                                      .counts_file = std::move(counts_file)});
          },
          "config"_a, "record_file"_a, "memory_budget"_a, "writing_share"_a = 1.0,
          "search_in_background"_a = false, "counts_file"_a = "")
      .def_static(
          "for_operator", &operator_session, "params"_a, "record_file"_a, "memory_budget"_a,
          nb::sig(
              "def for_operator(params: dict[str, typing.Any], record_file: str, memory_budget: "
              "int) -> Session"),
          "A session that calibrates whatever layer comes in one way.")
      .def("observe", &observe, "name"_a, "batch"_a,
           nb::sig("def observe(self, name: str, batch: typing.Any) -> tuple[bool, list[str]]"),
           "Add a batch. Returns (finished, names of layers overwritten in the record).")
      .def("observe_counts", &observe_counts, "name"_a, "is_bfloat16"_a, "channels"_a, "rows"_a,
           "batches"_a, "group_begin"_a, "patterns"_a, "counts"_a,
           nb::sig(
               "def observe_counts(self, name: str, is_bfloat16: bool, channels: int, rows: int, "
               "batches: int, group_begin: typing.Any, patterns: typing.Any, counts: "
               "typing.Any) -> tuple[bool, list[str]]"),
           "Add batches by the counts (int64) of their patterns (int16), of group after group, "
           "which "
           "begin at group_begin (int64). Returns as observe does.")
      .def("observe_ranges", &observe_ranges, "name"_a, "channels"_a, "rows"_a, "batches"_a,
           "non_finite"_a, "min"_a, "max"_a,
           nb::sig("def observe_ranges(self, name: str, channels: int, rows: int, batches: int, "
                   "non_finite: int, min: typing.Any, max: typing.Any) -> tuple[bool, list[str]]"),
           "Add batches by the smallest and largest finite value of each group (float32). Returns "
           "as "
           "observe does.")
      .def("add_channel_weights", &add_channel_weights, "name"_a, "weights"_a,
           nb::sig("def add_channel_weights(self, name: str, weights: typing.Any) -> None"),
           "Add to how much each channel of the layer counts (int64), for a batch that is observed "
           "next.")
      .def("plan", &amct::Session::plan, "name"_a, "How the layer is observed.")
      .def("check", &check, "name"_a, "shape"_a, "batches_before"_a, "channels_before"_a,
           "non_finite"_a = 0, "first_index"_a = -1,
           "Raise what observe would raise for a batch that is elsewhere. Returns the batches that "
           "the layer has seen here, or None where it is finished.")
      .def("finished", &amct::Session::finished, nb::call_guard<nb::gil_scoped_release>(), "name"_a,
           "Whether the layer has seen all its batches.")
      .def("write_record", &amct::Session::write_record, nb::call_guard<nb::gil_scoped_release>(),
           "Write factors that are not in the record yet; returns the names overwritten.")
      .def("finish", &amct::Session::finish, nb::call_guard<nb::gil_scoped_release>(),
           "Finish layers that have seen some of their batches; returns the replaced layers.")
      .def("save", &amct::Session::save, nb::call_guard<nb::gil_scoped_release>(), "snapshot"_a,
           "batches_done"_a, "data"_a = "",
           "Save what was seen, for another session to go on from.")
      .def("restore", &amct::Session::restore, nb::call_guard<nb::gil_scoped_release>(),
           "snapshot"_a, "data"_a = "",
           "Go on from what another session saved; returns its batches_done.")
      .def("save_counts", &amct::Session::save_counts, nb::call_guard<nb::gil_scoped_release>(),
           "counts"_a, "Save what unfinished layers were seen to hold as a counts file.")
      .def("results", &amct::Session::results, nb::call_guard<nb::gil_scoped_release>(),
           "The finished layers.")
      .def(
          "unfinished",
          [](const amct::Session& session) {
            std::vector<std::tuple<std::string, std::int64_t, std::int64_t>> result;
            for (const amct::UnfinishedLayer& layer : session.unfinished()) {
              result.emplace_back(layer.name, layer.batches, layer.batch_num);
            }
            return result;
          },
          nb::call_guard<nb::gil_scoped_release>(),
          "The layers that need more batches: (name, batches seen, batches needed).")
      .def("is_complete", &amct::Session::is_complete, nb::call_guard<nb::gil_scoped_release>(),
           "Whether record and counts file have all layers.")
      .def_prop_ro("record_file", &amct::Session::record_file)
      .def_prop_ro("counts_file", &amct::Session::counts_file, "Empty where none is written.");
  module.def(
      "algorithm_names",
      [] {
        std::vector<std::string> names;
        for (const amct::Algorithm& algorithm : amct::algorithms())
          names.push_back(algorithm.spec.name);
        return names;
      },
      "The searches.");
  module.def(
      "solve_counts",
      [](const std::string& path, const nb::dict& changes) {
        const std::vector<std::pair<std::string, amct::OptionValue>> settings =
            settings_of(changes);
        const nb::gil_scoped_release release;
        return amct::solve_counts(path, settings);
      },
      "path"_a, "changes"_a,
      nb::sig("def solve_counts(path: str, changes: dict[str, typing.Any]) -> list[LayerResult]"),
      "Search the factors of every layer of a counts file, with some settings replaced.");
  module.def("merge_counts", &merge_counts, nb::call_guard<nb::gil_scoped_release>(), "inputs"_a,
             "output"_a, "Write the sum of counts files.");
  module.def("join_counts", &join_counts, nb::call_guard<nb::gil_scoped_release>(), "inputs"_a,
             "output"_a, "whole"_a, "Write counts files of shards as one of whole layers.");
  bind_analysis(module);
  module.def(
      "write_record",
      [](const std::string& path, const std::vector<LayerResult>& results) {
        std::vector<amct::LayerRecord> layers;
        for (const LayerResult& result : results) layers.push_back(amct::record_of(result));
        amct::write_record(path, layers);
      },
      nb::call_guard<nb::gil_scoped_release>(), "path"_a, "results"_a,
      "Write the factors of some results as a record file of them alone.");
}

}  // namespace amct_python
