// Views of memory laid out in every way there is give what their contiguous copy gives.
#include "amct/core/error.h"
#include "amct/observe/observer.h"

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "support/data.h"

namespace amct {
namespace {

using support::contiguous_copy;
using support::Tensor;

void expect_like_its_copy(const TensorView& view) {
  SCOPED_TRACE("shape " + to_string(view.shape) + ", strides " + to_string(view.strides));
  const Tensor copy = contiguous_copy(view);
  for (const Granularity granularity : {Granularity::kPerTensor, Granularity::kPerChannel}) {
    Observer from_view(granularity);
    Observer from_copy(granularity);
    from_view.observe(view);
    from_copy.observe(copy.view());
    ASSERT_EQ(from_view.groups(), from_copy.groups());
    ASSERT_EQ(from_view.rows(), from_copy.rows());
    for (std::size_t g = 0; g < from_view.groups(); ++g) {
      ASSERT_EQ(from_view.value_counts(g), from_copy.value_counts(g)) << "group " << g;
    }
    Observer range_of_view(granularity, {.range_only = true});
    range_of_view.observe(view);
    ASSERT_EQ(range_of_view.groups(), from_copy.groups());
    for (std::size_t g = 0; g < from_copy.groups(); ++g) {
      ASSERT_EQ(range_of_view.range(g).min, from_copy.value_counts(g).min()) << "group " << g;
      ASSERT_EQ(range_of_view.range(g).max, from_copy.value_counts(g).max()) << "group " << g;
    }
  }
}

class ViewTest : public testing::TestWithParam<DType> {
 protected:
  ViewTest()
      : tensor_(support::make_tensor(GetParam(), {4096},
                                     support::sample(support::Distribution::kNormal, 4096, 3))) {}
  TensorView view(std::int64_t start, std::vector<std::int64_t> shape,
                  std::vector<std::int64_t> strides) const {
    return {tensor_.bytes.data() + start * static_cast<std::int64_t>(size_of(GetParam())),
            GetParam(), std::move(shape), std::move(strides)};
  }

 private:
  Tensor tensor_;
};

INSTANTIATE_TEST_SUITE_P(DTypes, ViewTest, testing::ValuesIn(support::kAllDTypes),
                         [](const auto& param) { return std::string(name_of(param.param)); });

TEST_P(ViewTest, EveryRankFromZeroToFive) {
  expect_like_its_copy(view(7, {}, {}));
  expect_like_its_copy(view(0, {11}, {1}));
  expect_like_its_copy(view(0, {3, 4}, {4, 1}));
  expect_like_its_copy(view(0, {2, 3, 4}, {12, 4, 1}));
  expect_like_its_copy(view(0, {2, 1, 3, 4}, {12, 12, 4, 1}));
  expect_like_its_copy(view(0, {2, 2, 2, 3, 5}, {60, 30, 15, 5, 1}));
}

TEST_P(ViewTest, TransposedSlicedReversedAndExpanded) {
  expect_like_its_copy(view(0, {5, 3}, {1, 5}));                   // transposed matrix
  expect_like_its_copy(view(0, {2, 5, 3, 4}, {60, 4, 20, 1}));     // heads and tokens swapped
  expect_like_its_copy(view(3, {4, 5}, {16, 1}));                  // slice of the channels
  expect_like_its_copy(view(3, {100, 36}, {40, 1}));               // of many channels
  expect_like_its_copy(view(0, {4, 5}, {16, 3}));                  // every third channel
  expect_like_its_copy(view(64, {6, 4}, {-8, 1}));                 // rows backwards
  expect_like_its_copy(view(31, {4, 8}, {8, -1}));                 // channels backwards
  expect_like_its_copy(view(500, {3, 4, 5}, {-100, -20, -3}));     // all backwards
  expect_like_its_copy(view(0, {6, 4}, {0, 1}));                   // one row, expanded
  expect_like_its_copy(view(0, {6, 4}, {1, 0}));                   // one channel, expanded
  expect_like_its_copy(view(9, {3, 3, 3}, {0, 0, 0}));             // one value
  expect_like_its_copy(view(0, {10, 6}, {1, 1}));                  // sliding window
  expect_like_its_copy(view(0, {1, 7, 1, 3}, {999, 3, -999, 1}));  // strides of ones are free
}

TEST_P(ViewTest, RandomViews) {
  std::mt19937 generator(5);
  std::uniform_int_distribution<int> rank(1, 5);
  std::uniform_int_distribution<std::int64_t> size(1, 4);
  std::uniform_int_distribution<std::int64_t> stride(-3, 3);
  for (int round = 0; round < 200; ++round) {
    const auto r = static_cast<std::size_t>(rank(generator));
    std::vector<std::int64_t> shape(r);
    std::vector<std::int64_t> strides(r);
    for (std::size_t d = 0; d < r; ++d) {
      shape[d] = size(generator);
      strides[d] = stride(generator) * (std::int64_t{1} << (2 * (r - d - 1)));
    }
    // At most 5 dimensions of 3 steps of 3 * 4^k each: mostly inside the 4096 values around 2048.
    std::int64_t reach = 0;
    for (std::size_t d = 0; d < r; ++d) reach += std::abs((shape[d] - 1) * strides[d]);
    if (reach >= 2048) continue;
    expect_like_its_copy(view(2048, shape, strides));
  }
}

TEST_P(ViewTest, DataNeedNotBeAligned) {
  const Tensor tensor = support::make_tensor(
      GetParam(), {6, 4}, support::sample(support::Distribution::kNormal, 24, 8));
  for (std::size_t shift = 1; shift < 4; ++shift) {
    std::vector<std::byte> memory(tensor.bytes.size() + shift);
    std::memcpy(memory.data() + shift, tensor.bytes.data(), tensor.bytes.size());
    const TensorView moved = TensorView::contiguous(memory.data() + shift, GetParam(), {6, 4});
    Observer observer(Granularity::kPerTensor);
    observer.observe(moved);
    EXPECT_EQ(observer.value_counts(0), ValueCounts::of(tensor.values())) << shift;
  }
}

TEST_P(ViewTest, NonFiniteIndexCountsElementsOfTheViewAndNotOfMemory) {
  std::vector<float> values(24, 1.0F);
  values[2 * 6 + 1] = std::numeric_limits<float>::infinity();  // row 2, column 1 of [4, 6]
  const Tensor tensor = support::make_tensor(GetParam(), {4, 6}, values);
  // Transposed, it stands at row 1, column 2 of [6, 4].
  const TensorView transposed{tensor.bytes.data(), GetParam(), {6, 4}, {1, 6}};
  // Of the rows backwards, it stands in row 1, column 1.
  const TensorView backwards{
      tensor.bytes.data() + 18 * size_of(GetParam()), GetParam(), {4, 6}, {-6, 1}};
  for (const auto& [view, index] :
       {std::pair{transposed, 1 * 4 + 2}, std::pair{backwards, 1 * 6 + 1}}) {
    try {
      Observer(Granularity::kPerTensor).observe(view);
      ADD_FAILURE() << "took infinity";
    } catch (const NonFiniteError& error) {
      EXPECT_EQ(error.first_index(), index);
      EXPECT_EQ(error.count(), 1);
    }
  }
}

TEST_P(ViewTest, AMalformedViewIsRefusedAndChangesNothing) {
  Observer observer(Granularity::kPerTensor);
  EXPECT_THROW(observer.observe(view(0, {2, 2}, {1})), ValueError);
  EXPECT_THROW(observer.observe({nullptr, GetParam(), {2}, {1}}), ValueError);
  EXPECT_THROW(observer.observe(view(0, {-1}, {1})), ValueError);
  EXPECT_EQ(observer.batches(), 0);
  EXPECT_EQ(observer.channels(), 0);
}

}  // namespace
}  // namespace amct
