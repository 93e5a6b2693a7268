// Calibrations that are killed, whose calls of the system fail, or whose memory runs out: files
// stay whole, and what goes on ends with the same bits.
#include "amct/session/session.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstdint>
#include <filesystem>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include <fcntl.h>
#include <gtest/gtest.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include "faults/victim.h"
#include "support/files.h"

namespace amct {
namespace {

/// How a victim ended.
struct End {
  int status = 0;
  std::string said;

  bool was_killed() const { return WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL; }
  int code() const { return WIFEXITED(status) ? WEXITSTATUS(status) : -1; }
  std::int64_t restored() const { return said.starts_with("r ") ? std::stoll(said.substr(2)) : -1; }
  std::int64_t shown() const { return restored() + std::ranges::count(said, 'b'); }
  std::int64_t saved() const { return restored() + std::ranges::count(said, 's'); }
};

class FaultsTest : public support::FolderTest {
 protected:
  FaultsTest() {
    Session session(victim::config(), folder / "expected.txt",
                    {.counts_file = folder / "expected.counts"});
    for (const victim::Batch& batch : victim::batches()) {
      for (const std::string& layer : victim::kLayers) session.observe(layer, batch.view());
    }
    std::filesystem::create_directory(run);
  }

  /// Whether the folder's file system can keep files without a name.
  bool has_nameless_files() const {
    const int fd = ::open(run.c_str(), O_RDWR | O_TMPFILE | O_CLOEXEC, 0600);
    return fd >= 0 && ::close(fd) == 0;
  }
  bool has_temporary() const {
    return std::ranges::any_of(std::filesystem::directory_iterator(run), [](const auto& entry) {
      return entry.path().extension() == ".tmp";
    });
  }

  /// Runs a victim; kills it after `microseconds`, if that is not negative.
  End victim_of(const std::string& fault, std::int64_t microseconds = -1,
                const std::string& allocation = {}) const {
    std::vector<std::string> words{AMCT_VICTIM, run};
    if (!allocation.empty()) words.push_back(allocation);
    std::vector<char*> arguments;
    for (std::string& word : words) arguments.push_back(word.data());
    arguments.push_back(nullptr);
    std::vector<std::string> settings;
    if (!fault.empty()) settings = {"AMCT_FAULT=" + fault, "LD_PRELOAD=" AMCT_INJECT};
    if (named) settings.emplace_back("AMCT_NAMED=1");
    std::vector<char*> environment;
    for (std::string& setting : settings) environment.push_back(setting.data());
    environment.push_back(nullptr);

    std::array<int, 2> ends{};
    EXPECT_EQ(::pipe2(ends.data(), O_CLOEXEC), 0);
    posix_spawn_file_actions_t actions;
    ::posix_spawn_file_actions_init(&actions);
    ::posix_spawn_file_actions_adddup2(&actions, ends[1], STDOUT_FILENO);
    ::posix_spawn_file_actions_addopen(&actions, STDERR_FILENO, errors.c_str(),
                                       O_WRONLY | O_CREAT | O_TRUNC, 0600);
    pid_t process = 0;
    EXPECT_EQ(::posix_spawn(&process, AMCT_VICTIM, &actions, nullptr, arguments.data(),
                            environment.data()),
              0);
    ::posix_spawn_file_actions_destroy(&actions);
    ::close(ends[1]);
    if (microseconds >= 0) {
      std::this_thread::sleep_for(std::chrono::microseconds(microseconds));
      ::kill(process, SIGKILL);
    }
    End end;
    std::array<char, 4096> buffer{};
    for (ssize_t got = 0; (got = ::read(ends[0], buffer.data(), buffer.size())) > 0;)
      end.said.append(buffer.data(), static_cast<std::size_t>(got));
    ::close(ends[0]);
    EXPECT_EQ(::waitpid(process, &end.status, 0), process);
    return end;
  }

  /// Runs to the end what was disturbed, and looks at what there is.
  void expect_the_same_bits() const {
    const End end = victim_of({});
    ASSERT_EQ(end.code(), 0) << support::read_file(errors);
    ASSERT_EQ(support::read_file(run + "/record.txt"), support::read_file(folder / "expected.txt"));
    ASSERT_EQ(support::read_file(run + "/all.counts"),
              support::read_file(folder / "expected.counts"));
  }

  void start_anew() const {
    std::filesystem::remove_all(run);
    std::filesystem::create_directory(run);
  }

  bool named = false;  // whether files have a name before they are whole
  const std::string run = folder / "run";
  const std::string errors = folder / "errors";
};

TEST_F(FaultsTest, AKilledRunLosesNoMoreThanTheInterval) {
  std::mt19937 random(1);
  std::int64_t before = 0;
  int kills = 0;
  while (kills < 50) {
    const End end = victim_of({}, std::uniform_int_distribution<std::int64_t>(0, 30000)(random));
    if (!end.was_killed()) {  // it was done: the next one begins anew
      ASSERT_EQ(end.code(), 0) << support::read_file(errors);
      ASSERT_EQ(support::read_file(run + "/record.txt"),
                support::read_file(folder / "expected.txt"));
      start_anew();
      before = 0;
      continue;
    }
    ++kills;
    if (end.restored() < 0) continue;  // it had not read the snapshot yet
    // The one before may have saved a snapshot and not said so.
    ASSERT_GE(end.restored(), before);
    before = end.saved();
    ASSERT_LE(end.shown() - before, 1);
  }
  expect_the_same_bits();
}

/// Every step of writing: a call that is the last thing the process does.
TEST_F(FaultsTest, KilledAtAnyStepOfWriting) {
  const bool nameless = has_nameless_files();
  for (const std::string call : {"open", "write", "fsync", "linkat", "close", "rename"}) {
    if (call == "linkat" && !nameless) continue;
    for (int number = 1; number <= 12; ++number) {
      start_anew();
      const std::string fault = call + ":" + std::to_string(number) + ":kill";
      SCOPED_TRACE(fault);
      const End end = victim_of(fault);
      ASSERT_TRUE(end.was_killed()) << end.code();
      EXPECT_TRUE(!nameless || call == "rename" || !has_temporary());
      const End next = victim_of({}, -1);
      ASSERT_EQ(next.code(), 0) << support::read_file(errors);
      ASSERT_GE(next.restored(), end.saved());
      ASSERT_EQ(support::read_file(run + "/record.txt"),
                support::read_file(folder / "expected.txt"));
    }
  }
}

/// Every step of writing: a call that fails. The process says so, ends with its exit code, and
/// leaves what was there.
TEST_F(FaultsTest, AFailingCallLeavesWholeFiles) {
  for (const std::string call :
       {"open", "write", "fsync", "linkat", "close", "rename", "open named", "rename named"}) {
    named = call.ends_with(" named");
    if (call == "linkat" && !has_nameless_files()) continue;
    for (const int code : {ENOSPC, EIO}) {
      for (int number = 1; number <= (named ? 2 : 8); ++number) {
        start_anew();
        const std::string fault = call.substr(0, call.find(' ')) + ":" + std::to_string(number) +
                                  ":" + std::to_string(code);
        SCOPED_TRACE(fault);
        const End end = victim_of(fault);
        ASSERT_EQ(end.code(), 1);
        const std::string error = support::read_file(errors);
        EXPECT_NE(error.find(run), std::string::npos) << error;
        EXPECT_FALSE(has_temporary());
        expect_the_same_bits();
      }
    }
  }
}

TEST_F(FaultsTest, MemoryThatRunsOutDoesNotChangeABit) {
  int ended = 0;
  int done_again = 0;
  for (long allocation = 1; allocation < 100000; allocation += 1 + allocation / 8) {
    SCOPED_TRACE(allocation);
    start_anew();
    const End end = victim_of({}, -1, std::to_string(allocation));
    ASSERT_TRUE(end.code() == 0 || end.code() == 3) << end.code() << support::read_file(errors);
    ended += end.code() == 3 ? 1 : 0;
    done_again += static_cast<int>(std::ranges::count(end.said, 'm'));
    if (end.code() == 0) {
      ASSERT_EQ(support::read_file(run + "/record.txt"),
                support::read_file(folder / "expected.txt"));
    } else {
      expect_the_same_bits();
    }
  }
  EXPECT_GT(ended, 0);
  EXPECT_GT(done_again, 0);
}

}  // namespace
}  // namespace amct
