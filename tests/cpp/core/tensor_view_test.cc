#include "amct/core/tensor_view.h"

#include "amct/core/error.h"

#include <cstdint>
#include <limits>
#include <vector>

#include <gtest/gtest.h>

#include "support/expect_error.h"

namespace amct {
namespace {

using support::expect_error;

constexpr std::int64_t kHuge = std::int64_t{1} << 62;

TEST(TensorViewTest, ContiguousStridesAndSizes) {
  const float data[24] = {};
  const TensorView view = TensorView::contiguous(data, DType::kFloat32, {2, 3, 4});
  EXPECT_EQ(view.strides, (std::vector<std::int64_t>{12, 4, 1}));
  EXPECT_EQ(view.size(), 24);
  EXPECT_EQ(view.channels(), 4);
  EXPECT_EQ(view.rows(), 6);
  view.validate();
}

TEST(TensorViewTest, RankZeroIsOneValueOfOneChannel) {
  const float x = 3;
  const TensorView view = TensorView::contiguous(&x, DType::kFloat32, {});
  view.validate();
  EXPECT_EQ(view.size(), 1);
  EXPECT_EQ(view.channels(), 1);
  EXPECT_EQ(view.rows(), 1);
  const std::vector<Block> blocks = blocks_of(view);
  ASSERT_EQ(blocks.size(), 1U);
  EXPECT_EQ(blocks[0].rows * blocks[0].channels, 1);
  EXPECT_EQ(blocks[0].data, reinterpret_cast<const std::byte*>(&x));
}

TEST(TensorViewTest, RankOneIsOneRow) {
  const float data[5] = {};
  const TensorView view = TensorView::contiguous(data, DType::kFloat32, {5});
  EXPECT_EQ(view.rows(), 1);
  EXPECT_EQ(view.channels(), 5);
}

TEST(TensorViewTest, EmptyTensorsNeedNoData) {
  for (const std::vector<std::int64_t>& shape :
       {std::vector<std::int64_t>{0}, {0, 3}, {3, 0}, {2, 0, 4}}) {
    const TensorView view = TensorView::contiguous(nullptr, DType::kFloat16, shape);
    view.validate();
    EXPECT_EQ(view.size(), 0);
    EXPECT_TRUE(blocks_of(view).empty());
  }
}

TEST(TensorViewTest, EmptyTensorMayHaveSizesWhoseProductOverflows) {
  const TensorView view = TensorView::contiguous(nullptr, DType::kFloat32, {0, kHuge, kHuge, 8});
  view.validate();
  EXPECT_EQ(view.size(), 0);
}

TEST(TensorViewTest, RefusesNegativeSizesAndOverflow) {
  const float x = 0;
  expect_error<ValueError>([&] { TensorView::contiguous(&x, DType::kFloat32, {2, -1}); },
                           {"[2, -1]", "negative"});
  expect_error<ValueError>([&] { TensorView::contiguous(&x, DType::kFloat32, {-1, 0}); },
                           {"[-1, 0]", "negative"});
  expect_error<ValueError>([&] { TensorView::contiguous(&x, DType::kFloat32, {kHuge, 2}); },
                           {"2^63", "4611686018427387904"});
  EXPECT_EQ(TensorView::contiguous(&x, DType::kFloat32, {std::numeric_limits<std::int64_t>::max()})
                .size(),
            std::numeric_limits<std::int64_t>::max());
}

TEST(TensorViewTest, ValidateRefusesContradictions) {
  const float x = 0;
  expect_error<ValueError>([&] { TensorView{&x, DType::kFloat32, {1, 2}, {1}}.validate(); },
                           {"[1, 2]", "1 strides"});
  expect_error<ValueError>([] { TensorView{nullptr, DType::kFloat32, {2}, {1}}.validate(); },
                           {"[2]", "null"});
  expect_error<ValueError>([&] { TensorView{&x, DType::kFloat32, {-2}, {1}}.validate(); },
                           {"[-2]", "negative"});
  expect_error<ValueError>([&] { TensorView{&x, DType::kFloat32, {kHuge, 4}, {4, 1}}.validate(); },
                           {"2^63"});
}

TEST(TensorViewTest, ValidateRefusesStridesThatLeadOutOfMemory) {
  const float x[4] = {};
  constexpr std::int64_t kMost = std::numeric_limits<std::int64_t>::max();
  constexpr std::int64_t kLeast = std::numeric_limits<std::int64_t>::min();
  const auto view = [&](std::vector<std::int64_t> shape, std::vector<std::int64_t> strides,
                        DType dtype = DType::kFloat32) {
    return TensorView{x, dtype, std::move(shape), std::move(strides)};
  };
  for (const std::int64_t stride : {kMost, kLeast, kMost / 4, kLeast / 4, kHuge, -kHuge}) {
    for (const TensorView& bad :
         {view({2}, {stride}), view({2, 2}, {stride, 1}), view({2, 2}, {1, stride}),
          view({3, 1, 2}, {stride / 2, 5, stride / 2})}) {
      expect_error<ValueError>([&] { bad.validate(); }, {"strides", "out of memory"});
    }
    // What is never taken leads nowhere.
    EXPECT_NO_THROW(view({1, 2}, {stride, 1}).validate());
    EXPECT_NO_THROW(view({2, 1}, {1, stride}).validate());
    EXPECT_NO_THROW(view({0, 2}, {stride, stride}).validate());
  }
  EXPECT_NO_THROW(view({2, 2}, {-2, -1}).validate());
  EXPECT_NO_THROW(view({kHuge}, {0}).validate());
  // At the limit, and one past it.
  EXPECT_NO_THROW(view({2}, {kMost / 4 - 1}).validate());
  EXPECT_THROW(view({2}, {kMost / 4}).validate(), ValueError);
  EXPECT_NO_THROW(view({2}, {kMost / 2 - 1}, DType::kFloat16).validate());
  EXPECT_THROW(view({2}, {kMost / 2}, DType::kFloat16).validate(), ValueError);
  // Nothing lies at address zero, or below it.
  const auto address = static_cast<std::int64_t>(reinterpret_cast<std::uintptr_t>(&x[0]));
  EXPECT_NO_THROW(view({2}, {1 - address / 4}).validate());
  EXPECT_NO_THROW(view({3, 2}, {1, 1 - address / 4}).validate());
  EXPECT_THROW(view({2}, {-address / 4}).validate(), ValueError);
  EXPECT_THROW(view({3, 2}, {-1, 1 - address / 4}).validate(), ValueError);
}

TEST(TensorViewTest, ValidateRefusesElementsPastTheLastAddress) {
  constexpr std::uintptr_t kTop = std::numeric_limits<std::uintptr_t>::max();
  const auto view = [](std::uintptr_t address, std::int64_t stride) {
    // Nothing lies there. NOLINTNEXTLINE(performance-no-int-to-ptr)
    const auto* data = reinterpret_cast<const void*>(address);
    return TensorView{data, DType::kFloat32, {2}, {stride}};
  };
  EXPECT_NO_THROW(view(kTop - 8, 1).validate());
  EXPECT_THROW(view(kTop - 7, 1).validate(), ValueError);
  EXPECT_NO_THROW(view(kTop - 7, -1).validate());
  EXPECT_THROW(view(kTop - 1, 0).validate(), ValueError);
}

TEST(BlocksTest, HugeStridesThatAreValidOverflowNothing) {
  const std::uint16_t x = 0;
  constexpr std::int64_t kMost = std::numeric_limits<std::int64_t>::max();
  const auto address = static_cast<std::int64_t>(reinterpret_cast<std::uintptr_t>(&x));
  for (const std::int64_t stride : {kMost / 2 - 1, 1 - address / 2}) {
    const TensorView view{&x, DType::kFloat16, {2, 1, 1}, {stride, kMost, kMost}};
    view.validate();
    EXPECT_EQ(blocks_of(view).size(), 1U);
    const TensorView joined{&x, DType::kFloat16, {2, 2, 1}, {stride, 0, kMost}};
    joined.validate();
    EXPECT_EQ(blocks_of(joined).size(), 2U);
  }
}

TEST(TensorViewTest, ShapeText) {
  EXPECT_EQ(to_string(std::vector<std::int64_t>{}), "[]");
  EXPECT_EQ(to_string(std::vector<std::int64_t>{2, 64, 16}), "[2, 64, 16]");
}

TEST(BlocksTest, ContiguousTensorOfAnyRankIsOneBlock) {
  const std::vector<float> data(2 * 3 * 4 * 5 * 6);
  for (const std::vector<std::int64_t>& shape :
       {std::vector<std::int64_t>{720}, {120, 6}, {20, 6, 6}, {2, 3, 4, 5, 6}, {1, 720, 1}}) {
    const std::vector<Block> blocks =
        blocks_of(TensorView::contiguous(data.data(), DType::kFloat32, shape));
    ASSERT_EQ(blocks.size(), 1U) << to_string(shape);
    EXPECT_TRUE(blocks[0].is_contiguous()) << to_string(shape);
    EXPECT_EQ(blocks[0].rows * blocks[0].channels, 720);
  }
}

TEST(BlocksTest, StridesOfDimensionsOfSizeOneDoNotCutTheTensor) {
  const std::vector<float> data(24);
  const TensorView view{data.data(), DType::kFloat32, {2, 1, 3, 1, 4}, {12, -7, 4, 999, 1}};
  ASSERT_EQ(blocks_of(view).size(), 1U);
  EXPECT_EQ(blocks_of(view)[0].rows, 6);
}

TEST(BlocksTest, SliceOfTheChannelsIsOneStridedBlock) {
  const std::vector<float> data(2 * 3 * 8);
  const TensorView view{data.data() + 2, DType::kFloat32, {2, 3, 4}, {24, 8, 1}};
  const std::vector<Block> blocks = blocks_of(view);
  ASSERT_EQ(blocks.size(), 1U);
  EXPECT_EQ(blocks[0].rows, 6);
  EXPECT_EQ(blocks[0].row_stride, 8);
  EXPECT_FALSE(blocks[0].is_contiguous());
}

TEST(BlocksTest, TransposedTensorKeepsRowOrder) {
  // Heads before tokens: [head, token, channel] seen as [token, head, channel].
  const std::vector<float> data(3 * 5 * 2);
  const TensorView view{data.data(), DType::kFloat32, {5, 3, 2}, {2, 10, 1}};
  const std::vector<Block> blocks = blocks_of(view);
  ASSERT_EQ(blocks.size(), 5U);
  for (std::size_t i = 0; i < blocks.size(); ++i) {
    EXPECT_EQ(blocks[i].first_row, static_cast<std::int64_t>(3 * i));
    EXPECT_EQ(blocks[i].data, reinterpret_cast<const std::byte*>(data.data() + 2 * i));
    EXPECT_EQ(blocks[i].rows, 3);
    EXPECT_EQ(blocks[i].row_stride, 10);
  }
}

TEST(BlocksTest, ExpandedAndReversedDimensionsAreJoined) {
  const std::vector<float> data(12);
  const TensorView expanded{data.data(), DType::kFloat32, {7, 5, 12}, {0, 0, 1}};
  ASSERT_EQ(blocks_of(expanded).size(), 1U);
  EXPECT_EQ(blocks_of(expanded)[0].rows, 35);
  const TensorView reversed{data.data() + 9, DType::kFloat32, {2, 2, 3}, {-6, -3, 1}};
  ASSERT_EQ(blocks_of(reversed).size(), 1U);
  EXPECT_EQ(blocks_of(reversed)[0].row_stride, -3);
}

}  // namespace
}  // namespace amct
