#include "session/background_tasks.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <thread>
#include <vector>

#include <gtest/gtest.h>

namespace amct {
namespace {

constexpr std::size_t kAnyBytes = 1000;

/// Notes how many tasks, and how many of their bytes, were there at a time.
struct Watched {
  std::atomic<std::size_t> tasks{0};
  std::atomic<std::size_t> most_tasks{0};
  std::atomic<std::size_t> bytes{0};
  std::atomic<std::size_t> most_bytes{0};
  std::atomic<std::size_t> done{0};

  static void raise(std::atomic<std::size_t>& most, std::size_t value) {
    std::size_t seen = most;
    while (seen < value && !most.compare_exchange_weak(seen, value)) {
    }
  }
  void run(BackgroundTasks& background, std::size_t size) {
    background.run(size, [this, size] {
      std::this_thread::sleep_for(std::chrono::microseconds(200));
      bytes -= size;
      --tasks;
      ++done;
    });
    // What waits is counted when run() returns: what it waited for is gone by then.
    raise(most_tasks, ++tasks);
    raise(most_bytes, bytes += size);
  }
};

TEST(BackgroundTasks, RunAllAndAreWaitedFor) {
  Watched watched;
  BackgroundTasks background(4, kAnyBytes);
  for (int i = 0; i < 50; ++i) watched.run(background, 1);
  background.wait();
  EXPECT_EQ(watched.done, 50U);
  background.wait();  // nothing to wait for
}

TEST(BackgroundTasks, NoMoreWaitThanAllowed) {
  for (const std::size_t most : {1U, 2U, 4U}) {
    Watched watched;
    BackgroundTasks background(most, kAnyBytes);
    for (int i = 0; i < 30; ++i) watched.run(background, 1);
    EXPECT_LE(watched.most_tasks, most);
  }
}

TEST(BackgroundTasks, NoMoreBytesWaitThanAllowedButForATaskThatIsLargerAlone) {
  Watched watched;
  BackgroundTasks background(10, 100);
  for (int i = 0; i < 30; ++i) watched.run(background, 40);
  EXPECT_LE(watched.most_bytes, 100U);
  background.wait();
  watched.most_tasks = 0;
  for (int i = 0; i < 5; ++i) watched.run(background, 500);
  EXPECT_EQ(watched.most_tasks, 1U);
  background.wait();
  EXPECT_EQ(watched.done, 35U);
}

TEST(BackgroundTasks, ManyThreadsMayCome) {
  Watched watched;
  BackgroundTasks background(4, kAnyBytes);
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&] {
      for (int i = 0; i < 50; ++i) watched.run(background, 1);
      background.wait();
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(watched.done, 200U);
}

TEST(BackgroundTasks, TheEndWaits) {
  std::atomic<int> done{0};
  {
    BackgroundTasks background(4, kAnyBytes);
    for (int i = 0; i < 4; ++i) background.run(1, [&] { ++done; });
  }
  EXPECT_EQ(done, 4);
}

}  // namespace
}  // namespace amct
