#include "amct/core/large_array.h"

#include <algorithm>
#include <array>
#include <mutex>

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace amct {
namespace {

constexpr std::size_t kHugePage = std::size_t{1} << 21;
// Below this a part of a huge page would be wasted, or none fits.
constexpr std::size_t kLarge = 2 * kHugePage;
// Most that is kept for arrays to come: those of a few layers, which follow each other in one size.
constexpr std::size_t kMostKept = std::size_t{1} << 26;

std::size_t whole_pages(std::size_t bytes) {
  return (bytes + kHugePage - 1) / kHugePage * kHugePage;
}

void* allocate_pages(std::size_t bytes) {
  void* memory = ::operator new(bytes, std::align_val_t{kHugePage});
#ifdef __linux__
  // Advice: where it is not taken, the memory is as good, only slower to come by.
  static_cast<void>(madvise(memory, bytes, MADV_HUGEPAGE));
#endif
  return memory;
}

void deallocate_pages(void* memory) noexcept {
  ::operator delete(memory, std::align_val_t{kHugePage});
}

/// Blocks of pages that were given back, the oldest first.
class KeptBlocks {
 public:
  static KeptBlocks& instance() {
    // Never destroyed: arrays may still be given back while the program ends.
    static KeptBlocks& kept = *new KeptBlocks;
    return kept;
  }

  /// A block of so many bytes, or null.
  void* take(std::size_t bytes) {
    const std::lock_guard lock(mutex_);
    for (std::size_t i = count_; i-- > 0;) {
      if (blocks_[i].bytes == bytes) return remove(i);
    }
    return nullptr;
  }

  /// Keeps a block, in place of the oldest ones where there is no room.
  void keep(void* memory, std::size_t bytes) noexcept {
    const std::lock_guard lock(mutex_);
    while (bytes_ + bytes > kMostKept) deallocate_pages(remove(0));
    blocks_[count_++] = {memory, bytes};
    bytes_ += bytes;
  }

 private:
  struct Block {
    void* memory;
    std::size_t bytes;
  };

  void* remove(std::size_t i) noexcept {
    const Block block = blocks_[i];
    std::copy(blocks_.begin() + static_cast<std::ptrdiff_t>(i) + 1,
              blocks_.begin() + static_cast<std::ptrdiff_t>(count_),
              blocks_.begin() + static_cast<std::ptrdiff_t>(i));
    --count_;
    bytes_ -= block.bytes;
    return block.memory;
  }

  std::mutex mutex_;
  std::array<Block, kMostKept / kLarge> blocks_{};
  std::size_t count_ = 0;
  std::size_t bytes_ = 0;
};

}  // namespace

void* allocate_large(std::size_t bytes) {
  if (bytes < kLarge) return ::operator new(bytes);
  const std::size_t size = whole_pages(bytes);
  if (size < bytes) throw std::bad_alloc();  // past the largest size
  if (void* kept = KeptBlocks::instance().take(size)) return kept;
  return allocate_pages(size);
}

void deallocate_large(void* memory, std::size_t bytes) noexcept {
  if (bytes < kLarge) {
    ::operator delete(memory);
  } else if (const std::size_t size = whole_pages(bytes); size <= kMostKept) {
    KeptBlocks::instance().keep(memory, size);
  } else {
    deallocate_pages(memory);
  }
}

}  // namespace amct
