#include "amct/core/large_array.h"

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace amct {
namespace {

constexpr std::size_t kHugePage = std::size_t{1} << 21;
// Below this a part of a huge page would be wasted, or none fits.
constexpr std::size_t kLarge = 2 * kHugePage;

}  // namespace

void* allocate_large(std::size_t bytes) {
  if (bytes < kLarge) return ::operator new(bytes);
  void* memory = ::operator new(bytes, std::align_val_t{kHugePage});
#ifdef __linux__
  // Advice: where it is not taken, the memory is as good, only slower to come by.
  static_cast<void>(madvise(memory, bytes, MADV_HUGEPAGE));
#endif
  return memory;
}

void deallocate_large(void* memory, std::size_t bytes) noexcept {
  if (bytes < kLarge) {
    ::operator delete(memory);
  } else {
    ::operator delete(memory, std::align_val_t{kHugePage});
  }
}

}  // namespace amct
