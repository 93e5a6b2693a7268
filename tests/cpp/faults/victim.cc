// A calibration that other processes disturb: it goes on from its snapshot, saves it after each
// batch, and ends with a record and a counts file.
//
// Usage: amct_victim FOLDER [FAILING_ALLOCATION]
//
// Standard output gets "r NUMBER" (batches that a snapshot had), then "b" for each batch that was
// shown and "s" for each snapshot that was saved. Exit codes: 0 done; 1 a file could not be
// written; 3 memory ran out where nothing can be done again. With a number, the allocation of that
// number fails, and those of twice, four times, ... its number; what they made fail is done again,
// where it can be, after an "m". An "l" says that it was one of memory in huge pages.
#include "faults/victim.h"

#include "amct/core/error.h"
#include "amct/search/search.h"
#include "amct/session/session.h"

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <iostream>
#include <new>
#include <string>
#include <vector>

#include <malloc.h>
#include <unistd.h>

namespace {

std::atomic<long> allocations{0};
std::atomic<long> failing{0};  // its number; 0: none fails

void say(const std::string& text) {
  if (::write(STDOUT_FILENO, text.data(), text.size()) < 0) std::abort();
}

bool fails() {
  long number = failing.load();
  return number != 0 && ++allocations >= number &&
         failing.compare_exchange_strong(number, 2 * number);
}

void* allocate(std::size_t size) { return fails() ? nullptr : std::malloc(size == 0 ? 1 : size); }

/// Whole multiples of the alignment, as aligned_alloc() wants them.
void* allocate(std::size_t size, std::align_val_t alignment) {
  const auto unit = static_cast<std::size_t>(alignment);
  if (fails()) {
    if (unit >= std::size_t{1} << 21) say("l");
    return nullptr;
  }
  return std::aligned_alloc(unit, std::max<std::size_t>(1, (size + unit - 1) / unit) * unit);
}

}  // namespace

void* operator new(std::size_t size) {
  if (void* memory = allocate(size)) return memory;
  throw std::bad_alloc();
}
void* operator new(std::size_t size, const std::nothrow_t& /*tag*/) noexcept {
  return allocate(size);
}
void* operator new(std::size_t size, std::align_val_t alignment) {
  if (void* memory = allocate(size, alignment)) return memory;
  throw std::bad_alloc();
}
void* operator new(std::size_t size, std::align_val_t alignment,
                   const std::nothrow_t& /*tag*/) noexcept {
  return allocate(size, alignment);
}
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t /*size*/) noexcept { std::free(memory); }
void operator delete(void* memory, std::align_val_t /*alignment*/) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t /*size*/, std::align_val_t /*alignment*/) noexcept {
  std::free(memory);
}

namespace {

/// Does something again until memory is enough for it.
template <typename Action>
void insist(Action action) {
  for (;;) {
    try {
      action();
      return;
    } catch (const std::bad_alloc&) {
      say("m");
    }
  }
}

void run(const std::string& folder, long failing_allocation) {
  using namespace amct;
  const std::string snapshot = folder + "/run.snapshot";
  Session session(victim::config(), folder + "/record.txt",
                  {.counts_file = folder + "/all.counts"});
  std::int64_t done = 0;
  if (std::filesystem::exists(snapshot)) done = session.restore(snapshot);
  say("r " + std::to_string(done) + "\n");
  const std::vector<victim::Batch> batches = victim::batches();
  failing = failing_allocation;
  for (; done < victim::kBatches; ++done) {
    for (const std::string& layer : victim::kLayers) {
      const victim::Batch& batch = batches.at(static_cast<std::size_t>(done));
      session.observe(layer, batch.view(layer));
    }
    say("b");
    if (done + 1 == victim::kBatches) break;
    insist([&] { session.save(snapshot, done + 1); });
    say("s");
  }
  insist([&] { session.write_record(); });
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2) return 2;
  // Memory that is given back is used again: fresh pages for each snapshot would take most of the
  // time of a process that is started a thousand times.
  // NOLINTBEGIN(concurrency-mt-unsafe): there are no threads yet
  ::mallopt(M_MMAP_THRESHOLD, 1 << 25);
  ::mallopt(M_TRIM_THRESHOLD, 1 << 30);
  // NOLINTEND(concurrency-mt-unsafe)
  try {
    run(argv[1], argc > 2 ? std::strtol(argv[2], nullptr, 10) : 0);
    return 0;
  } catch (const amct::IoError& error) {
    std::cerr << error.what() << '\n';
    return 1;
  } catch (const std::bad_alloc&) {
    return 3;
  }
}
