// Vectors of many millions of elements.
#pragma once

#include <algorithm>
#include <cstddef>
#include <memory>
#include <new>
#include <utility>
#include <vector>

#pragma GCC visibility push(default)
namespace amct {

/// Memory for large arrays, in huge pages where the system gives them: the first touch of a page
/// costs a fault, which at 4 KiB takes several times longer than filling the page does. Up to 64
/// MiB that were given back are kept for the next array of the same size, as even a fault of a huge
/// page costs more than filling it. Throws std::bad_alloc.
void* allocate_large(std::size_t bytes);
void deallocate_large(void* memory, std::size_t bytes) noexcept;

/// Allocator of LargeArray. Elements made by resize() are left uninitialised.
template <typename T>
struct LargeArrayAllocator {
  using value_type = T;

  LargeArrayAllocator() = default;
  template <typename U>
  LargeArrayAllocator(const LargeArrayAllocator<U>& /*other*/) {}  // NOLINT(*-explicit-*)

  T* allocate(std::size_t count) {
    if (count > static_cast<std::size_t>(-1) / sizeof(T)) throw std::bad_array_new_length();
    return static_cast<T*>(allocate_large(count * sizeof(T)));
  }
  void deallocate(T* memory, std::size_t count) noexcept {
    deallocate_large(memory, count * sizeof(T));
  }

  template <typename U>
  void construct(U* at) {
    ::new (static_cast<void*>(at)) U;
  }
  template <typename U, typename... Args>
  void construct(U* at, Args&&... args) {
    std::construct_at(at, std::forward<Args>(args)...);
  }

  friend bool operator==(const LargeArrayAllocator& /*a*/, const LargeArrayAllocator& /*b*/) {
    return true;
  }
};

/// A vector for plain data of any size, best from a few MiB on.
template <typename T>
using LargeArray = std::vector<T, LargeArrayAllocator<T>>;

/// Gives an array that will never need more than `limit` elements the capacity for `needed`. While
/// it is small, capacity at least doubles, which keeps the cost of many small additions linear.
/// Then it gets all of `limit` at once: that costs address space, not memory, which is only taken
/// up as it is touched, and the array is never again held twice. Throws std::bad_alloc.
template <typename T>
void grow(LargeArray<T>& array, std::size_t needed, std::size_t limit) {
  if (needed <= array.capacity()) return;
  constexpr std::size_t kSmall = (std::size_t{1} << 22) / sizeof(T);
  const std::size_t doubled = std::max(needed, 2 * array.capacity());
  if (needed > kSmall && doubled < limit) {
    try {
      array.reserve(limit);
      return;
    } catch (const std::bad_alloc&) {
      // Where address space is short, it grows by halves.
      array.reserve(doubled);
      return;
    }
  }
  array.reserve(doubled);
}

}  // namespace amct
#pragma GCC visibility pop
