// Calibrations that are killed, whose calls of the system fail, or whose memory runs out: files
// stay whole, and what goes on ends with the same bits.
#include "amct/record/record_file.h"
#include "amct/session/session.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <random>
#include <set>
#include <sstream>
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
  /// Of batches and snapshots; -1 before it has read the snapshot.
  std::ptrdiff_t letters() const {
    const std::size_t line = said.find('\n');
    return line == std::string::npos ? -1 : static_cast<std::ptrdiff_t>(said.size() - line) - 1;
  }
  std::int64_t shown() const { return restored() + std::ranges::count(said, 'b'); }
  std::int64_t saved() const { return restored() + std::ranges::count(said, 's'); }
};

/// When a victim is killed: once it has said so much, and then some.
struct Moment {
  std::ptrdiff_t letters = 0;
  std::chrono::microseconds then{0};
};

/// A call of the system at which something happens.
struct Step {
  std::string call;
  int number = 0;
  bool is_late = false;  // after the last snapshot, where record and counts are written
};

class FaultsTest : public testing::Test {
 protected:
  FaultsTest() {
    calibrate("expected", victim::batches());
    std::vector<victim::Batch> others = victim::batches();
    for (victim::Batch& batch : others) {
      for (std::uint16_t& pattern : batch.patterns) pattern ^= 0x40U;
      for (float& value : batch.values) value *= 1.5F;
    }
    calibrate("old", others);
    std::filesystem::create_directory(run);
  }

  void calibrate(const std::string& name, const std::vector<victim::Batch>& batches) const {
    Session session(victim::config(), folder / (name + ".txt"),
                    {.counts_file = folder / (name + ".counts")});
    for (const victim::Batch& batch : batches) {
      for (const std::string& layer : victim::kLayers) session.observe(layer, batch.view(layer));
    }
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

  /// Runs a victim; kills it at a moment, if there is one.
  End victim_of(const std::string& fault, std::optional<Moment> killed = {},
                const std::string& allocation = {}) const {
    std::vector<std::string> words{AMCT_VICTIM, run};
    if (!allocation.empty()) words.push_back(allocation);
    std::vector<char*> arguments;
    for (std::string& word : words) arguments.push_back(word.data());
    arguments.push_back(nullptr);
    std::vector<std::string> settings;
    if (!fault.empty()) settings.push_back("AMCT_FAULT=" + fault);
    if (named) settings.emplace_back("AMCT_NAMED=1");
    if (!settings.empty()) settings.emplace_back("LD_PRELOAD=" AMCT_INJECT);
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
    End end;
    std::array<char, 4096> buffer{};
    const auto kill_if_time = [&] {
      if (!killed || end.letters() < killed->letters) return;
      std::this_thread::sleep_for(killed->then);
      ::kill(process, SIGKILL);
      killed.reset();
    };
    kill_if_time();
    for (ssize_t got = 0; (got = ::read(ends[0], buffer.data(), buffer.size())) > 0;) {
      end.said.append(buffer.data(), static_cast<std::size_t>(got));
      kill_if_time();
    }
    ::close(ends[0]);
    EXPECT_EQ(::waitpid(process, &end.status, 0), process);
    return end;
  }

  /// Runs to the end what was disturbed when it had saved `saved` batches, and looks at what there
  /// is.
  void expect_the_same_bits(std::int64_t saved = 0) const {
    const End end = victim_of({});
    ASSERT_EQ(end.code(), 0) << support::read_file(errors);
    ASSERT_GE(end.restored(), saved);
    expect_expected_files();
  }
  void expect_expected_files() const {
    ASSERT_EQ(support::read_file(run + "/record.txt"), support::read_file(folder / "expected.txt"));
    ASSERT_EQ(support::read_file(run + "/all.counts"),
              support::read_file(folder / "expected.counts"));
  }

  /// What there is at this moment is that of a run before or of this one, whole.
  void expect_whole_files() const {
    const std::string counts = support::read_file(run + "/all.counts");
    EXPECT_TRUE(counts == support::read_file(folder / "old.counts") ||
                counts == support::read_file(folder / "expected.counts"));
    const std::vector<LayerRecord> record = read_record(run + "/record.txt");
    const std::vector<LayerRecord> before = read_record(folder / "old.txt");
    const std::vector<LayerRecord> after = read_record(folder / "expected.txt");
    ASSERT_EQ(record.size(), after.size());
    for (std::size_t i = 0; i < record.size(); ++i)
      EXPECT_TRUE(record[i] == before[i] || record[i] == after[i]) << record[i].name;
  }

  /// An empty folder.
  void start_anew() const {
    std::filesystem::remove_all(run);
    std::filesystem::create_directory(run);
  }
  /// A folder with record and counts of another calibration.
  void start_over_old_files() const {
    start_anew();
    std::filesystem::copy_file(folder / "old.txt", run + "/record.txt");
    std::filesystem::copy_file(folder / "old.counts", run + "/all.counts");
  }

  /// The calls that a run makes which nothing disturbs: all of those after the last snapshot, those
  /// of the first files, and each fifth between (none where files are named: snapshots are alike).
  std::vector<Step> steps() const {
    start_over_old_files();
    EXPECT_EQ(victim_of("list").code(), 0);
    std::vector<Step> all;
    std::size_t late = 0;
    std::set<std::string> replaced;
    std::map<std::string, int> numbers;
    std::istringstream lines(support::read_file(errors));
    for (std::string call, path; lines >> call && std::getline(lines, path);) {
      all.push_back({.call = call, .number = ++numbers[call]});
      if (call != "rename") continue;
      const std::string name = std::filesystem::path(path).filename();
      replaced.insert(name);
      if (name == "run.snapshot") late = all.size();
    }
    // What is listed is what the library does: snapshots, the record for each layer, the counts.
    const auto files = static_cast<int>(victim::kBatches - 1 + victim::kLayers.size() + 1);
    EXPECT_EQ(replaced, (std::set<std::string>{"all.counts", "record.txt", "run.snapshot"}));
    EXPECT_EQ(numbers["rename"], files);
    EXPECT_EQ(numbers["fsync"], numbers["rename"]);
    EXPECT_EQ(numbers["linkat"], named || !has_nameless_files() ? 0 : numbers["rename"]);
    std::vector<Step> chosen;
    for (std::size_t i = 0; i < all.size(); ++i) {
      all[i].is_late = i >= late;
      const bool is_fifth = !named && all[i].number % 5 == 0;
      if (all[i].is_late || all[i].number <= 3 || is_fifth) chosen.push_back(all[i]);
    }
    return chosen;
  }

  const support::TempFolder folder{support::folder_in_memory()};
  bool named = false;  // whether files have a name before they are whole
  const std::string run = folder / "run";
  const std::string errors = folder / "errors";
};

TEST_F(FaultsTest, AKilledRunLosesNoMoreThanTheInterval) {
  constexpr int kKills = 50;
  constexpr int kAttempts = 200;
  std::mt19937 random(1);
  std::int64_t saved = 0;
  std::int64_t shown = 0;
  int kills = 0;
  std::set<std::int64_t> places;  // batches that a run had seen when it was killed
  for (int attempts = 0; kills < kKills; ++attempts) {
    ASSERT_LT(attempts, kAttempts) << "only " << kills << " were killed";
    const End end =
        victim_of({}, Moment{.letters = std::uniform_int_distribution<std::ptrdiff_t>(0, 4)(random),
                             .then = std::chrono::microseconds(
                                 std::uniform_int_distribution<std::int64_t>(0, 1500)(random))});
    // The one before may have saved a snapshot and not said so, but none of what nobody showed it.
    ASSERT_GE(end.restored(), saved);
    ASSERT_LE(end.restored(), shown);
    if (!end.was_killed()) {  // it was done: the next one begins anew
      ASSERT_EQ(end.code(), 0) << support::read_file(errors);
      expect_expected_files();
      start_anew();
      saved = 0;
      shown = 0;
      continue;
    }
    ++kills;
    saved = end.saved();
    shown = end.shown();
    places.insert(shown);
  }
  EXPECT_GE(places.size(), victim::kBatches / 2);
  expect_the_same_bits(saved);
}

/// Every step of writing: a call that is the last thing the process does.
TEST_F(FaultsTest, KilledAtAnyStepOfWriting) {
  for (const bool with_names : {false, true}) {
    named = with_names;
    const bool nameless = !named && has_nameless_files();
    for (const Step& step : steps()) {
      start_over_old_files();
      const std::string fault = step.call + ":" + std::to_string(step.number) + ":kill";
      SCOPED_TRACE(fault + (named ? " named" : ""));
      const End end = victim_of(fault);
      ASSERT_TRUE(end.was_killed()) << end.code();
      // It is there while it has a name and is not in its place.
      if (nameless) {
        EXPECT_EQ(has_temporary(), step.call == "rename");
      } else if (step.call != "open") {
        EXPECT_TRUE(has_temporary());
      }
      expect_whole_files();
      expect_the_same_bits(end.saved());
    }
  }
}

/// Every step of writing: a call that fails. The process says so, ends with its exit code, and
/// leaves what was there.
TEST_F(FaultsTest, AFailingCallLeavesWholeFiles) {
  for (const bool with_names : {false, true}) {
    named = with_names;
    for (const Step& step : steps()) {
      for (const int code : {ENOSPC, EIO}) {
        if (code == EIO && !step.is_late) continue;  // which call it is tells the ways apart
        start_over_old_files();
        const std::string fault =
            step.call + ":" + std::to_string(step.number) + ":" + std::to_string(code);
        SCOPED_TRACE(fault + (named ? " named" : ""));
        const End end = victim_of(fault);
        if (step.call == "close" && !named && has_nameless_files()) {
          // It is on the disk and in its place by then.
          ASSERT_EQ(end.code(), 0);
          expect_whole_files();
          continue;
        }
        ASSERT_EQ(end.code(), 1);
        const std::string error = support::read_file(errors);
        EXPECT_NE(error.find(run), std::string::npos) << error;
        EXPECT_FALSE(has_temporary());
        expect_whole_files();
        expect_the_same_bits(end.saved());
      }
    }
  }
}

TEST_F(FaultsTest, MemoryThatRunsOutDoesNotChangeABit) {
  int ended = 0;
  int done_again = 0;
  int large = 0;  // huge pages that were refused
  // Each of the first, among which all things start that start once.
  constexpr long kFirst = 300;
  for (long allocation = 1; allocation < 100000;
       allocation += allocation < kFirst ? 1 : allocation / 8) {
    SCOPED_TRACE(allocation);
    named = allocation % 2 == 0;
    start_over_old_files();
    const End end = victim_of({}, {}, std::to_string(allocation));
    ASSERT_TRUE(end.code() == 0 || end.code() == 3) << end.code() << support::read_file(errors);
    ended += end.code() == 3 ? 1 : 0;
    done_again += static_cast<int>(std::ranges::count(end.said, 'm'));
    large += static_cast<int>(std::ranges::count(end.said, 'l'));
    EXPECT_FALSE(has_temporary());
    if (end.code() == 0) {
      expect_expected_files();
    } else {
      expect_whole_files();
      expect_the_same_bits(end.saved());
    }
  }
  EXPECT_GT(ended, 0);
  EXPECT_GT(done_again, 0);
  EXPECT_GT(large, 0);
}

}  // namespace
}  // namespace amct
