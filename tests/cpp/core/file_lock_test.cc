#include "amct/core/file_lock.h"

#include "amct/core/error.h"

#include <array>
#include <chrono>
#include <filesystem>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include "support/expect_error.h"
#include "support/files.h"

namespace amct {
namespace {

using support::expect_error;

/// What another process returns.
int in_another_process(const std::function<int()>& work) {
  const pid_t child = ::fork();
  if (child == 0) ::_exit(work());
  int status = 0;
  EXPECT_EQ(::waitpid(child, &status, 0), child);
  return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

class FileLockTest : public support::FolderTest {
 protected:
  const std::string path = folder / "record.txt";
};

TEST_F(FileLockTest, LeavesNothingBehind) {
  {
    const FileLock lock(path);
    EXPECT_EQ(folder.names(), std::vector<std::string>{".record.txt.lock"});
  }
  EXPECT_TRUE(folder.names().empty());
}

/// The lock file is held by a process that was forked before: as by one that runs elsewhere.
TEST_F(FileLockTest, AnotherProcessIsNamed) {
  std::array<int, 2> locked{};
  std::array<int, 2> ended{};
  ASSERT_EQ(::pipe(locked.data()), 0);
  ASSERT_EQ(::pipe(ended.data()), 0);
  char byte = 0;
  const pid_t child = ::fork();
  if (child == 0) {
    const FileLock lock(path);
    if (::write(locked[1], &byte, 1) != 1 || ::read(ended[0], &byte, 1) != 1) ::_exit(1);
    ::_exit(0);  // without the destructor, as one that was killed
  }
  ASSERT_EQ(::read(locked[0], &byte, 1), 1);
  expect_error<StateError>([&] { const FileLock lock(path); },
                           {path, "process " + std::to_string(child) + " on "});
  std::optional<FileLock> lock;
  std::thread waits([&] { lock.emplace(path, std::chrono::seconds(30)); });
  ASSERT_EQ(::write(ended[1], &byte, 1), 1);
  waits.join();
  ASSERT_EQ(::waitpid(child, nullptr, 0), child);
  EXPECT_TRUE(lock.has_value());
}

TEST_F(FileLockTest, OneProcessHasItSeveralTimes) {
  std::optional<FileLock> first(path);
  std::optional<FileLock> second(path);
  std::filesystem::create_directory_symlink(folder.path(), folder / "link");
  const FileLock third(folder / "link/record.txt");
  first.reset();
  second.reset();
  EXPECT_EQ(std::filesystem::exists(folder / ".record.txt.lock"), true);
}

TEST_F(FileLockTest, WhatIsNoFileIsRefused) {
  expect_error<ValueError>([&] { const FileLock lock(folder.path()); }, {"folder"});
  expect_error<ValueError>([&] { const FileLock lock(""); }, {"empty"});
}

TEST_F(FileLockTest, MissingFoldersAreMadeAndNamesMayBeLong) {
  const FileLock lock(folder / "a/b/record.txt");
  EXPECT_TRUE(std::filesystem::exists(folder / "a/b/.record.txt.lock"));
  const FileLock longest(folder / std::string(255, 'x'));
  EXPECT_EQ(folder.names().size(), 2U);
}

/// The name of a lock is known to everybody, and a link there could lead anywhere.
TEST_F(FileLockTest, ALinkInItsPlaceIsNotFollowed) {
  std::filesystem::create_symlink(folder / "elsewhere", folder / ".record.txt.lock");
  expect_error<StateError>([&] { const FileLock lock(path); },
                           {".record.txt.lock", "is a link", "remove it"});
  EXPECT_FALSE(std::filesystem::exists(folder / "elsewhere"));
}

TEST_F(FileLockTest, WhatCannotBeOpenedIsNotTakenForNoLock) {
  std::filesystem::create_directory(folder / ".record.txt.lock");
  expect_error<IoError>([&] { const FileLock lock(path); }, {".record.txt.lock", "directory"});
}

TEST_F(FileLockTest, AForkedProcessDoesNotShareIt) {
  std::optional<FileLock> lock(path);
  const int code = in_another_process([&] {
    try {
      const FileLock another(path);
      return 1;
    } catch (const StateError&) {
      lock.reset();  // as where the child ends by exit()
      return 0;
    }
  });
  EXPECT_EQ(code, 0);
  EXPECT_EQ(folder.names(), std::vector<std::string>{".record.txt.lock"});
  const int refused = in_another_process([&] {
    try {
      const FileLock another(path);
      return 1;
    } catch (const StateError&) {
      return 0;
    }
  });
  EXPECT_EQ(refused, 0);
  lock.reset();
  EXPECT_TRUE(folder.names().empty());
}

TEST_F(FileLockTest, ManyThreadsAndProcessesTakeTurns) {
  // Locks of one process do not exclude each other, so that its threads have a mutex.
  std::mutex mutex;
  const auto count = [&] {
    for (int i = 0; i < 25; ++i) {
      const FileLock lock(path, std::chrono::seconds(60));
      const std::lock_guard turn(mutex);
      const std::string counter = folder / "counter";
      const int number =
          std::filesystem::exists(counter) ? std::stoi(support::read_file(counter)) : 0;
      support::write_file(counter, std::to_string(number + 1));
    }
  };
  const auto work = [&] {
    std::thread other(count);
    count();
    other.join();
    return 0;
  };
  // All are forked before there is a thread: a child has what another thread held at that moment,
  // the allocator's locks for one, and nobody to let go of it.
  std::vector<pid_t> processes;
  for (int i = 0; i < 4; ++i) {
    const pid_t child = ::fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
      int result = 1;
      try {
        result = work();
      } catch (...) {
      }
      ::_exit(result);
    }
    processes.push_back(child);
  }
  for (const pid_t process : processes) {
    int status = 0;
    ASSERT_EQ(::waitpid(process, &status, 0), process);
    EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << status;
  }
  EXPECT_EQ(support::read_file(folder / "counter"), "200");
}

}  // namespace
}  // namespace amct
