// The kernels that make codes and read them, against their scalar twins, bit for bit, on every
// instruction set of this machine.
#include "kernels/codes.h"

#include "amct/core/grid.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "kernels/every_target.h"
#include "support/data.h"

namespace amct::kernels {
namespace {

using support::on_every_target;

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
constexpr std::size_t kWidths[] = {1, 2, 3, 7, 8, 15, 16, 17, 31, 32, 33, 64, 80, 127, 300};
constexpr std::size_t kRows = 3;

/// Scales from powers of two to what gives no exact quotient.
FactorTable factors_of(const Grid& grid, std::size_t width) {
  std::vector<float> scales;
  std::vector<float> offsets;
  for (std::size_t c = 0; c < width; ++c) {
    const float base = std::bit_cast<float>(0x3C000000U + static_cast<std::uint32_t>(c % 5 << 23));
    scales.push_back(c % 3 == 0 ? base : base * 1.3F + 1e-4F * static_cast<float>(c));
    offsets.push_back(grid.is_float() ? 0.0F : static_cast<float>(static_cast<int>(c % 9) - 4));
  }
  return {scales, offsets};
}

FactorTable one_factor(float scale, float offset) { return {{&scale, 1}, {&offset, 1}}; }

/// Values of all kinds: ties between codes, what is clipped, what is no number.
std::vector<float> values_of(std::size_t count) {
  std::vector<float> values = support::sample(support::Distribution::kNormal, count, 3);
  const float special[] = {0.0F,  -0.0F,  kNaN,   -kNaN,   kInfinity, -kInfinity, 0.0625F,    -1.5F,
                           1e30F, -1e30F, 1e-40F, -1e-40F, 65504.0F,  3.0F / 128, -5.0F / 256};
  for (std::size_t i = 0; i < count; ++i) {
    if (i % 4 == 1) values[i] = special[i / 4 % std::size(special)];
    if (i % 4 == 2) values[i] *= 1e-3F;
  }
  return values;
}

/// The codes of one row with one factor, by the kernel and by its twin.
struct StoredTwice {
  template <typename T>
  StoredTwice(const CodeFormat& format, const FactorTable& factors, DType dtype,
              const std::vector<T>& x)
      : codes(x.size()), twin(x.size()) {
    const Rows rows{1, x.size(), 0, 0};
    const auto* values = reinterpret_cast<const std::byte*>(x.data());
    quantize_rows(format, {&factors, 0, false}, rows, dtype, values, codes.data());
    quantize_rows_scalar(format, {&factors, 0, false}, rows, dtype, values, twin.data());
  }

  std::vector<std::uint8_t> codes;
  std::vector<std::uint8_t> twin;
};

TEST(CodesTest, EqualTheirTwinsOnEveryTarget) {
  on_every_target([] {
    for (const Grid& grid : grids()) {
      const CodeFormat format = code_format(grid);
      for (const DType dtype : support::kAllDTypes) {
        for (const std::size_t width : kWidths) {
          for (const bool per_channel : {false, true}) {
            SCOPED_TRACE(std::string(grid.name) + " " + std::string(name_of(dtype)) + " " +
                         std::to_string(width));
            const FactorTable factors = factors_of(grid, width);
            // Rows lie apart, and what is between them stays.
            const std::size_t bytes = code_bytes(format.kind, width);
            const Rows rows{kRows, width, static_cast<std::ptrdiff_t>((width + 1) * size_of(dtype)),
                            static_cast<std::ptrdiff_t>(bytes + 2)};
            const auto x =
                support::make_tensor(dtype, {static_cast<std::int64_t>(kRows * (width + 1))},
                                     values_of(kRows * (width + 1)));
            std::vector<std::uint8_t> codes(kRows * (bytes + 2), 0xA5);
            std::vector<std::uint8_t> twin = codes;
            quantize_rows(format, {&factors, 0, per_channel}, rows, dtype, x.bytes.data(),
                          codes.data());
            quantize_rows_scalar(format, {&factors, 0, per_channel}, rows, dtype, x.bytes.data(),
                                 twin.data());
            ASSERT_EQ(codes, twin);
            std::vector<std::byte> read(x.bytes.size(), std::byte{0x5A});
            std::vector<std::byte> expected = read;
            dequantize_rows(format, {&factors, 0, per_channel}, rows, dtype, codes.data(),
                            read.data());
            dequantize_rows_scalar(format, {&factors, 0, per_channel}, rows, dtype, codes.data(),
                                   expected.data());
            ASSERT_EQ(read, expected);
          }
        }
      }
    }
  });
}

/// What is not divided must round as the quotient does, next to the middle of two codes, too.
TEST(CodesTest, NextToTheMiddleOfTwoCodes) {
  const std::vector<float> sample = support::sample(support::Distribution::kPositive, 400, 11);
  on_every_target([&] {
    for (const Grid& grid : grids()) {
      const CodeFormat format = code_format(grid);
      for (std::size_t i = 0; i < sample.size(); ++i) {
        const float scale = i % 8 == 0 ? 0.125F : sample[i] * (i % 3 == 0 ? 1e-4F : 1.0F);
        const float offset =
            grid.is_float() ? 0.0F : static_cast<float>(static_cast<int>(i) * 7 - 900);
        const FactorTable factors = one_factor(scale, offset);
        std::vector<float> x;
        for (int code = -140; code < 140; ++code) {
          const float middle = (static_cast<float>(code) - offset + 0.5F) * scale;
          float below = middle;
          float above = middle;
          x.push_back(middle);
          for (int step = 0; step < 3; ++step) {
            below = std::nextafter(below, -kInfinity);
            above = std::nextafter(above, kInfinity);
            x.insert(x.end(), {below, above});
          }
        }
        const StoredTwice stored(format, factors, DType::kFloat32, x);
        ASSERT_EQ(stored.codes, stored.twin) << grid.name << " " << scale << " " << offset;
      }
    }
  });
}

/// The first number of each cell, its neighbours, and what is beyond all of them: with scales whose
/// inverses are exact, are not, and are not used.
TEST(CodesTest, EveryCellOfFloatFormats) {
  on_every_target([] {
    for (const Grid& grid : grids()) {
      if (!grid.is_float()) continue;
      const CodeFormat format = code_format(grid);
      for (const float scale : {1.0F, 0.25F, 0.3F, 1.9999999F, 3e-38F, 7e30F}) {
        std::vector<float> x;
        for (std::uint32_t cell = 0; cell < 1U << (31 - kCellBits); ++cell) {
          for (std::uint32_t step = 0; step < 16; ++step) {
            const float quotient = std::bit_cast<float>((cell << kCellBits) + step - 8);
            x.insert(x.end(), {quotient * scale, -quotient * scale});
          }
        }
        const FactorTable factors = one_factor(scale, 0);
        const StoredTwice stored(format, factors, DType::kFloat32, x);
        ASSERT_EQ(stored.codes, stored.twin) << grid.name << " " << scale;
      }
    }
  });
}

TEST(CodesTest, EveryHalfIsStoredAlike) {
  on_every_target([] {
    std::vector<std::uint16_t> patterns(65536 + 3);
    for (std::size_t i = 0; i < patterns.size(); ++i) patterns[i] = static_cast<std::uint16_t>(i);
    for (const Grid& grid : grids()) {
      const CodeFormat format = code_format(grid);
      for (const DType dtype : {DType::kFloat16, DType::kBFloat16}) {
        for (const float scale : {1.0F, 0.0078125F, 0.0123F, 3e-38F, 7e30F}) {
          const FactorTable factors = one_factor(scale, grid.is_float() ? 0.0F : 1.0F);
          const StoredTwice stored(format, factors, dtype, patterns);
          ASSERT_EQ(stored.codes, stored.twin) << grid.name << " " << scale;
        }
      }
    }
  });
}

TEST(CodesTest, EveryCodeIsReadAlike) {
  on_every_target([] {
    std::vector<std::uint8_t> codes(256 + 5);
    for (std::size_t i = 0; i < codes.size(); ++i) codes[i] = static_cast<std::uint8_t>(i);
    for (const Grid& grid : grids()) {
      const CodeFormat format = code_format(grid);
      const std::size_t width = codes.size() * (grid.bits == 4 ? 2 : 1);
      for (const DType dtype : support::kAllDTypes) {
        // Also values below the smallest and beyond the largest that float16 has.
        for (const float scale : {1.0F, 0.0123F, 1.1e-7F, 3e-39F, 700.0F, 3e38F}) {
          const FactorTable factors = one_factor(scale, grid.is_float() ? 0.0F : -3.0F);
          std::vector<std::byte> read(width * size_of(dtype));
          std::vector<std::byte> expected = read;
          const Rows rows{1, width, 0, 0};
          dequantize_rows(format, {&factors, 0, false}, rows, dtype, codes.data(), read.data());
          dequantize_rows_scalar(format, {&factors, 0, false}, rows, dtype, codes.data(),
                                 expected.data());
          ASSERT_EQ(read, expected) << grid.name << " " << name_of(dtype) << " " << scale;
        }
      }
    }
  });
}

}  // namespace
}  // namespace amct::kernels
