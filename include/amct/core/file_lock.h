// Keeping other processes from a file that this one goes on writing.
#pragma once

#include <chrono>
#include <memory>
#include <string>

#pragma GCC visibility push(default)
namespace amct {

/// An advisory lock (flock) on a file beside `path`, ".NAME.lock", which is removed with the lock.
/// Locks of one process on one path are counted and do not exclude each other; a child process that
/// it forks has none of them. Where the file system has no locks, or the folder takes no files,
/// there is none. Thread-safe.
class FileLock {
 public:
  /// Waits up to `patience` for another process. Throws StateError, which names it, where that
  /// holds the lock still, and where a link stands in the place of the lock's file; IoError where
  /// that file is there and cannot be opened; ValueError as check_output_path does. Missing folders
  /// are made.
  explicit FileLock(const std::string& path,
                    std::chrono::milliseconds patience = std::chrono::milliseconds(0));
  FileLock(FileLock&&) noexcept = default;
  FileLock& operator=(FileLock&&) noexcept = default;
  ~FileLock() = default;

 private:
  struct [[gnu::visibility("hidden")]] Held;

  std::shared_ptr<Held> held_;  // none: there is no lock to be had
};

}  // namespace amct
#pragma GCC visibility pop
