#include "session/background_tasks.h"

#include <utility>

#include <tbb/task_arena.h>

namespace amct {
namespace {

/// Where tasks run. A thread that counts a batch never takes one up while it waits for its loop.
tbb::task_arena& arena() {
  static tbb::task_arena arena(tbb::task_arena::automatic, 1, tbb::task_arena::priority::low);
  return arena;
}

}  // namespace

void BackgroundTasks::run(std::size_t bytes, std::function<void()> task) {
  const std::lock_guard lock(mutex_);
  while (!tasks_.empty() &&
         (tasks_.size() >= most_tasks_ || bytes_ > most_bytes_ || bytes > most_bytes_ - bytes_))
    wait_for_oldest();
  auto group = std::make_unique<tbb::task_group>();
  arena().enqueue(group->defer(std::move(task)));
  tasks_.push_back({std::move(group), bytes});
  bytes_ += bytes;
}

void BackgroundTasks::wait() {
  const std::lock_guard lock(mutex_);
  while (!tasks_.empty()) wait_for_oldest();
}

void BackgroundTasks::wait_for_oldest() {
  const Task& oldest = tasks_.front();
  arena().execute([&] { oldest.group->wait(); });
  bytes_ -= oldest.bytes;
  tasks_.pop_front();
}

}  // namespace amct
