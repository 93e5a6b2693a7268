// Observers through bytes and back.
#include "amct/core/error.h"
#include "amct/observe/observer.h"

#include <limits>
#include <random>
#include <string>
#include <tuple>
#include <vector>

#include <gtest/gtest.h>

#include "support/data.h"
#include "support/expect_error.h"
#include "value_counts.pb.h"

namespace amct {
namespace {

using support::Distribution;
using support::make_tensor;
using support::Tensor;

/// What an observer is made of: its granularity, whether it keeps ranges alone, sketches float32.
struct Kind {
  const char* name;
  Granularity granularity;
  bool range_only;
  bool sketch;
};

constexpr std::int64_t kChannels = 6;

const std::vector<Kind> kKinds{
    {"PerTensor", Granularity::kPerTensor, false, false},
    {"PerChannel", Granularity::kPerChannel, false, false},
    {"PerHead", Granularity::kPerHead, false, false},
    {"RangePerTensor", Granularity::kPerTensor, true, false},
    {"RangePerChannel", Granularity::kPerChannel, true, false},
    {"RangePerHead", Granularity::kPerHead, true, false},
    {"SketchPerTensor", Granularity::kPerTensor, false, true},
    {"SketchPerChannel", Granularity::kPerChannel, false, true},
    {"SketchPerHead", Granularity::kPerHead, false, true},
};

Observer observer_of(const Kind& kind) {
  return Observer(kind.granularity, {.nonfinite = NonFinitePolicy::kSkip,
                                     .range_only = kind.range_only,
                                     .sample_bytes = kind.sketch ? std::size_t{256} : 1U << 20,
                                     .heads = 3});
}

/// Batches of all types that a layer may change between, some with values that are not finite.
std::vector<Tensor> batches_of(const std::vector<DType>& dtypes) {
  std::vector<Tensor> batches;
  for (unsigned seed = 1; const DType dtype : dtypes) {
    std::vector<float> x = support::sample(Distribution::kHeavyTailed,
                                           static_cast<std::size_t>(40 * kChannels), seed++);
    if (seed % 2 == 0) {
      x[5] = std::numeric_limits<float>::quiet_NaN();
      x[17] = std::numeric_limits<float>::infinity();
    }
    batches.push_back(make_tensor(dtype, {40, kChannels}, x));
  }
  return batches;
}

void expect_same(const Observer& a, const Observer& b) {
  EXPECT_EQ(a.serialize(), b.serialize());
  EXPECT_EQ(a.granularity(), b.granularity());
  EXPECT_EQ(a.batches(), b.batches());
  EXPECT_EQ(a.rows(), b.rows());
  EXPECT_EQ(a.channels(), b.channels());
  EXPECT_EQ(a.non_finite_count(), b.non_finite_count());
  EXPECT_EQ(a.is_sketch(), b.is_sketch());
  EXPECT_EQ(a.is_range_only(), b.is_range_only());
  ASSERT_EQ(a.groups(), b.groups());
  for (std::size_t group = 0; group < a.groups(); ++group) {
    if (a.is_range_only()) {
      EXPECT_EQ(a.range(group).min, b.range(group).min);
      EXPECT_EQ(a.range(group).max, b.range(group).max);
    } else {
      EXPECT_EQ(a.value_counts(group), b.value_counts(group));
    }
  }
}

class ObserverBytesTest : public testing::TestWithParam<Kind> {};

INSTANTIATE_TEST_SUITE_P(All, ObserverBytesTest, testing::ValuesIn(kKinds),
                         [](const auto& info) { return std::string(info.param.name); });

TEST_P(ObserverBytesTest, ComeBackAndGoOnToTheSameBits) {
  using enum DType;
  for (const std::vector<DType>& dtypes : {std::vector{kBFloat16, kBFloat16},
                                           {kFloat16, kFloat16},
                                           {kFloat32, kFloat32},
                                           {kFloat32, kBFloat16, kFloat16, kFloat32}}) {
    const std::vector<Tensor> batches = batches_of(dtypes);
    Observer unbroken = observer_of(GetParam());
    Observer resumed = observer_of(GetParam());
    expect_same(unbroken, Observer::deserialize(resumed.serialize()));  // nothing seen yet
    for (const Tensor& batch : batches) {
      unbroken.observe(batch.view());
      resumed = Observer::deserialize(resumed.serialize());
      resumed.observe(batch.view());
      expect_same(unbroken, resumed);
    }
    if (!GetParam().range_only) {
      EXPECT_EQ(unbroken.is_sketch(), GetParam().sketch && dtypes.front() == kFloat32);
    }
  }
}

TEST_P(ObserverBytesTest, ManyRowsLieInPages) {
  Observer observer = observer_of(GetParam());
  const Tensor batch = make_tensor(DType::kBFloat16, {9000, kChannels},
                                   support::sample(Distribution::kNormal, 9000 * kChannels, 3));
  observer.observe(batch.view());
  expect_same(observer, Observer::deserialize(observer.serialize()));
}

TEST_P(ObserverBytesTest, DamagedBytesAreRefusedOrMakeAnObserver) {
  Observer observer = observer_of(GetParam());
  for (const Tensor& batch : batches_of({DType::kFloat32, DType::kBFloat16, DType::kFloat16}))
    observer.observe(batch.view());
  const std::string bytes = observer.serialize();
  std::mt19937 random(1);
  int refused = 0;
  for (int i = 0; i < 3000; ++i) {
    std::string damaged = bytes;
    for (unsigned flips = 1 + random() % 3; flips > 0; --flips) {
      char& byte = damaged[random() % damaged.size()];
      byte = static_cast<char>(byte ^ (1 << (random() % 8)));
    }
    if (i % 3 == 0) damaged.resize(random() % damaged.size());
    try {
      const Observer other = Observer::deserialize(damaged);
      for (std::size_t group = 0; group < other.groups() && group < 100; ++group) {
        if (other.is_range_only()) {
          other.range(group);
        } else {
          other.value_counts(group);
        }
      }
    } catch (const Error&) {
      ++refused;
    }
  }
  EXPECT_GT(refused, 300);
}

TEST(ChannelWeightsTest, AreAddedMergedAndKept) {
  Observer observer = observer_of(kKinds[1]);
  observer.add_channel_weights(
      std::vector<std::uint64_t>{1, 2, 3, 4, 5, 6});  // before a batch came
  const std::vector<Tensor> batches = batches_of({DType::kBFloat16, DType::kFloat32});
  observer.observe(batches[0].view());
  observer.add_channel_weights({});
  observer.add_channel_weights(std::vector<std::uint64_t>{10, 0, 0, 0, 0, 0});
  const std::vector<std::uint64_t> sums{11, 2, 3, 4, 5, 6};
  EXPECT_TRUE(std::ranges::equal(observer.channel_weights(), sums));
  const Observer back = Observer::deserialize(observer.serialize());
  expect_same(back, observer);
  EXPECT_TRUE(std::ranges::equal(back.channel_weights(), sums));
  Observer without = observer_of(kKinds[1]);
  without.observe(batches[1].view());
  EXPECT_TRUE(without.channel_weights().empty());
  without.merge(observer);
  EXPECT_TRUE(std::ranges::equal(without.channel_weights(), sums));
  without.merge(without);
  EXPECT_EQ(without.channel_weights()[0], 22U);

  support::expect_error<StateError>(
      [&] { observer.add_channel_weights(std::vector<std::uint64_t>{1, 2}); }, {"2 channels", "6"});
  std::vector<std::uint64_t> most(6, ~std::uint64_t{0} - 11);
  observer.add_channel_weights(most);
  most.assign(6, 1);
  support::expect_error<StateError>([&] { observer.add_channel_weights(most); }, {"64 bits"});
  EXPECT_EQ(observer.channel_weights()[0], ~std::uint64_t{0});
  EXPECT_EQ(observer.channel_weights()[1], ~std::uint64_t{0} - 9);  // all or nothing
  Observer tensor = observer_of(kKinds[0]);
  support::expect_error<StateError>([&] { tensor.add_channel_weights(most); }, {"one by one"});
  Observer early = observer_of(kKinds[1]);
  early.add_channel_weights(std::vector<std::uint64_t>{1, 2});
  support::expect_error<StateError>([&] { early.observe(batches[0].view()); }, {"6 channels"});
}

/// Refused with a message that holds `what`, after `spoil` was done to a valid state.
template <typename Spoil>
void expect_malformed(const Kind& kind, const std::vector<DType>& dtypes, const char* what,
                      Spoil spoil) {
  Observer observer = observer_of(kind);
  for (const Tensor& batch : batches_of(dtypes)) observer.observe(batch.view());
  AMCTCounts::ObserverState state;
  ASSERT_TRUE(state.ParseFromString(observer.serialize()));
  spoil(state);
  support::expect_error<ValueError>([&] { Observer::deserialize(state.SerializeAsString()); },
                                    {what});
}

TEST(MalformedObserverTest, SaysWhatIsWrong) {
  using State = AMCTCounts::ObserverState;
  const Kind& tensor = kKinds[0];
  const Kind& channel = kKinds[1];
  const Kind& head = kKinds[2];
  const Kind& range = kKinds[3];
  const Kind& sketch = kKinds[6];
  constexpr DType kHalf = DType::kBFloat16;
  constexpr DType kFloat = DType::kFloat32;
  expect_malformed(tensor, {kHalf}, "granularity", [](State& s) { s.set_granularity(3); });
  expect_malformed(tensor, {kHalf}, "heads", [](State& s) { s.set_granularity(2); });
  expect_malformed(head, {kHalf}, "granularity",
                   [](State& s) { s.mutable_heads(0)->set_granularity(1); });
  expect_malformed(channel, {kHalf}, "weights", [](State& s) { s.add_channel_weights(1); });
  expect_malformed(tensor, {kHalf}, "weights", [](State& s) { s.add_channel_weights(1); });
  expect_malformed(tensor, {kHalf}, "negative", [](State& s) { s.set_rows(-1); });
  expect_malformed(tensor, {kHalf}, "too many channels",
                   [](State& s) { s.set_channels(std::int64_t{1} << 40); });
  expect_malformed(tensor, {kHalf}, "nothing", [](State& s) { s.clear_bfloat16(); });
  expect_malformed(channel, {kHalf}, "groups are missing",
                   [](State& s) { s.mutable_bfloat16()->RemoveLast(); });
  expect_malformed(tensor, {kHalf}, "counts are missing",
                   [](State& s) { s.mutable_bfloat16(0)->mutable_counts()->RemoveLast(); });
  expect_malformed(tensor, {kHalf}, "twice",
                   [](State& s) { s.mutable_bfloat16(0)->set_patterns(1, 0); });
  expect_malformed(tensor, {kHalf}, "out of range",
                   [](State& s) { s.mutable_bfloat16(0)->set_patterns(1, 70000); });
  expect_malformed(tensor, {kHalf}, "out of range",
                   [](State& s) { s.mutable_bfloat16(0)->set_counts(1, 0); });
  expect_malformed(tensor, {kHalf}, "out of range",
                   [](State& s) { s.mutable_bfloat16(0)->set_counts(1, ~std::uint64_t{0}); });
  expect_malformed(channel, {kFloat}, "different samples",
                   [](State& s) { s.mutable_float32(1)->mutable_values()->RemoveLast(); });
  expect_malformed(tensor, {kFloat}, "not finite",
                   [](State& s) { s.set_any_non_finite_float32(false); });
  expect_malformed(tensor, {kFloat}, "do not fit", [](State& s) { s.set_sample_bytes(8); });
  expect_malformed(range, {kFloat}, "beside ranges",
                   [](State& s) { s.add_bfloat16()->add_patterns(1); });
  expect_malformed(range, {kFloat}, "infinite", [](State& s) {
    s.mutable_ranges(0)->set_max(std::numeric_limits<float>::infinity());
  });
  expect_malformed(sketch, {kFloat}, "does not ascend",
                   [](State& s) { s.mutable_sketch(0)->set_keys(0, 0xFF << 10); });
  expect_malformed(sketch, {kFloat}, "no range",
                   [](State& s) { s.mutable_sketch(0)->set_min(1e30F); });
  support::expect_error<ValueError>([] { Observer::deserialize("\xFF\xFF"); },
                                    {"no ObserverState"});
}

}  // namespace
}  // namespace amct
