#include "amct/store/codes.h"

#include "amct/core/error.h"

#include <array>
#include <cmath>
#include <cstring>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "support/data.h"
#include "support/expect_error.h"

namespace amct {
namespace {

using support::element_at;
using support::expect_error;
using support::Tensor;

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

/// Factors that differ from each other, of scales that divide nothing exactly.
std::vector<QuantParams> params_of(const Grid& grid, std::int64_t count) {
  std::vector<QuantParams> params;
  for (std::int64_t i = 0; i < count; ++i) {
    const float scale = (grid.bits == 4 ? 0.4F : 0.03F) + 0.001F * static_cast<float>(i % 37);
    params.push_back({scale, grid.is_float() ? 0 : static_cast<std::int32_t>(i % 5 - 2)});
  }
  return params;
}

/// Contiguous codes of a tensor, and the index of a row's first byte.
struct Codes {
  std::vector<std::uint8_t> bytes;
  std::vector<std::int64_t> shape;
  std::vector<std::int64_t> strides;

  explicit Codes(std::vector<std::int64_t> of, const Codec& codec) : shape(std::move(of)) {
    if (shape.empty()) shape = {1};
    shape.back() = codec.row_bytes(shape.back());
    std::int64_t size = 1;
    strides.resize(shape.size());
    for (std::size_t i = shape.size(); i-- > 0;) {
      strides[i] = size;
      size *= shape[i];
    }
    bytes.resize(static_cast<std::size_t>(size));
  }
  MutableCodesView view() { return {bytes.data(), shape, strides}; }
  CodesView view() const { return {bytes.data(), shape, strides}; }
};

MutableTensorView writable(Tensor& tensor) {
  const TensorView view = tensor.view();
  return {tensor.bytes.data(), view.dtype, view.shape, view.strides};
}

Tensor read(const Codec& codec, const CodesView& codes, DType dtype,
            const std::vector<std::int64_t>& shape) {
  std::int64_t size = 1;
  for (const std::int64_t n : shape) size *= n;
  Tensor out =
      support::make_tensor(dtype, shape, std::vector<float>(static_cast<std::size_t>(size), 77.0F));
  codec.dequantize(codes, writable(out));
  return out;
}

/// The code at an index of the tensor.
std::int32_t code_at(const Codes& codes, const Grid& grid, const std::vector<std::int64_t>& index) {
  std::int64_t at = 0;
  for (std::size_t i = 0; i + 1 < index.size(); ++i) at += index[i] * codes.strides[i];
  const std::int64_t channel = index.empty() ? 0 : index.back();
  if (grid.bits == 4) {
    const int byte = codes.bytes[static_cast<std::size_t>(at + channel / 2)];
    const int nibble = channel % 2 == 0 ? byte & 0xF : byte >> 4;
    return nibble < 8 ? nibble : nibble - 16;
  }
  const std::uint8_t byte = codes.bytes[static_cast<std::size_t>(at + channel)];
  return grid.is_float() ? byte : static_cast<std::int8_t>(byte);
}

/// Calls check(index) for every index of a shape.
template <typename Check>
void for_each_index(const std::vector<std::int64_t>& shape, Check check) {
  std::vector<std::int64_t> index(shape.size(), 0);
  for (;;) {
    check(index);
    std::size_t i = shape.size();
    while (i > 0 && ++index[i - 1] == shape[i - 1]) index[--i] = 0;
    if (i == 0) return;
  }
}

std::size_t group_of(const std::vector<std::int64_t>& index, const std::vector<std::int64_t>& shape,
                     Granularity granularity, HeadLayout layout, std::size_t count) {
  if (granularity == Granularity::kPerTensor) return 0;
  const auto channel = static_cast<std::size_t>(index.back());
  const auto width = static_cast<std::size_t>(shape.back());
  if (layout == HeadLayout::kInChannels)
    return granularity == Granularity::kPerChannel ? channel : channel / (width / count);
  const auto head = static_cast<std::size_t>(index[index.size() - 3]);
  return granularity == Granularity::kPerChannel ? head * width + channel : head;
}

/// Codes are those of the grid, but next to the middle of two; values are what the grid reads.
void expect_like_grid(const Grid& grid, const TensorView& x, Granularity granularity,
                      HeadLayout layout, std::int64_t count) {
  SCOPED_TRACE(std::string(grid.name) + " " + std::string(name_of(x.dtype)) + " " +
               std::string(name_of(granularity)) + ", shape " + to_string(x.shape));
  const std::vector<QuantParams> params = params_of(grid, count);
  const Codec codec(grid, params, granularity, layout);
  Codes codes(x.shape, codec);
  codec.quantize(x, codes.view());
  const Tensor out = read(codec, std::as_const(codes).view(), x.dtype, x.shape);
  const TensorView found = out.view();
  for_each_index(x.shape, [&](const std::vector<std::int64_t>& index) {
    const QuantParams& pair = params[group_of(index, x.shape, granularity, layout, params.size())];
    const double value = element_at(x, index);
    const std::int32_t code = code_at(codes, grid, index);
    if (code != grid.quantize(value, pair)) {
      const double quotient = value / static_cast<double>(pair.scale);
      const double there = grid.dequantize(code, {1.0F, pair.offset});
      const double wanted = grid.dequantize(grid.quantize(value, pair), {1.0F, pair.offset});
      ASSERT_LE(std::fabs(quotient - (there + wanted) / 2), std::fabs(quotient) * 0x1p-24)
          << value << " " << code;
    }
    const auto expected = static_cast<float>(grid.dequantize(code, pair));
    const float rounded = x.dtype == DType::kFloat32
                              ? expected
                              : half_to_float(x.dtype, float_to_half(x.dtype, expected));
    ASSERT_EQ(element_at(found, index), rounded) << code;
  });
}

TEST(CodecTest, StoresWhatTheGridSays) {
  constexpr std::array kAll{Granularity::kPerTensor, Granularity::kPerHead,
                            Granularity::kPerChannel};
  const std::vector<float> values =
      support::sample(support::Distribution::kNormal, 2 * 3 * 5 * 34, 5);
  for (const Grid& grid : grids()) {
    for (const DType dtype : support::kAllDTypes) {
      for (const Granularity granularity : kAll) {
        const std::int64_t heads = granularity == Granularity::kPerHead ? 3 : 3 * 34;
        const std::int64_t count = granularity == Granularity::kPerTensor ? 1 : heads;
        const Tensor cached = support::make_tensor(dtype, {2, 3, 5, 34}, values);
        expect_like_grid(grid, cached.view(), granularity, HeadLayout::kOwnDimension, count);
        const Tensor projected = support::make_tensor(dtype, {10, 102}, values);
        expect_like_grid(grid, projected.view(), granularity, HeadLayout::kInChannels, count);
      }
    }
  }
}

TEST(CodecTest, ReadsTensorsWhereTheyAre) {
  const Tensor tensor = support::make_tensor(
      DType::kBFloat16, {4096}, support::sample(support::Distribution::kNormal, 4096, 3));
  const auto view = [&](std::vector<std::int64_t> shape, std::vector<std::int64_t> strides) {
    return TensorView{tensor.bytes.data() + 1000 * 2, DType::kBFloat16, std::move(shape),
                      std::move(strides)};
  };
  for (const Grid& grid : {kInt8, kInt4, kFp8E4M3}) {
    for (const TensorView& x : {
             view({2, 3, 5, 8}, {120, 8, 24, 1}),    // heads and tokens swapped
             view({2, 3, 5, 7}, {120, 8, 24, 1}),    // and channels cut
             view({2, 3, 5, 7}, {-120, 8, -24, 1}),  // backwards
             view({2, 3, 5, 7}, {120, 8, 24, -1}),   // channels backwards
             view({2, 3, 5, 8}, {120, 5, 1, 15}),    // channels first
             view({2, 3, 1, 8}, {24, 8, 8, 1}),      // one token
             view({1, 3, 5, 1}, {15, 5, 1, 9}),      // one channel a head
             view({1, 1, 5, 6}, {0, 0, 0, 1}),       // one token, expanded
         }) {
      const std::int64_t heads = x.shape[1];
      constexpr auto kOwn = HeadLayout::kOwnDimension;
      expect_like_grid(grid, x, Granularity::kPerTensor, kOwn, 1);
      expect_like_grid(grid, x, Granularity::kPerHead, kOwn, heads);
      expect_like_grid(grid, x, Granularity::kPerChannel, kOwn, heads * x.shape[3]);
    }
    expect_like_grid(grid, view({}, {}), Granularity::kPerTensor, HeadLayout::kInChannels, 1);
    expect_like_grid(grid, view({5}, {1}), Granularity::kPerChannel, HeadLayout::kInChannels, 5);
  }
}

/// A cache has room behind its tokens, and is read to tensors that have other neighbours.
TEST(CodecTest, WritesWhereItIsTold) {
  const Tensor x = support::make_tensor(DType::kFloat32, {2, 3, 4, 5},
                                        support::sample(support::Distribution::kNormal, 120, 3));
  for (const Grid& grid : {kInt8, kInt4}) {
    const std::vector<QuantParams> params = params_of(grid, 15);
    const Codec codec(grid, params, Granularity::kPerChannel, HeadLayout::kOwnDimension);
    const std::int64_t row = codec.row_bytes(5);
    const std::vector<std::uint8_t> expected = codec.quantize(x.view());
    std::vector<std::uint8_t> buffer(static_cast<std::size_t>(2 * 3 * 9 * row), 0xA5);
    MutableCodesView codes{buffer.data() + 2 * row, {2, 3, 4, row}, {27 * row, 9 * row, row, 1}};
    codec.quantize(x.view(), codes);
    for (std::size_t i = 0; i < buffer.size(); ++i) {
      const auto token = static_cast<std::int64_t>(i) / row % 9;
      if (token >= 2 && token < 6) continue;
      ASSERT_EQ(buffer[i], 0xA5) << i;
    }
    Tensor out = support::make_tensor(DType::kFloat32, {2, 4, 3, 7}, std::vector<float>(168, 77));
    codec.dequantize({codes.data, codes.shape, codes.strides},
                     {out.bytes.data(), DType::kFloat32, {2, 3, 4, 5}, {84, 7, 21, 1}});
    Codes contiguous({2, 3, 4, 5}, codec);
    contiguous.bytes = expected;
    const Tensor wanted =
        read(codec, std::as_const(contiguous).view(), DType::kFloat32, {2, 3, 4, 5});
    for_each_index({2, 4, 3, 7}, [&](const std::vector<std::int64_t>& i) {
      const float value = element_at(out.view(), i);
      ASSERT_EQ(value, i[3] >= 5 ? 77 : element_at(wanted.view(), {i[0], i[2], i[1], i[3]}));
    });
  }
}

TEST(CodecTest, TwoInt4CodesAByteAndRowsBeginAtOne) {
  const float values[] = {-8, 7, 1, -1, 2, 3};
  const std::vector<QuantParams> one{{1.0F, 0}};
  const Codec codec(kInt4, one, Granularity::kPerTensor, HeadLayout::kInChannels);
  const auto codes = [&](std::vector<std::int64_t> shape) {
    return codec.quantize(TensorView::contiguous(values, DType::kFloat32, std::move(shape)));
  };
  EXPECT_EQ(codes({1, 6}), (std::vector<std::uint8_t>{0x78, 0xF1, 0x32}));
  EXPECT_EQ(codes({2, 3}), (std::vector<std::uint8_t>{0x78, 0x01, 0x2F, 0x03}));
  EXPECT_EQ(codec.row_bytes(3), 2);
}

TEST(CodecTest, WhatIsNoNumberOrBeyondTheRange) {
  const float values[] = {kNaN, -kNaN, kInfinity, -kInfinity, 1e38F, -0.0F};
  const TensorView x = TensorView::contiguous(values, DType::kFloat32, {6});
  const auto codes = [&](const Grid& grid, QuantParams params) {
    return Codec(grid, {&params, 1}, Granularity::kPerTensor, HeadLayout::kInChannels).quantize(x);
  };
  EXPECT_EQ(codes(kInt8, {1e-6F, 3}), (std::vector<std::uint8_t>{3, 3, 127, 0x80, 127, 3}));
  EXPECT_EQ(codes(kFp8E4M3, {1e-6F, 0}), (std::vector<std::uint8_t>{0, 0, 0x7E, 0xFE, 0x7E, 0}));
  EXPECT_EQ(codes(kHif8, {1e-6F, 0}), (std::vector<std::uint8_t>{0, 0, 0x6E, 0xEE, 0x6E, 0}));
}

TEST(CodecTest, LargeTensorsAreWorkedOnByThreads) {
  constexpr std::int64_t kTokens = 4097;
  const std::vector<float> values =
      support::sample(support::Distribution::kNormal, 2 * 2 * kTokens * 66, 5);
  const Tensor x = support::make_tensor(DType::kBFloat16, {2, 2, kTokens, 66}, values);
  for (const Grid& grid : {kInt8, kInt4, kHif8}) {
    expect_like_grid(grid, x.view(), Granularity::kPerTensor, HeadLayout::kOwnDimension, 1);
    expect_like_grid(grid, x.view(), Granularity::kPerHead, HeadLayout::kOwnDimension, 2);
    expect_like_grid(grid, x.view(), Granularity::kPerChannel, HeadLayout::kOwnDimension, 132);
    // Rows of many channels, in order and backwards.
    TensorView wide{x.bytes.data(), DType::kBFloat16, {4, kTokens * 66}, {kTokens * 66, 1}};
    expect_like_grid(grid, wide, Granularity::kPerChannel, HeadLayout::kInChannels, kTokens * 66);
    wide.data = x.bytes.data() + (kTokens * 66 - 1) * 2;
    wide.strides[1] = -1;
    expect_like_grid(grid, wide, Granularity::kPerHead, HeadLayout::kInChannels, 2);
  }
}

TEST(CodecTest, NothingHasNoCodes) {
  const std::vector<QuantParams> one{{1.0F, 0}};
  const Codec codec(kInt8, one, Granularity::kPerTensor, HeadLayout::kOwnDimension);
  EXPECT_TRUE(
      codec.quantize(TensorView{nullptr, DType::kFloat32, {1, 2, 0, 4}, {0, 0, 4, 1}}).empty());
  codec.dequantize({nullptr, {1, 0, 3}, {0, 3, 1}},
                   {nullptr, DType::kFloat32, {1, 0, 3}, {0, 3, 1}});
}

/// Of sizes and strides that multiply beyond 63 bits, which UBSan would see.
TEST(CodecTest, HugeSizesAndStridesOverflowNothing) {
  constexpr std::int64_t kHuge = std::int64_t{1} << 62;
  constexpr std::int64_t kLeast = std::numeric_limits<std::int64_t>::min();
  const float x = 1;
  std::uint8_t code = 0;
  const Codec codec(kInt8, params_of(kInt8, 1), Granularity::kPerTensor, HeadLayout::kInChannels);
  const Codec heads(kInt8, params_of(kInt8, 2), Granularity::kPerHead, HeadLayout::kInChannels);
  const Codec channels(kInt8, params_of(kInt8, 2), Granularity::kPerChannel,
                       HeadLayout::kOwnDimension);
  for (const std::vector<std::int64_t>& shape :
       {std::vector<std::int64_t>{0, kHuge, kHuge}, {kHuge, 0, kHuge}, {kHuge, kHuge, 0}}) {
    for (const std::int64_t stride : {kHuge, -kHuge, kLeast}) {
      const TensorView view{&x, DType::kFloat32, shape, {stride, stride, stride}};
      EXPECT_TRUE(codec.quantize(view).empty());
      std::vector<std::int64_t> strides{stride, stride, 1};
      EXPECT_NO_THROW(codec.quantize(view, {&code, shape, strides}));
      if (shape[2] == kHuge) {
        EXPECT_TRUE(heads.quantize(view).empty());
      }
      expect_error<ValueError>([&] { channels.quantize(view); }, {"do not fit"});
    }
  }
  const TensorView view{&x, DType::kFloat32, {2, 2, 1}, {0, 0, 0}};
  for (const std::vector<std::int64_t>& strides :
       {std::vector<std::int64_t>{kLeast, 1, 1}, {kHuge, kHuge, 1}, {-kHuge, -kHuge - 2, 1}}) {
    expect_error<ValueError>([&] { codec.quantize(view, {&code, {2, 2, 1}, strides}); },
                             {"strides", "out of memory"});
  }
}

TEST(CodecTest, FactorsThatSayNothing) {
  const auto make = [](const Grid& grid, std::vector<QuantParams> params, Granularity granularity) {
    return [&grid, params = std::move(params), granularity] {
      const Codec codec(grid, params, granularity, HeadLayout::kOwnDimension);
    };
  };
  constexpr auto kTensor = Granularity::kPerTensor;
  expect_error<ValueError>(make(kInt8, {}, Granularity::kPerHead), {"0 factors per_head"});
  expect_error<ValueError>(make(kInt8, {{1, 0}, {1, 0}}, kTensor), {"2 factors per_tensor"});
  for (const float scale : {0.0F, -1.0F, kNaN, kInfinity})
    expect_error<ValueError>(make(kInt8, {{scale, 0}}, kTensor), {"scale", "positive and finite"});
  expect_error<ValueError>(make(kInt8, {{1, (1 << 22) + 1}}, kTensor), {"offset 4194305"});
  expect_error<ValueError>(make(kFp8E5M2, {{1, 1}}, kTensor), {"FP8_E5M2 has no offsets"});
}

TEST(CodecTest, TensorsThatDoNotFit) {
  const float values[24] = {};
  const std::vector<QuantParams> six = params_of(kInt8, 6);
  const auto x = [&](std::vector<std::int64_t> shape) {
    return TensorView::contiguous(values, DType::kFloat32, std::move(shape));
  };
  const Codec own(kInt8, six, Granularity::kPerChannel, HeadLayout::kOwnDimension);
  expect_error<ValueError>([&] { own.quantize(x({1, 2, 3, 4})); },
                           {"6 factors per_channel", "[1, 2, 3, 4]", "2 heads of 4 channels"});
  expect_error<ValueError>([&] { own.quantize(x({4, 6})); }, {"heads, tokens and channels"});
  const Codec rows(kInt8, six, Granularity::kPerHead, HeadLayout::kInChannels);
  expect_error<ValueError>([&] { rows.quantize(x({3, 8})); }, {"6 factors per_head", "8 channels"});

  std::vector<std::uint8_t> bytes(24);
  const auto quantize = [&](const std::vector<std::int64_t>& shape,
                            const std::vector<std::int64_t>& strides) {
    return [&, shape, strides] { rows.quantize(x({4, 6}), {bytes.data(), shape, strides}); };
  };
  expect_error<ValueError>(quantize({4, 5}, {5, 1}), {"codes of shape [4, 5]", "[4, 6]"});
  expect_error<ValueError>(quantize({4, 6}, {6}), {"1 strides"});
  expect_error<ValueError>(quantize({4, 6}, {1, 4}), {"one after the other"});
  expect_error<ValueError>([&] { rows.quantize(x({4, 6}), {nullptr, {4, 6}, {6, 1}}); }, {"null"});
  std::vector<float> out(24);
  expect_error<ValueError>(
      [&] {
        rows.dequantize({bytes.data(), {4, 6}, {6, 1}},
                        {out.data(), DType::kFloat32, {4, 6}, {1, 4}});
      },
      {"side by side"});
}

}  // namespace
}  // namespace amct
