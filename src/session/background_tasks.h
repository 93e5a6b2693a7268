// Work that another thread does while the caller goes on, with a bound on what waits for it.
#pragma once

#include <cstddef>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>

#include <tbb/task_group.h>

namespace amct {

/// Runs tasks on threads of their own priority, below that of parallel loops elsewhere. No more
/// tasks, nor bytes that they hold, wait than the constructor says; a call that comes with more
/// works off the oldest ones first. Thread-safe.
class BackgroundTasks {
 public:
  BackgroundTasks(std::size_t most_tasks, std::size_t most_bytes)
      : most_tasks_(most_tasks), most_bytes_(most_bytes) {}
  BackgroundTasks(const BackgroundTasks&) = delete;
  BackgroundTasks& operator=(const BackgroundTasks&) = delete;
  ~BackgroundTasks() { wait(); }

  /// Has `task`, which holds `bytes` and must not throw, done by another thread. A task larger than
  /// all that may wait runs when nothing else does.
  void run(std::size_t bytes, std::function<void()> task);
  /// Returns when all tasks are done; helps with them.
  void wait();

 private:
  struct Task {
    std::unique_ptr<tbb::task_group> group;
    std::size_t bytes;
  };

  void wait_for_oldest();

  std::size_t most_tasks_;
  std::size_t most_bytes_;
  std::mutex mutex_;        // guards what follows
  std::deque<Task> tasks_;  // the oldest first, also ones that are done
  std::size_t bytes_ = 0;   // of them all
};

}  // namespace amct
