#include "observe/counter_page.h"

#include <algorithm>
#include <limits>
#include <type_traits>
#include <utility>

namespace amct {

CounterPage::Counts CounterPage::counts() const {
  Counts result{};
  std::visit(
      [&](const auto& counters) {
        if constexpr (!std::is_same_v<std::decay_t<decltype(counters)>, std::monostate>)
          std::ranges::copy(*counters, result.begin());
      },
      counters_);
  return result;
}

std::size_t CounterPage::bytes() const {
  return std::visit(
      [](const auto& counters) -> std::size_t {
        if constexpr (std::is_same_v<std::decay_t<decltype(counters)>, std::monostate>) {
          return 0;
        } else {
          return sizeof(*counters);
        }
      },
      counters_);
}

void CounterPage::add(const Counts& counts) {
  Counts sums = this->counts();
  std::uint64_t largest = 0;
  for (std::size_t i = 0; i < kSize; ++i) {
    sums[i] += counts[i];
    largest = std::max(largest, sums[i]);
  }
  // What is there is large enough, or makes way for counters that are.
  const auto store = [&]<typename T>(T /*tag*/) {
    if (largest > std::numeric_limits<T>::max()) return false;
    if (!std::holds_alternative<Counters<T>>(counters_))
      counters_ = std::make_unique<std::array<T, kSize>>();
    std::ranges::transform(sums, std::get<Counters<T>>(counters_)->begin(),
                           [](std::uint64_t sum) { return static_cast<T>(sum); });
    return true;
  };
  static_cast<void>(store(std::uint16_t{}) || store(std::uint32_t{}) || store(std::uint64_t{}));
}

}  // namespace amct
