// 256 counters that take as little memory as their counts allow.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <variant>

namespace amct {

/// Counters of 16 bits that turn into ones of 32 and 64 when a count needs it.
class CounterPage {
 public:
  static constexpr std::size_t kSize = 256;
  /// A reader or writer of counts sees all of them as this.
  using Counts = std::array<std::uint64_t, kSize>;

  /// Whether it holds counters: an empty page costs no memory of its own.
  bool empty() const { return std::holds_alternative<std::monostate>(counters_); }
  /// The counts; zeros where empty.
  Counts counts() const;
  /// Bytes of memory that the counters take.
  std::size_t bytes() const;
  /// Adds counts; sums must fit 64 bits.
  void add(const Counts& counts);

 private:
  template <typename T>
  using Counters = std::unique_ptr<std::array<T, kSize>>;

  std::variant<std::monostate, Counters<std::uint16_t>, Counters<std::uint32_t>,
               Counters<std::uint64_t>>
      counters_;
};

}  // namespace amct
