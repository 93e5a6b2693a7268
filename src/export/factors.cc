#include "export/factors.h"

#include "amct/core/error.h"
#include "amct/core/file.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <utility>

namespace amct {
namespace {

/// Collects what of a record a runtime cannot be told, and the setting that it can.
class Refusal {
 public:
  Refusal(const Runtime& runtime, std::optional<std::int64_t> heads) : runtime_(&runtime) {
    nearest_.granularity = runtime.capability.granularities.front();
    nearest_.heads = heads.value_or(0);
  }

  /// `layer` in its coarsest form.
  void look_at(const LayerRecord& layer) {
    const Capability& capability = runtime_->capability;
    const bool grid_fits =
        std::ranges::find(capability.grids, layer.grid) != capability.grids.end();
    if (!grid_fits) add(layer, std::string(layer.grid.name), names(capability.grids));
    const Grid& grid = grid_fits ? layer.grid : capability.grids.front();
    // A record of two formats is refused by the runtimes that have one for all.
    nearest_.grid = grid;
    const Granularity own = granularity_of(layer);
    if (own == Granularity::kPerHead)
      nearest_.heads = static_cast<std::int64_t>(layer.params.size());
    Granularity fitting = capability.granularities.front();
    for (const Granularity granularity : capability.granularities) {
      if (fineness(granularity) <= fineness(own)) fitting = granularity;
    }
    if (fitting != own) add(layer, std::string(name_of(own)), names(capability.granularities));
    if (fineness(fitting) > fineness(nearest_.granularity)) nearest_.granularity = fitting;
    const bool has_offset =
        std::ranges::any_of(layer.params, [](const QuantParams& p) { return p.offset != 0; });
    if (has_offset && !capability.with_offset) add(layer, "offsets", "none");
    // A float format had no offsets to tell whether they are wanted.
    const bool wants_offset = has_offset || layer.grid.is_float();
    if (wants_offset && capability.with_offset && !grid.is_float()) nearest_.with_offset = true;
  }

  /// Keys that were observed before they became what is stored.
  void early_keys(const LayerRecord& layer, const std::string& why) {
    if (early_.empty())
      early_ = "layer '" + layer.name + "' was observed at its projection, " + why;
  }

  void throw_if_any() const {
    if (problems_.empty() && early_.empty()) return;
    Setting nearest = nearest_;
    if (nearest.granularity != Granularity::kPerHead) nearest.heads = 0;
    std::string what = std::string(runtime_->name) + " cannot use this record: ";
    if (!problems_.empty()) what += "layer '" + layer_ + "' has " + problems_;
    if (!early_.empty()) what += (problems_.empty() ? "" : "; ") + early_;
    what += "; the nearest that it can: " + nearest.command();
    if (!early_.empty()) {
      what += ", with counts of tap cache, or allow_linear_tap for a model that does neither";
    }
    throw Unrepresentable(what, nearest);
  }

 private:
  static int fineness(Granularity granularity) {
    if (granularity == Granularity::kPerTensor) return 0;
    return granularity == Granularity::kPerHead ? 1 : 2;
  }
  static std::string names(std::span<const Grid> grids) {
    std::string text;
    for (const Grid& grid : grids) text += (text.empty() ? "" : " or ") + std::string(grid.name);
    return text;
  }
  static std::string names(std::span<const Granularity> granularities) {
    std::string text;
    for (const Granularity granularity : granularities) {
      text += (text.empty() ? "" : " or ") + std::string(name_of(granularity));
    }
    return text;
  }

  void add(const LayerRecord& layer, const std::string& has, const std::string& reads) {
    if (layer_.empty()) layer_ = layer.name;
    const std::string problem = has + " (read: " + reads + ")";
    if (problems_.find(problem) != std::string::npos) return;
    problems_ += (problems_.empty() ? "" : ", ") + problem;
  }

  const Runtime* runtime_;
  std::string layer_;
  std::string problems_;
  std::string early_;
  Setting nearest_;
};

void look_at_taps(const Runtime& runtime, const ExportOptions& options, ExportJob* job,
                  Refusal* refusal) {
  if (!runtime.capability.quantizes_what_is_stored) return;
  bool warned = false;
  for (const AttentionLayer& layer : job->layers) {
    if (layer.key.tap == Tap::kCache || options.allow_linear_tap) continue;
    if (granularity_of(layer.key) == Granularity::kPerChannel) {
      refusal->early_keys(layer.key,
                          "but keys are stored after rotary embedding, which mixes the "
                          "channels that have factors of their own");
    } else if (job->checkpoint && job->checkpoint->normalizes_keys(layer)) {
      refusal->early_keys(layer.key,
                          "but keys are stored after the model's k_norm, which scales "
                          "them, and after rotary embedding");
    } else if (!std::exchange(warned, true)) {
      job->report.warnings.push_back(
          "keys were observed at their projection (tap linear), and " + std::string(runtime.name) +
          " quantizes them after rotary embedding: they may reach further there; counts of tap "
          "cache are right");
    }
  }
}

void look_for_gaps(ExportJob* job) {
  std::vector<std::int64_t> missing;
  std::int64_t expected = 0;
  const auto missing_up_to = [&](std::int64_t end) {
    while (expected < end && missing.size() < 4) missing.push_back(expected++);
  };
  for (const AttentionLayer& layer : job->layers) {
    missing_up_to(layer.index);
    expected = layer.index + 1;
  }
  if (job->checkpoint && job->checkpoint->model().layers) {
    missing_up_to(*job->checkpoint->model().layers);
  }
  if (missing.empty()) return;
  std::string text;
  for (const std::int64_t index : missing)
    text += (text.empty() ? "" : ", ") + std::to_string(index);
  if (missing.size() == 4) text += ", ...";
  job->report.warnings.push_back("the record has no layer " + text +
                                 "; that is right only where the model caches nothing there");
}

}  // namespace

std::string Setting::command() const {
  std::string text = "amct solve COUNTS --dst-type " + std::string(grid.name) + " --granularity " +
                     std::string(name_of(granularity));
  if (granularity == Granularity::kPerHead)
    text += " --heads " + (heads > 0 ? std::to_string(heads) : "HEADS");
  if (!with_offset) text += " --symmetric";
  return text + " -o record.txt";
}

ExportJob start_export(const Runtime& runtime, std::span<const LayerRecord> layers,
                       const ExportOptions& options) {
  ExportJob job;
  job.report.runtime = runtime.name;
  job.layers = model_layers(layers);
  job.heads = options.heads;
  job.head_dim = options.head_dim;
  for (const auto& number : {options.heads, options.head_dim, std::optional(options.ranks)}) {
    if (number && (*number <= 0 || *number > 1 << 24)) {
      throw ValueError("heads, head_dim and ranks are positive numbers, not " +
                       std::to_string(*number));
    }
  }
  if (!options.model_folder.empty()) {
    job.checkpoint.emplace(options.model_folder);
    job.checkpoint->rename(job.layers);
    if (!job.heads) job.heads = job.checkpoint->model().heads;
    if (!job.head_dim) job.head_dim = job.checkpoint->model().head_dim;
  }
  Refusal refusal(runtime, job.heads);
  for (AttentionLayer& layer : job.layers) {
    for (LayerRecord* half : {&layer.key, &layer.value}) {
      if (half->per_head && job.heads && std::cmp_not_equal(half->params.size(), *job.heads)) {
        throw ValueError("layer '" + half->name + "' has factors of " +
                         std::to_string(half->params.size()) + " heads, and the model has " +
                         std::to_string(*job.heads));
      }
      *half = coarsened(std::move(*half), job.heads);
      refusal.look_at(*half);
    }
  }
  look_at_taps(runtime, options, &job, &refusal);
  refusal.throw_if_any();
  const Grid& first = job.layers.front().key.grid;
  for (const AttentionLayer& layer : job.layers) {
    for (const LayerRecord* half : {&layer.key, &layer.value}) {
      if (half->grid == first) continue;
      throw ValueError("layer '" + half->name + "' is " + std::string(half->grid.name) +
                       " and the first " + std::string(first.name) + "; " +
                       std::string(runtime.name) + " stores all layers alike");
    }
  }
  look_for_gaps(&job);
  return job;
}

float merged_scale(const AttentionLayer& layer, ExportReport* report) {
  const float key = layer.key.params.front().scale;
  const float value = layer.value.params.front().scale;
  const float larger = std::max(key, value);
  if (larger > 2 * std::min(key, value)) {
    report->warnings.push_back("layer " + std::to_string(layer.index) + ": " + report->runtime +
                               " has one scale for keys and values, and theirs are " +
                               plain_decimal(key) + " and " + plain_decimal(value) +
                               ": the smaller half is stored " +
                               plain_decimal(std::round(larger / std::min(key, value))) +
                               " times coarser than it was calibrated");
  }
  return larger;
}

void warn_of_rounding(const ExportOptions& options, ExportJob* job) {
  std::optional<DType> dtype = options.model_dtype;
  if (!dtype && job->checkpoint) dtype = job->checkpoint->model().dtype;
  if (!dtype) return;
  for (const AttentionLayer& layer : job->layers) {
    for (const LayerRecord* half : {&layer.key, &layer.value}) {
      const auto is_lost = [&](const QuantParams& params) {
        return !keeps(*dtype, static_cast<double>(params.scale));
      };
      const auto lost = std::ranges::find_if(half->params, is_lost);
      if (lost == half->params.end()) continue;
      job->report.warnings.push_back("layer '" + half->name + "': the runtime keeps scales in " +
                                     std::string(name_of(*dtype)) + ", which has no number near " +
                                     plain_decimal(lost->scale));
    }
  }
}

std::string plain_decimal(float value) {
  std::array<char, 128> buffer{};  // FLT_TRUE_MIN takes 47 characters, FLT_MAX 39
  const auto result =
      std::to_chars(buffer.data(), buffer.data() + buffer.size(), value, std::chars_format::fixed);
  return {buffer.data(), result.ptr};
}

double round_to(DType dtype, double x) {
  if (dtype == DType::kFloat32) return static_cast<double>(static_cast<float>(x));
  if (x == 0 || !std::isfinite(x)) return x;
  const bool bfloat = dtype == DType::kBFloat16;
  const int smallest = bfloat ? -126 : -14;
  const int mantissa = bfloat ? 7 : 10;
  const double largest = bfloat ? 0x1.FEp127 : 65504.0;
  int exponent = 0;
  std::frexp(x, &exponent);
  const double step = std::ldexp(1.0, std::max(exponent - 1, smallest) - mantissa);
  const double rounded = std::nearbyint(x / step) * step;
  return std::fabs(rounded) > largest ? std::copysign(HUGE_VAL, x) : rounded;
}

bool keeps(DType dtype, double x) {
  constexpr double kTolerable = 0.01;
  return std::fabs(round_to(dtype, x) - x) <= kTolerable * std::fabs(x);
}

double precision_of(DType dtype) {
  if (dtype == DType::kFloat32) return 0;
  return dtype == DType::kBFloat16 ? 0x1p-8 : 0x1p-11;
}

void write_reported(const std::string& path, std::string_view content, const std::string& what,
                    ExportReport* report) {
  write_file_atomically(path, content);
  report->files.push_back({path, what});
}

void require_output_file(const Runtime& runtime, const ExportOptions& options) {
  if (options.output.empty()) {
    throw ValueError(std::string(runtime.name) + " reads a file: give the path to write it to");
  }
  check_output_path(options.output);
}

}  // namespace amct
