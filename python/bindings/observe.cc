// Observers and searches, for use without a session.
#include "amct/core/error.h"
#include "amct/observe/observer.h"
#include "amct/search/search.h"

#include <string>
#include <utility>
#include <vector>

#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "bindings.h"

namespace amct_python {
namespace {

using namespace nb::literals;

amct::OptionMap options_of(const amct::AlgorithmSpec& spec, const nb::dict& given) {
  amct::OptionMap options = spec.defaults();
  for (const auto& [key, value] : given) {
    const auto name = nb::cast<std::string>(key);
    const amct::OptionSpec* option = spec.find(name);
    if (option == nullptr) throw amct::ValueError(spec.name + " has no setting '" + name + "'");
    amct::OptionValue converted = option_of(name, value);
    const amct::OptionProblem problem = check_option(*option, converted);
    if (problem.kind != amct::OptionProblem::Kind::kNone) throw amct::ValueError(problem.message);
    options[name] = std::move(converted);
  }
  if (const std::string conflict = spec.conflict(options); !conflict.empty())
    throw amct::ValueError(conflict);
  return options;
}

std::vector<std::pair<float, std::int32_t>> solve(const amct::Observer& observer,
                                                  const std::string& name, bool with_offset,
                                                  const nb::dict& given,
                                                  const std::string& dst_type) {
  const amct::SearchTarget target{amct::grid_named(dst_type, "dst_type"), with_offset};
  const amct::Algorithm* algorithm = amct::find_algorithm(name);
  if (algorithm == nullptr) throw amct::ValueError("there is no algorithm '" + name + "'");
  const amct::OptionMap options = options_of(algorithm->spec, given);
  const nb::gil_scoped_release release;
  std::vector<std::pair<float, std::int32_t>> result(observer.groups());
  if (observer.is_range_only() && algorithm->search_range != nullptr) {
    for (std::size_t group = 0; group < result.size(); ++group) {
      const amct::ValueRange range = observer.range(group);
      const amct::QuantParams params =
          algorithm->search_range(range.min, range.max, target, options).params;
      result[group] = {params.scale, params.offset};
    }
    return result;
  }
  observer.visit([&](std::size_t group, const amct::ValueCounts& values) {
    const amct::QuantParams params = algorithm->search(values, target, options).params;
    result[group] = {params.scale, params.offset};
  });
  return result;
}

}  // namespace

void bind_observe(nb::module_& module) {
  nb::class_<amct::Observer>(module, "Observer",
                             "Counts the values of tensors, per tensor or per channel.")
      .def(
          "__init__",
          [](amct::Observer* self, bool per_channel, bool range_only,
             std::int64_t expected_batches) {
            const auto granularity =
                per_channel ? amct::Granularity::kPerChannel : amct::Granularity::kPerTensor;
            new (self) amct::Observer(
                granularity, {.range_only = range_only, .expected_batches = expected_batches});
          },
          "per_channel"_a = false, "range_only"_a = false, "expected_batches"_a = 1)
      .def(
          "observe",
          [](amct::Observer& self, const Array& batch) {
            const amct::TensorView view = view_of(batch);
            const nb::gil_scoped_release release;
            self.observe(view);
          },
          "batch"_a, nb::sig("def observe(self, batch: typing.Any) -> None"),
          "Add a batch: a float32, float16 or bfloat16 array in CPU memory.")
      .def("merge", &amct::Observer::merge, "other"_a, "Add everything another observer has seen.")
      .def_prop_ro("batches", &amct::Observer::batches)
      .def_prop_ro("rows", &amct::Observer::rows)
      .def_prop_ro("channels", &amct::Observer::channels)
      .def("solve", &solve, "algorithm"_a, "with_offset"_a = true, "options"_a = nb::dict(),
           "dst_type"_a = "INT8",
           nb::sig("def solve(self, algorithm: str, with_offset: bool = True, options: dict[str, "
                   "typing.Any] = {}, dst_type: str = 'INT8') "
                   "-> list[tuple[float, int]]"),
           "Search: a list of (scale, offset), one a group.");
}

}  // namespace amct_python
