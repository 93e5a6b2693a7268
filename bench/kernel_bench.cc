// The kernels by themselves, on data that fits the cache and on data that does not.
#include <vector>

#include "kernels/bins.h"
#include "kernels/count.h"
#include "kernels/rounding_error.h"
#include "kernels/scan.h"
#include "support.h"

namespace amct::bench {
namespace {

constexpr std::int64_t kSmall = 4096;
constexpr std::int64_t kLarge = std::int64_t{1} << 21;

const float* floats(const TensorView& view) { return static_cast<const float*>(view.data); }
const std::uint16_t* halves(const TensorView& view) {
  return static_cast<const std::uint16_t*>(view.data);
}

/// Runs `kernel(view)` over one batch of `state.range(0)` values.
template <typename Kernel>
void run(benchmark::State& state, DType dtype, Kernel kernel) {
  const Batches batches(dtype, 1, state.range(0), 1);
  const double read = read_pass_seconds(batches);
  const TensorView view = batches.view(0);
  for (auto _ : state) kernel(view, static_cast<std::size_t>(state.range(0)));
  report(state, batches.elements(), read);
}

void scan_float32(benchmark::State& state) {
  run(state, DType::kFloat32, [](const TensorView& view, std::size_t count) {
    benchmark::DoNotOptimize(kernels::scan_float32(floats(view), count));
  });
}

void scan_bfloat16(benchmark::State& state) {
  run(state, DType::kBFloat16, [](const TensorView& view, std::size_t count) {
    benchmark::DoNotOptimize(kernels::scan_half(DType::kBFloat16, halves(view), count));
  });
}

void count_patterns(benchmark::State& state) {
  std::vector<std::uint32_t> tables(2 * kernels::kPatterns);
  run(state, DType::kBFloat16, [&](const TensorView& view, std::size_t count) {
    kernels::count_patterns(halves(view), count, tables.data(), tables.data() + kernels::kPatterns);
    benchmark::ClobberMemory();
  });
}

void rounding_error(benchmark::State& state) {
  run(state, DType::kFloat32, [](const TensorView& view, std::size_t count) {
    benchmark::DoNotOptimize(
        kernels::rounding_error(floats(view), nullptr, count, {0.03F, -3.0F, 3.0F}));
  });
}

void quick_rounding_error(benchmark::State& state) {
  run(state, DType::kFloat32, [](const TensorView& view, std::size_t count) {
    benchmark::DoNotOptimize(
        kernels::quick_rounding_error(floats(view), nullptr, count, {0.03F, -3.0F, 3.0F}));
  });
}

void bin_indices(benchmark::State& state) {
  std::vector<std::uint32_t> indices(kLarge);
  run(state, DType::kFloat32, [&](const TensorView& view, std::size_t count) {
    kernels::bin_indices(floats(view), count, -200.0, 400.0, 4096, indices.data());
    benchmark::ClobberMemory();
  });
}

BENCHMARK(scan_float32)->Arg(kSmall)->Arg(kLarge);
BENCHMARK(scan_bfloat16)->Arg(kSmall)->Arg(kLarge);
BENCHMARK(count_patterns)->Arg(kSmall)->Arg(kLarge);
BENCHMARK(rounding_error)->Arg(kSmall)->Arg(kLarge);
BENCHMARK(quick_rounding_error)->Arg(kSmall)->Arg(kLarge);
BENCHMARK(bin_indices)->Arg(kSmall)->Arg(kLarge);

}  // namespace
}  // namespace amct::bench
