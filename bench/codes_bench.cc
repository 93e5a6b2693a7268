// Making the codes of a cache and reading them, beside a plain copy of as many bytes.
#include "amct/store/codes.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include <tbb/blocked_range.h>
#include <tbb/parallel_for.h>

#include "support.h"

namespace amct::bench {
namespace {

constexpr std::int64_t kHeads = 8;
constexpr std::int64_t kHeadDim = 128;
// 2 million values take 4 to 12 MiB with their codes, which the third cache level holds; 32 million
// take 48 MiB or more, which it does not.
constexpr std::int64_t kTokens[] = {2048, 32768};

/// Seconds that all threads together need to read and write `bytes`, half of them each, the best of
/// several.
double copy_pass_seconds(std::size_t bytes) {
  const std::vector<std::byte> from(bytes / 2, std::byte{1});
  std::vector<std::byte> to(bytes / 2);
  double best = std::numeric_limits<double>::infinity();
  for (int repeat = 0; repeat < 9; ++repeat) {
    const auto start = std::chrono::steady_clock::now();
    tbb::parallel_for(tbb::blocked_range<std::size_t>(0, to.size(), std::size_t{1} << 18),
                      [&](const tbb::blocked_range<std::size_t>& range) {
                        std::memcpy(to.data() + range.begin(), from.data() + range.begin(),
                                    range.size());
                      });
    benchmark::DoNotOptimize(to.data());
    benchmark::ClobberMemory();
    const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - start;
    best = std::min(best, taken.count());
  }
  return best;
}

struct Case {
  DType dtype;
  const Grid* grid;
  Granularity granularity;
  std::int64_t tokens;
};

/// A tensor of the cache with its codec and codes.
class Stored {
 public:
  explicit Stored(const Case& of)
      : values_(of.dtype, 1, of.tokens * kHeads, kHeadDim),
        codec_(*of.grid, params(of), of.granularity, HeadLayout::kOwnDimension),
        tensor_(TensorView::contiguous(values_.view(0).data, of.dtype,
                                       {1, kHeads, of.tokens, kHeadDim})),
        bytes_(codec_.quantize(tensor_)),
        read_(static_cast<std::size_t>(values_.bytes())) {
    const std::int64_t row = codec_.row_bytes(kHeadDim);
    codes_ = {bytes_.data(), {1, kHeads, of.tokens, row}, {0, of.tokens * row, row, 1}};
  }

  void quantize() { codec_.quantize(tensor_, codes_); }
  void dequantize() {
    codec_.dequantize({codes_.data, codes_.shape, codes_.strides},
                      {read_.data(), tensor_.dtype, tensor_.shape, tensor_.strides});
  }
  std::int64_t elements() const { return values_.elements(); }
  std::size_t bytes() const { return read_.size() + bytes_.size(); }

 private:
  static std::vector<QuantParams> params(const Case& of) {
    const bool one = of.granularity == Granularity::kPerTensor;
    std::vector<QuantParams> params(one ? 1 : kHeads * kHeadDim);
    for (std::size_t i = 0; i < params.size(); ++i) {
      const float width = of.grid->bits == 4 ? 0.517F : 0.0317F;  // divides few values exactly
      params[i] = {width + 1e-5F * static_cast<float>(i), of.grid->is_float() ? 0 : 1};
    }
    return params;
  }

  Batches values_;
  Codec codec_;
  TensorView tensor_;
  std::vector<std::uint8_t> bytes_;
  std::vector<std::byte> read_;
  MutableCodesView codes_;
};

void run(benchmark::State& state, const Case& of, void (Stored::*work)()) {
  Stored stored(of);
  const double copy = copy_pass_seconds(stored.bytes());
  for (auto _ : state) {
    (stored.*work)();
    benchmark::ClobberMemory();
  }
  report(state, stored.elements(), copy);
}

[[maybe_unused]] const bool kRegistered = [] {
  const std::pair<DType, const Grid*> kinds[] = {
      {DType::kBFloat16, &kInt8}, {DType::kFloat16, &kInt8},     {DType::kFloat32, &kInt8},
      {DType::kBFloat16, &kInt4}, {DType::kBFloat16, &kFp8E4M3}, {DType::kBFloat16, &kHif8}};
  for (const auto& [dtype, grid] : kinds) {
    for (const Granularity granularity : {Granularity::kPerTensor, Granularity::kPerChannel}) {
      for (const std::int64_t tokens : kTokens) {
        const Case of{dtype, grid, granularity, tokens};
        const std::string name = std::string(name_of(granularity)) + "/" +
                                 std::string(name_of(dtype)) + "/" + std::string(grid->name) + "/" +
                                 std::to_string(tokens);
        benchmark::RegisterBenchmark(("quantize/" + name).c_str(), [of](benchmark::State& state) {
          run(state, of, &Stored::quantize);
        })->UseRealTime();
        benchmark::RegisterBenchmark(("dequantize/" + name).c_str(), [of](benchmark::State& state) {
          run(state, of, &Stored::dequantize);
        })->UseRealTime();
      }
    }
  }
  return true;
}();

}  // namespace
}  // namespace amct::bench
