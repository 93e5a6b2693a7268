// Parameters of an operator, as Python's dictionary gives them, and what is done with them: pairs
// of a key and a value, each after its kind and its size.
#include "amct/config/operator_params.h"
#include "amct/search/search.h"
#include "amct/session/session.h"

#include <array>
#include <cstdlib>
#include <filesystem>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "files.h"

namespace {

using namespace amct;
using fuzz::Input;

constexpr std::array<const char*, 20> kKeys{
    "act_algo",    "batch_num",      "with_offset",     "asymmetric",  "quant_granularity",
    "num_bits",    "dst_type",       "head_num",        "nonfinite",   "max_percentile",
    "search_step", "search_range",   "search_clip_min", "num_of_bins", "percentile",
    "tap",         "min_percentile", "slice",           "sink_tokens", ""};

OptionValue value_of(Input& input) {
  switch (input.number<std::uint8_t>() % 5) {
    case 0:
      return (input.number<std::uint8_t>() & 1) != 0;
    case 1:
      return input.number<std::int64_t>();
    case 2:
      return input.number<double>();
    case 3:
      return std::string(input.text(input.number<std::uint8_t>()));
    default: {
      std::vector<double> numbers(input.number<std::uint8_t>() % 4);
      for (double& number : numbers) number = input.number<double>();
      return numbers;
    }
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  Input input(fuzz::text(data, size));
  std::vector<std::pair<std::string, OptionValue>> params;
  while (!input.empty() && params.size() < 16) {
    const std::uint8_t kind = input.number<std::uint8_t>();
    std::string key = kind < 2 * kKeys.size() ? std::string(kKeys[kind / 2])
                                              : std::string(input.text(kind - 2 * kKeys.size()));
    OptionValue value = value_of(input);
    params.emplace_back(std::move(key), std::move(value));
  }
  fuzz::expect_no_crash([&] {
    OperatorParams parsed = parse_operator_params(params, algorithm_catalog());
    if (parsed.batch_num < 1) std::abort();
    // So many candidates take long, and are none of the reader's business.
    for (const auto& [key, value] : params) {
      if (key == "search_step") return;
    }
    parsed.batch_num = 1;
    const std::string record = fuzz::folder() + "/record.txt";
    std::filesystem::remove(record);
    Session session(std::move(parsed), record, {.memory_budget = 1 << 20});
    const std::array<float, 8> values{0.5F, -1, 2, 3, -0.25F, 1e-3F, 7, -6};
    session.observe("a", TensorView::contiguous(values.data(), DType::kFloat32, {2, 4}));
    session.finish();
  });
  return 0;
}
